from __future__ import annotations

import builtins
import json

import pytest

from megatron_yuan.config.schema import LoggingConfig
from megatron_yuan.errors import ConfigError
from megatron_yuan.log import logger
from megatron_yuan.report import expert_report as module
from megatron_yuan.report.metrics import read_metrics
from megatron_yuan.report.result import EvalResult
from megatron_yuan.report.run_folder import open_run_folder
from megatron_yuan.report.telemetry import SilentTelemetry, Telemetry


@pytest.fixture
def folder(tmp_path):
    return open_run_folder(tmp_path / "run", "a: 1\n")


@pytest.fixture
def without(monkeypatch):
    """Make a package look missing."""

    def hide(package: str) -> None:
        real = builtins.__import__

        def guarded(name, *rest):
            if name.startswith(package):
                raise ImportError(f"No module named {package!r}")
            return real(name, *rest)

        monkeypatch.setattr(builtins, "__import__", guarded)

    return hide


def test_results_reach_console_log_and_metrics(folder, said, make_step, arithmetic):
    with Telemetry(LoggingConfig(), folder, arithmetic, total_steps=2) as telemetry:
        telemetry.step(make_step(1))
        telemetry.evaluation(EvalResult(1, {"en": 2.0}, 100))
        telemetry.message("saved")
    heard, written = said(), folder.log.read_text()
    for text in ("step 1/2 | loss  2.5000", "validation loss | en  2.0000", "saved"):
        assert text in heard
        assert text in written
    metrics = read_metrics(folder.metrics)
    assert metrics.starts[0]["attention_scores_counted"] is True
    assert metrics.steps[0]["expert_load"] == [[30, 10, 0, 0], [10, 10, 10, 10]]
    assert metrics.steps[0]["load_max_over_mean"] == [3.0, 1.0]
    assert metrics.steps[0]["mfu"] == pytest.approx(0.2)
    assert metrics.evaluations[0]["losses"] == {"en": 2.0}


def test_warnings_of_any_room_reach_the_log(folder, said, arithmetic):
    with Telemetry(LoggingConfig(), folder, arithmetic, total_steps=2):
        logger.warning("expert %d is dead", 3)
    logger.warning("after the end")
    assert "warning: expert 3 is dead\n" in folder.log.read_text()
    assert "after the end" not in folder.log.read_text()
    assert "warning: expert 3 is dead\n" in said()


def test_without_a_run_folder_nothing_is_written(tmp_path, said, make_step, arithmetic, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Telemetry(LoggingConfig(), None, arithmetic, total_steps=1) as telemetry:
        telemetry.step(make_step(1))
    assert "step 1/1" in said()
    assert list(tmp_path.iterdir()) == []


def test_a_silent_rank_says_nothing(said, make_step):
    with SilentTelemetry() as telemetry:
        telemetry.step(make_step(1))
        telemetry.evaluation(EvalResult(1, {}, 0))
        telemetry.message("x")
    assert said() == ""


def test_a_long_run_writes_sums_of_loads_and_loses_none(folder, said, make_step, arithmetic, monkeypatch):
    monkeypatch.setattr(module, "MOST_LOAD_TABLES", 4)
    with Telemetry(LoggingConfig(), folder, arithmetic, total_steps=12) as telemetry:
        for step in range(1, 13):
            telemetry.step(make_step(step, expert_load=[[step, 1]]))
    tables = [
        (r["step"], r["expert_load"], r["expert_load_steps"])
        for r in read_metrics(folder.metrics).steps
        if "expert_load" in r
    ]
    assert tables == [(3, [[6, 3]], 3), (6, [[15, 3]], 3), (9, [[24, 3]], 3), (12, [[33, 3]], 3)]


def test_tensorboard_gets_the_same_figures(folder, tmp_path, said, make_step, arithmetic):
    pytest.importorskip("tensorboard", reason="the extra 'tensorboard' is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Telemetry(LoggingConfig(tensorboard_dir=str(tmp_path / "tb")), folder, arithmetic, total_steps=2) as telemetry:
        telemetry.step(make_step(1))
        telemetry.evaluation(EvalResult(1, {"en": 2.0}, 100))
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    expected = {"train/loss": 2.5, "experts/max_over_mean/layer_000": 3.0, "validation/loss/en": 2.0, "speed/mfu": 0.2}
    for name, value in expected.items():
        (event,) = events.Scalars(name)
        assert (event.step, event.value) == (1, pytest.approx(value))


@pytest.mark.slow
def test_wandb_writes_offline_into_the_run_folder_under_one_id(folder, said, make_step, arithmetic, monkeypatch):
    pytest.importorskip("wandb", reason="the extra 'wandb' is not installed")
    monkeypatch.setenv("HOME", str(folder.path))  # wandb also keeps a log beneath the user's cache
    config = LoggingConfig(wandb_project="yuan")
    for start in (0, 1):
        with Telemetry(config, folder, arithmetic, total_steps=2, start_step=start, settings={"a": 1}) as telemetry:
            telemetry.step(make_step(start + 1))
    run_id = (folder.wandb / "run_id").read_text().strip()
    assert list(folder.wandb.glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"))
    assert "wandb is offline" in said()


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_a_missing_extra_is_named(folder, said, arithmetic, without, package):
    without("torch.utils.tensorboard" if package == "tensorboard" else package)
    config = LoggingConfig(tensorboard_dir="x") if package == "tensorboard" else LoggingConfig(wandb_project="x")
    with pytest.raises(ConfigError, match=rf"pip install 'megatron-yuan\[{package}\]'"):
        Telemetry(config, folder, arithmetic, total_steps=1)
    assert json.loads(folder.metrics.read_text() or "{}") == {}


def test_wandb_without_a_run_folder_is_refused(said, arithmetic):
    with pytest.raises(ConfigError, match=r"wandb-project is yuan, and there is no run folder .* --save"):
        Telemetry(LoggingConfig(wandb_project="yuan"), None, arithmetic, total_steps=1)

from __future__ import annotations

import json

import numpy as np
import pytest

from megatron_yuan.config.schema import LoggingConfig
from megatron_yuan.report import expert_report as module
from megatron_yuan.report.metrics import read_metrics
from megatron_yuan.report.run_folder import open_run_folder
from megatron_yuan.report.telemetry import Telemetry

PAIRS = [[[30, 10], [10, 10]], [[5, 5], [5, 5]]]


def train(folder, arithmetic, make_step, steps: int, total: int | None = None, **logging):
    config = LoggingConfig(**logging)
    with Telemetry(config, folder, arithmetic, total_steps=total or steps, last_step=steps) as telemetry:
        for step in range(1, steps + 1):
            telemetry.step(
                make_step(step, coactivation=PAIRS, top2_margin=[0.123456789, 0.5], balance_loss=[0.0, 1 / 3])
            )
    return read_metrics(folder.metrics).steps


def test_every_step_has_the_figures_of_every_layer(tmp_path, said, make_step, arithmetic):
    (record,) = train(open_run_folder(tmp_path, ""), arithmetic, make_step, 1)
    assert record["load_max_over_mean"] == [3.0, 1.0]
    assert record["load_entropy"] == [0.40564, 1.0]
    assert record["dead_experts"] == [0, 0]
    assert record["top2_margin"] == [0.12346, 0.5]
    assert record["balance_loss"] == [0.0, 0.33333]


def test_balance_losses_that_are_off_take_no_room(tmp_path, said, make_step, arithmetic):
    folder = open_run_folder(tmp_path, "")
    with Telemetry(LoggingConfig(), folder, arithmetic, total_steps=1) as telemetry:
        telemetry.step(make_step(1, balance_loss=[0.0, 0.0]))
    assert "balance_loss" not in read_metrics(folder.metrics).steps[0]


def test_coactivation_is_summed_over_steps_and_the_end_of_a_run_is_written(
    tmp_path, said, make_step, arithmetic, monkeypatch
):
    monkeypatch.setattr(module, "MOST_COACTIVATION_TABLES", 4)
    # Asked for 12 steps, stopped at 8: three to a table, and what is left.
    steps = train(open_run_folder(tmp_path, ""), arithmetic, make_step, 8, total=12)
    tables = {r["step"]: (r["coactivation"], r["coactivation_steps"]) for r in steps if "coactivation" in r}
    assert tables == {n: ((s * np.array(PAIRS)).tolist(), s) for n, s in ((3, 3), (6, 3), (8, 2))}


def test_a_long_run_of_a_large_model_stays_small(tmp_path, said, make_step, arithmetic, monkeypatch):
    large = {"expert_load": [[10**5] * 32] * 24, "coactivation": [[[10**4] * 32] * 32] * 24}
    folder = open_run_folder(tmp_path, "")
    with Telemetry(LoggingConfig(), folder, arithmetic, total_steps=100_000, last_step=2000) as telemetry:
        for step in range(999, 1000 + 22):
            telemetry.step(make_step(step, **large, top2_margin=[0.123456] * 24, balance_loss=[0.0123456] * 24))
    lines = folder.metrics.read_text().splitlines()
    tables = [line for line in lines if '"coactivation"' in line]
    assert len(tables) == 1
    assert len(tables[0]) < 300_000
    plain = [line for line in lines if '"expert_load"' not in line and '"step"' in line]
    assert max(map(len, plain)) < 2000
    assert len(json.loads(tables[0])["coactivation"]) == 24


def test_strips_come_at_the_interval_and_at_the_end_with_their_legend_once(tmp_path, said, make_step, arithmetic):
    folder = open_run_folder(tmp_path, "")
    train(folder, arithmetic, make_step, 5, log_experts_interval=2)
    heard = said().splitlines()
    heads = [line for line in heard if line.startswith("expert load, ")]
    assert heads == ["expert load, steps 1-2", "expert load, steps 3-4", "expert load, step 5"]
    assert sum(line.startswith("L0 ▇▄.. ") for line in heard) == 3
    assert sum(line.startswith("expert load: ▄ the mean") for line in heard) == 1
    logged = folder.log.read_text(encoding="utf-8").splitlines()
    strips = [line for line in logged if "expert load" in line or "entropy" in line]
    assert len(strips) == 2 + 3 + 3 * 2
    assert max(map(len, strips)) <= 100


def test_interval_0_says_no_strip(tmp_path, said, make_step, arithmetic):
    train(open_run_folder(tmp_path, ""), arithmetic, make_step, 5, log_experts_interval=0)
    assert "expert load" not in said()


def test_a_dead_expert_is_said_in_the_log_too(tmp_path, said, make_step, arithmetic):
    folder = open_run_folder(tmp_path, "")
    train(folder, arithmetic, make_step, 25)
    assert folder.log.read_text().count("layer 0 experts 2, 3 since step 1") == 1
    assert [sum(r["dead_experts"]) for r in read_metrics(folder.metrics).steps] == [0] * 19 + [2] * 6


def test_tensorboard_gets_figures_and_heatmaps(tmp_path, said, make_step, arithmetic):
    pytest.importorskip("tensorboard", reason="the extra 'tensorboard' is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logs = str(tmp_path / "tb")
    folder = open_run_folder(tmp_path / "run", "")
    train(folder, arithmetic, make_step, 5, tensorboard_dir=logs, log_experts_interval=2)
    events = EventAccumulator(logs)
    events.Reload()
    assert [event.step for event in events.Images("experts/load")] == [2, 4, 5]
    expected = {"entropy/layer_001": 1.0, "top2_margin/layer_001": 0.5, "dead_experts/layer_000": 0, "dead": 0}
    expected |= {"lowest_entropy": 0.40564, "balance_loss": 1 / 3}
    for name, value in expected.items():
        assert events.Scalars(f"experts/{name}")[0].value == pytest.approx(value, abs=1e-5)


@pytest.mark.slow
def test_wandb_takes_heatmaps(tmp_path, said, make_step, arithmetic, monkeypatch):
    pytest.importorskip("wandb", reason="the extra 'wandb' is not installed")
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = open_run_folder(tmp_path / "run", "")
    train(folder, arithmetic, make_step, 2, wandb_project="yuan", log_experts_interval=2)
    assert list(folder.wandb.glob("offline-run-*/files/media/images/experts/load_*.png"))

"""A run whose newest checkpoint proves damaged goes on from the one before it, to the same end."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_yuan.config.schema import Config
from tests.distributed.test_checkpoint_layouts import at, short_run
from tests.distributed.test_resume import digest
from tests.distributed.training import train
from tests.processes import free_port, run_processes

DAMAGED = Path("checkpoints") / "iter_0000002" / "optimizer" / "layers.0003.safetensors"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return short_run(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def twice(config: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list]:
    """A run folder with checkpoints of steps 1 and 2, the newer one damaged in the last stage's optimizer state; and
    what the last step was."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    (first,) = run_processes(once, 1, at(config, "1x1", save=str(folder)), [1, 2])
    content = bytearray((folder / DAMAGED).read_bytes())
    content[-1] ^= 1
    (folder / DAMAGED).write_bytes(content)
    return folder, first


def once(config: Config, stops: list[int]) -> list:
    """Sessions that stop at these steps, in one process; what the last one was."""
    for stop in stops:
        os.environ["MASTER_PORT"] = str(free_port())
        found = train(replace(config, training=replace(config.training, exit_interval=stop)), digest)
    return found


def test_the_damage_is_met_on_one_rank_and_all_go_back_to_the_same_losses(
    config: Config,
    twice: tuple[Path, list],
    tmp_path: Path,
) -> None:
    folder = shutil.copytree(twice[0], tmp_path / "run")
    first, second = run_processes(train, 2, at(config, "2x1", save=str(folder)))
    assert len(first) == len(second) == 2  # steps 2 and 3 of 3
    assert first[0]["loss"] == pytest.approx(twice[1][0]["loss"], rel=1e-6)
    names = sorted(path.name.partition("-")[0] for path in (folder / "checkpoints").iterdir())
    assert names == ["iter_0000001", "iter_0000002.damaged", "iter_0000003", "latest"]


def test_the_step_asked_for_by_number_is_an_error_and_stays_where_it_is(
    config: Config,
    twice: tuple[Path, list],
    tmp_path: Path,
) -> None:
    folder = shutil.copytree(twice[0], tmp_path / "run")
    with pytest.raises(AssertionError, match=r"layers\.0003\.safetensors is damaged.*--ckpt-step"):
        run_processes(train, 1, at(config, "1x1", save=str(folder), ckpt_step=2))
    assert (folder / DAMAGED).exists()


def test_another_runs_damaged_checkpoint_is_an_error_and_unverified_it_is_taken(
    config: Config,
    twice: tuple[Path, list],
    tmp_path: Path,
) -> None:
    new = at(config, "1x1", save=str(tmp_path / "new"), load=str(twice[0]))
    with pytest.raises(AssertionError, match=r"layers\.0003\.safetensors is damaged.*--ckpt-step"):
        run_processes(train, 1, new)
    (steps,) = run_processes(train, 1, at(new, "1x1", verify=False))
    assert len(steps) == 1
    assert (twice[0] / DAMAGED).exists()

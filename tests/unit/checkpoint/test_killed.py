"""SIGKILL at every point where a save changes the disk: what can be loaded afterwards is whole, and nothing is lost."""

from __future__ import annotations

import builtins
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_yuan.checkpoint import save
from megatron_yuan.checkpoint.agreement import ALONE
from megatron_yuan.checkpoint.commit import Retention
from megatron_yuan.checkpoint.load import open_checkpoint
from megatron_yuan.checkpoint.saver import CheckpointSaver
from megatron_yuan.checkpoint.state import RunState

from .conftest import make_tensors, save_from

POINTS = ("mkdir", "fsync", "rename", "replace", "unlink", "rmdir")
TENSORS = ("embedding.weight", "layers.1.moe.experts.down", "final_norm.weight")


@pytest.fixture
def in_memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: hundreds of fsyncs of a busy disk take their time, and show no more."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder:
        yield Path(folder)


def save_again(run_folder: Path, step: int, background: bool) -> None:
    held = make_tensors(seed=step + 1)
    for part in (held.weights, held.optimizer):  # a model of fewer files has the same points
        for name in [name for name in part if name not in TENSORS]:
            del part[name]
    with CheckpointSaver(run_folder, ALONE, "model: {}\n", retention=Retention(2), background=background) as saver:
        saver.save(RunState(step, step * 8), held.weights, held.optimizer)


def killed_at(point: int, action: Callable[[], None]) -> bool:
    """Run `action` in a fork that kills itself just before its `point`-th change of the disk; whether it did."""
    child = os.fork()
    if child == 0:
        passed, lock = [0], threading.Lock()

        def counted(genuine: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **options: Any) -> Any:
                with lock:
                    passed[0] += 1
                    if passed[0] == point:
                        os.kill(os.getpid(), signal.SIGKILL)
                return genuine(*args, **options)

            return call

        for name in POINTS:
            setattr(os, name, counted(getattr(os, name)))
        genuine_open = builtins.open

        def open_counted(path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            opening = counted(genuine_open) if "x" in mode or "w" in mode else genuine_open
            return opening(path, mode, *args, **options)

        builtins.open = open_counted
        try:
            action()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def weights_of(run_folder: Path) -> tuple[int, torch.Tensor]:
    opened = open_checkpoint(run_folder)
    opened.verify_files()
    return opened.run_state.step, opened.read_weights(["embedding.weight"])["embedding.weight"]


def seeded(seed: int) -> torch.Tensor:
    return make_tensors(seed=seed).weights["embedding.weight"]


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("again", [False, True], ids=["a new step", "the same step again"])
def test_killed_at_any_point_a_whole_checkpoint_loads_and_the_next_save_clears_up(
    in_memory: Path, monkeypatch: pytest.MonkeyPatch, background: bool, again: bool
) -> None:
    monkeypatch.setattr(save, "writing_threads", lambda: 1)  # points in one order
    for step in (100, 200):
        save_from(in_memory / "before", 1, 1, step=step, seed=step)
    step = 200 if again else 300
    point, reached = 0, set[int]()
    while True:
        point += 1
        run_folder = shutil.copytree(in_memory / "before", in_memory / f"run{point}", symlinks=True)
        if not killed_at(point, lambda folder=run_folder: save_again(folder, step, background)):
            break
        at, weights = weights_of(run_folder)
        seed = next(seed for seed in (200, step + 1) if torch.equal(weights, seeded(seed)))
        assert at == (200 if seed == 200 else step), f"at point {point}"
        reached.add(seed)
        save_again(run_folder, 400, background)
        assert weights_of(run_folder)[0] == 400
        left = sorted(path.name for path in (run_folder / "checkpoints").iterdir())
        assert len(left) == 3 and left[1:] == ["iter_0000400", "latest"], f"at point {point}: {left}"
        shutil.rmtree(run_folder)
    assert point > 20 and reached == {200, step + 1}

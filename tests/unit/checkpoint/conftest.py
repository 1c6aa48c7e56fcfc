"""A tiny model's tensors on any layout, and ranks that are threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_yuan.checkpoint.saver import save_checkpoint
from megatron_yuan.checkpoint.state import RunState

LAYERS = 4


@dataclass(frozen=True)
class Tensors:
    """Weights and optimizer state that one stage holds."""

    weights: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, dict[str, Tensor]] = field(default_factory=dict)


def make_tensors(stage: int = 0, stages: int = 1, *, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Tensors:
    """The part of a tied 4-layer model that `stage` of `stages` holds; the last stage has the embedding too."""
    names = ["embedding.weight"] if stage in (0, stages - 1) else []
    for layer in range(LAYERS * stage // stages, LAYERS * (stage + 1) // stages):
        names += [f"layers.{layer}.input_norm.weight", f"layers.{layer}.moe.experts.down"]
    names += ["final_norm.weight"] if stage == stages - 1 else []
    shapes = {"embedding.weight": (6, 3), "down": (2, 3, 5), "weight": (3,)}
    held = Tensors()
    for name in names:
        generator = torch.Generator().manual_seed(seed * 1000 + sum(name.encode()))
        shape = shapes.get(name) or shapes[name.rpartition(".")[2]]
        master, exp_avg, exp_avg_sq = (torch.randn(shape, generator=generator) for _ in range(3))
        held.weights[name] = master.to(dtype)
        slots = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
        held.optimizer[name] = slots if dtype == torch.float32 else {"master": master, **slots}
    return held


@dataclass(frozen=True)
class ThreadRanks:
    """One of `world_size` ranks; gather waits for all of them, as a collective does."""

    rank: int
    world_size: int
    pp_rank: int
    dp_rank: int
    meeting: threading.Barrier
    table: list[Any]

    def gather(self, value: Any, beats: bool = True) -> list[Any]:
        self.table[self.rank] = value
        self.meeting.wait()
        gathered = list(self.table)
        self.meeting.wait()
        return gathered


def run_ranks(stages: int, replicas: int, action: Callable[[ThreadRanks], Any]) -> list[Any]:
    """Run `action` on every rank of a layout at once; returns results, or exceptions, in order of ranks."""
    world = stages * replicas
    meeting, table, results = threading.Barrier(world, timeout=20), [None] * world, [None] * world

    def run(rank: int) -> None:
        try:
            results[rank] = action(ThreadRanks(rank, world, rank // replicas, rank % replicas, meeting, table))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def save_from(run_folder: Path, stages: int, replicas: int, step: int = 100, **options: Any) -> list[Any]:
    """Save the tiny model from a layout; `options` go to make_tensors or save_checkpoint."""
    made = {name: options.pop(name) for name in ("seed", "dtype") if name in options}

    def save(ranks: ThreadRanks) -> Path:
        held = make_tensors(ranks.pp_rank, stages, **made)
        state = RunState(step, step * 8, step, step * 64, extra={"note": "tiny"})
        return save_checkpoint(run_folder, ranks, state, held.weights, held.optimizer, "model: {}\n", **options)

    return run_ranks(stages, replicas, save)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A run folder with a checkpoint of step 100, written by one process."""
    assert not isinstance(save_from(tmp_path / "run", 1, 1)[0], Exception)
    return tmp_path / "run"

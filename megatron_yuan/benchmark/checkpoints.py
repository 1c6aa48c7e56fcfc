"""Saving and loading beside what bounds them, all in one process, in turn, on the same bytes and the same disk.

- `cp` of the files with an fsync of each, and sha256 alone on as many threads as a save uses: nobody who writes and
  hashes is faster than the slower of the two.
- torch.distributed.checkpoint of the same tensors, with one thread (its default) and with as many as ours.
- How long training stands still for a save written behind, beside a plain copy of the state into memory.

Files are read from the page cache where they fit. Every figure is the median of the rounds, and so is every ratio.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from megatron_yuan.checkpoint import store
from megatron_yuan.checkpoint.agreement import ALONE
from megatron_yuan.checkpoint.load import open_checkpoint
from megatron_yuan.checkpoint.saver import CheckpointSaver, save_checkpoint
from megatron_yuan.checkpoint.state import RunState
from megatron_yuan.checkpoint.work import writing_threads
from megatron_yuan.errors import ConfigError

LAYERS = 12
_WIDTH = 1024  # of every matrix
BYTES_PER_PARAMETER = 14  # bf16 weight; float32 master and two moments


@dataclass
class State:
    """Weights and optimizer state of a model, in as many files as a model of LAYERS layers has."""

    weights: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, parameters: int) -> State:
        """Of about so many parameters: a tenth of them the embedding, the rest in layers."""
        made, layer = cls(), parameters * 9 // 10 // LAYERS
        sizes = {"embedding.weight": parameters // 10}
        for each in range(LAYERS):
            sizes |= {
                f"layers.{each}.moe.experts.gate_up": layer * 2 // 3,
                f"layers.{each}.moe.experts.down": layer // 3,
            }
        for name, size in sizes.items():
            shape = (max(1, size // _WIDTH), _WIDTH)
            slots = {slot: torch.empty(shape).normal_() for slot in ("master", "exp_avg", "exp_avg_sq")}
            made.weights[name], made.optimizer[name] = slots["master"].bfloat16(), slots
        return made

    def tensors(self) -> dict[str, Tensor]:
        """All of them, flat."""
        flat = {f"{name}.{slot}": each for name, slots in self.optimizer.items() for slot, each in slots.items()}
        return {**self.weights, **flat}

    @property
    def nbytes(self) -> int:
        """Of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors().values())


def report(parameters: int, rounds: int, folder: str | None) -> dict[str, Any]:
    """Measure on the disk of `folder` (unset, the temporary one), print, and return for JSON."""
    if folder is not None and not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"save is {folder}, but the benchmark needs a folder there that it may write into.")
    with tempfile.TemporaryDirectory(dir=folder, prefix="checkpoint-benchmark-") as scratch:
        _check_room(parameters * BYTES_PER_PARAMETER, Path(scratch))
        state = State.of(parameters)
        measured = _measure(state, rounds, Path(scratch))
    gigabytes = state.nbytes / 1e9
    print(f"{gigabytes:.2f} GB in {2 * (LAYERS + 1)} files, {writing_threads()} threads, {rounds} rounds in turn")
    medians = {name: statistics.median(each) for name, each in measured.seconds.items()}
    for name, seconds in medians.items():
        spread = f"{min(measured.seconds[name]):.2f} to {max(measured.seconds[name]):.2f}"
        print(f"  {name:<44}{seconds:8.2f} s{gigabytes / seconds:8.2f} GB/s   ({spread} s)")
    ratios = {name: statistics.median(each) for name, each in _ratios(measured.seconds).items()}
    for name, ratio in ratios.items():
        print(f"  {name:<72}{ratio:8.2f}")
    print(
        f"  memory that a save behind holds on the host: {measured.held / 1e9:.2f} GB; peak of the process rose by "
        f"{measured.peak_rise / 1e9:.2f} GB; a poll meanwhile takes {1e6 * statistics.median(measured.polls):.0f} us"
    )
    return {
        "gigabytes": gigabytes,
        "threads": writing_threads(),
        "seconds": measured.seconds,
        "ratios": ratios,
        "held_bytes": measured.held,
        "peak_rise_bytes": measured.peak_rise,
    }


@dataclass
class _Measured:
    seconds: dict[str, list[float]] = field(default_factory=dict)
    polls: list[float] = field(default_factory=list)
    held: int = 0
    peak_rise: int = 0

    def time(self, name: str, action: Callable[[], object]) -> None:
        os.sync()  # what others have left to the disk is not ours to wait for
        began = time.perf_counter()
        action()
        self.seconds.setdefault(name, []).append(time.perf_counter() - began)


def _ratios(seconds: dict[str, list[float]]) -> dict[str, list[float]]:
    """Name -> in each round, how many times as fast (or, standing still, what share of the time)."""

    def over(theirs: str | list[float], ours: str) -> list[float]:
        other = seconds[theirs] if isinstance(theirs, str) else theirs
        return [a / b for a, b in zip(other, seconds[ours], strict=True)]

    slower = [max(pair) for pair in zip(seconds["cp + fsync"], seconds["sha256 alone"], strict=True)]
    peers_save = [min(pair) for pair in zip(seconds["DCP save, 1 thread"], seconds["DCP save, as many"], strict=True)]
    return {
        "save / the slower of cp + fsync and sha256 (>= 0.80)": over(slower, "save"),
        "save / torch.distributed.checkpoint's faster (>= 1)": over(peers_save, "save"),
        "load / the slower of cp + fsync and sha256 (>= 0.80)": over(slower, "load"),
        "load / cp": over("cp", "load"),
        "load / sha256": over("sha256 alone", "load"),
        "load --no-verify / cp (>= 0.80)": over("cp", "load --no-verify"),
        "load / torch.distributed.checkpoint (>= 1)": over("DCP load", "load"),
        "standstill of --async-save, share of the save (<= 0.10)": over("standstill, later saves", "save"),
        "standstill / memcpy (<= 1.2, where that is more)": [
            1 / each for each in over("memcpy", "standstill, later saves")
        ],
    }


def _measure(state: State, rounds: int, scratch: Path) -> _Measured:
    measured = _Measured()
    run, copy, peer = scratch / "run", scratch / "copy", scratch / "peer"
    into = State(
        {n: torch.zeros_like(t) for n, t in state.weights.items()},
        {n: {s: torch.zeros_like(t) for s, t in slots.items()} for n, slots in state.optimizer.items()},
    )
    _measure_behind(measured, state, into, rounds, run)
    for _ in range(rounds):
        shutil.rmtree(run, ignore_errors=True)
        measured.time("save", lambda: save_checkpoint(run, ALONE, RunState(1, 0), state.weights, state.optimizer, ""))
        measured.time("sha256 alone", lambda: _hash(state))
        measured.time("cp + fsync", lambda: _copy(run, copy, sync=True))
        shutil.rmtree(copy)
        measured.time("load", lambda: _load(run, into, verify=True))
        measured.time("load --no-verify", lambda: _load(run, into, verify=False))
        measured.time("cp", lambda: _copy(run, copy, sync=False))
        shutil.rmtree(copy)
        for name, threads in (("1 thread", 1), ("as many", writing_threads())):
            shutil.rmtree(peer, ignore_errors=True)
            measured.time(f"DCP save, {name}", lambda threads=threads: _dcp_save(state, peer, threads))
        measured.time("DCP load", lambda: _dcp_load(into, peer))
        shutil.rmtree(peer)
    return measured


def _measure_behind(measured: _Measured, state: State, into: State, rounds: int, run: Path) -> None:
    """Standing still: the time until `save` returns, the first time with fresh memory and then with the same again."""
    pairs = [(into.tensors()[name], tensor) for name, tensor in state.tensors().items()]

    def copy() -> None:
        for target, tensor in pairs:
            target.copy_(tensor)

    before = _peak()
    with CheckpointSaver(run, ALONE, "", background=True) as saver:
        for turn in range(rounds + 1):
            name = "standstill, later saves" if turn else "standstill, first save"
            measured.time(name, lambda turn=turn: saver.save(RunState(turn + 1, 0), state.weights, state.optimizer))
            began = time.perf_counter()
            saver.poll()
            measured.polls.append(time.perf_counter() - began)
            saver.close()
            shutil.rmtree(run)
            if turn:
                measured.time("memcpy", copy)
        measured.held, measured.peak_rise = saver.staged_bytes, _peak() - before


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _hash(state: State) -> None:
    def one(tensor: Tensor) -> None:
        digest = sha256()
        for chunk in store.chunks(tensor):
            digest.update(chunk)

    with ThreadPoolExecutor(writing_threads()) as pool:
        list(pool.map(one, state.tensors().values()))


def _copy(source: Path, target: Path, *, sync: bool) -> None:
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    for path in target.rglob("*") if sync else ():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _load(run: Path, into: State, *, verify: bool) -> None:
    checkpoint = open_checkpoint(run, verify=verify)
    checkpoint.read(checkpoint.places_of_weights(into.weights), checkpoint.places_of_optimizer(into.optimizer))


def _dcp_save(state: State, folder: Path, threads: int) -> None:
    writer = FileSystemWriter(folder, single_file_per_rank=threads == 1, thread_count=threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process
        dcp_save(state.tensors(), storage_writer=writer, no_dist=True)


def _dcp_load(into: State, folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp_load(into.tensors(), storage_reader=FileSystemReader(folder), no_dist=True)


def _check_room(nbytes: int, scratch: Path) -> None:
    free = shutil.disk_usage(scratch).free
    if free < 2.5 * nbytes:
        raise ConfigError(
            f"parameters: two checkpoints of {nbytes / 1e9:.1f} GB do not fit on the disk of {scratch.parent}, where "
            f"{free / 1e9:.1f} GB are free; give fewer --parameters, or --save FOLDER on another disk."
        )
    with suppress(ValueError, OSError):  # not every system tells
        memory = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if memory < 3 * nbytes:
            print(f"little free memory ({memory / 1e9:.1f} GB): files may have to come from the disk")

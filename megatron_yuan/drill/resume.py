"""Is a run that stops and resumes the run that never stopped? Two real runs of any settings, held against each other.

Every step from the stop on is saved by both, so that a difference is told by the first step and, in the order of the
model, the first tensor where it shows. On the same layout all must be equal to the bit. On another one sums are taken
in another order: there the samples must be the same, and the loss right after the resume, before any weight differs.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_yuan.checkpoint import store
from megatron_yuan.checkpoint.load import open_checkpoint
from megatron_yuan.drill.evidence import History, checkpoint_steps
from megatron_yuan.errors import YuanError

NEXT_LOSS = 1e-6
"""Relative, of the first loss after a resume on another layout: the same weights and samples, other orders of sums."""
_EXACT = ("loss", "losses", "grad_norm", "lr", "tokens", "samples", "expert_load", "skipped")
_DATA = ("lr", "tokens", "samples")
_TAIL = 15


@dataclass(frozen=True)
class Session:
    """One start of the training program."""

    name: str
    flags: tuple[str, ...]
    processes: int

    def run(self, entry: Path, log: Path) -> None:
        """Train to its end, its words going to `log`. Raises YuanError with the last of them where it fails."""
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(self.processes)]
        command = [sys.executable, *(launcher if self.processes > 1 else []), str(entry), *self.flags]
        with log.open("ab") as output:
            ended = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ}, check=False)
        if ended.returncode:
            tail = "\n".join(log.read_text(errors="replace").strip().splitlines()[-_TAIL:])
            raise YuanError(f"the {self.name} run ended with exit code {ended.returncode}; its last words:\n{tail}")


@dataclass(frozen=True)
class Verdict:
    """What the two runs show."""

    steps: int
    """Steps after the resume that were compared."""
    same_layout: bool
    difference: str | None
    """The first, in words; None where there is none."""
    next_loss: float
    """Relative difference of the first loss after the resume."""
    worst_loss: float
    """The largest of all of them."""

    @property
    def text(self) -> str:
        """In words."""
        if self.difference is not None:
            return f"DIFFERENT: {self.difference}"
        if self.same_layout:
            return f"IDENTICAL: {self.steps} steps after the resume, every figure, weight and moment equal to the bit"
        return (
            f"SAME RUN on another layout: the same samples in {self.steps} steps; the next loss is "
            f"{self.next_loss:.1e} apart (at most {NEXT_LOSS:.0e}), the worst later one {self.worst_loss:.1e}"
        )


def compare(straight: Path, resumed: Path, stop: int, same_layout: bool) -> Verdict:
    """Hold the runs in two folders against each other, from the step after `stop` on."""
    if stop not in _starts(resumed):
        raise YuanError(f"no session of the resumed run went on from step {stop}; it began at {_starts(resumed)}")
    ours, theirs = (_steps(each, stop) for each in (resumed, straight))
    if not ours or ours.keys() != theirs.keys():
        raise YuanError(f"steps {sorted(theirs)} were to be compared, but the resumed run has {sorted(ours)}")
    losses = [_apart(ours[step]["loss"], theirs[step]["loss"]) for step in sorted(ours)]
    found = _first(straight, resumed, ours, theirs, stop, _EXACT if same_layout else _DATA, tensors=same_layout)
    if found is None and not same_layout and not losses[0] <= NEXT_LOSS:
        found = f"step {stop + 1}: loss {ours[stop + 1]['loss']} instead of {theirs[stop + 1]['loss']}"
    return Verdict(len(ours), same_layout, found, losses[0], max(losses))


def _first(
    straight: Path,
    resumed: Path,
    ours: dict[int, dict[str, Any]],
    theirs: dict[int, dict[str, Any]],
    stop: int,
    figures: Sequence[str],
    tensors: bool,
) -> str | None:
    saved = [checkpoint_steps(each) for each in (straight, resumed)]
    for step in [stop, *sorted(ours)]:
        for name in figures if step in ours else ():
            if ours[step].get(name) != theirs[step].get(name):
                return f"step {step}: {name} is {ours[step].get(name)} instead of {theirs[step].get(name)}" + (
                    _named(_tensors(*(each[step] for each in saved)), step) if _both(saved, step) else ""
                )
        if tensors and _both(saved, step):
            told = _named(_tensors(*(each[step] for each in saved)), step)
            if told:
                return told.removeprefix("; ")
    return None


def _both(saved: Sequence[dict[int, Path]], step: int) -> bool:
    return all(step in each for each in saved)


def _named(different: Iterator[tuple[str, str]], step: int) -> str:
    first = next(different, None)
    return "" if first is None else f"; after step {step} the first tensor that differs is {first[0]}, {first[1]}"


def _tensors(straight: Path, resumed: Path) -> Iterator[tuple[str, str]]:
    """Names of tensors that are not equal to the bit, in the order of the model, each with how they differ."""
    manifests = [open_checkpoint(each).manifest for each in (straight, resumed)]
    for kind in ("model", "optimizer"):
        theirs, ours = (each.tensors(kind) for each in manifests)
        for name in sorted(theirs.keys() | ours.keys(), key=_place):
            if name not in ours or name not in theirs:
                yield name, f"in the {'straight' if name in theirs else 'resumed'} run alone"
                continue
            pair = []
            for folder, (file, spec) in ((straight, theirs[name]), (resumed, ours[name])):
                tensor = torch.empty(spec.shape, dtype=spec.dtype)
                store.read_tensors(folder / file, {name: tensor})
                pair.append(tensor)
            if not torch.equal(*(each.view(-1).view(torch.uint8) for each in pair)):
                yield name, f"by {(pair[0].double() - pair[1].double()).abs().max():.2e} at most"


def _place(name: str) -> tuple[int, int, str]:
    first, _, rest = name.partition(".")
    number = rest.partition(".")[0]
    return (0 if first == "embedding" else 1 if first == "layers" else 2), int(number) if number.isdigit() else 0, name


def _steps(run: Path, stop: int) -> dict[int, dict[str, Any]]:
    return {each["step"]: each for each in History.of(run).steps() if each["step"] > stop}


def _starts(run: Path) -> list[int]:
    return [each["step"] for each in History.of(run).records if each["kind"] == "start"]


def _apart(a: float, b: float) -> float:
    """Relative difference; infinite where one is no number."""
    if not all(isinstance(each, float) and math.isfinite(each) for each in (a, b)):
        return 0.0 if a == b else math.inf
    return abs(a - b) / abs(b)

"""Disks: one that is full, and checkpoints that are not what was written."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_yuan.drill import evidence
from megatron_yuan.drill.kills import Stage, die_with_launcher, random_delay
from megatron_yuan.drill.trial import END_SECONDS, Trial

_DISK_BYTES = 64 << 20


class Unsupported(Exception):
    """This machine cannot play that fault."""


def fill_disk(trial: Trial, stage: Stage) -> None:
    """Nothing but a part of a save fits on the disk any more: the run ends, and goes on when there is space again."""
    # What the system says of free space may be wrong a moment later, or on a shared disk at once.
    roomy = [trial.draw.random() < 0.5 for _ in range(stage.tries)] + [False]
    with _small_disk(trial.run):
        since, ballast = 0.0, trial.run / "ballast"
        for blind, next_blind in itertools.pairwise(roomy):
            if not trial.sessions:
                trial.start([{"do": "roomy"}] if blind else [])
            session = trial.session
            trial.await_training(since=since)
            trial.pause(random_delay(trial, stage) / 2)
            one = max(_bytes_below(each) for each in evidence.checkpoint_steps(trial.run).values())
            left = trial.draw.randrange(one)
            detail = f"disk full but for {left:,} of {one:,} bytes" + (", the system denying it" if blind else "")
            before = trial.strike(detail, lambda: _fill(ballast, left))  # noqa: B023  # called at once
            since = before.time
            outcome = trial.await_end(before, END_SECONDS)
            trial.await_launcher(before)
            if "no disk space" not in session.output:
                outcome.problems.append("the output does not say 'no disk space'")
            ballast.unlink()
            trial.start([{"do": "roomy"}] if next_blind else [])
            trial.await_resumption(before)
        trial.finish(stage.reference)


@contextmanager
def _small_disk(folder: Path) -> Iterator[None]:
    """A file system of its own at `folder`; what is on it is kept when it goes."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "fault-drill", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True) if shutil.which("mount") else None
    if done is None or done.returncode:
        raise Unsupported(f"a small disk needs the right to mount one ({'' if done is None else done.stderr.strip()})")
    try:
        yield
    finally:
        kept = folder.with_name(f"{folder.name}.kept")
        shutil.copytree(folder, kept)
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        shutil.copytree(kept, folder, dirs_exist_ok=True)
        shutil.rmtree(kept)


def _fill(ballast: Path, left: int) -> None:
    with open(ballast, "wb") as file:
        free = shutil.disk_usage(ballast.parent).free
        os.posix_fallocate(file.fileno(), 0, max(1, free - left))


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def flip_byte(trial: Trial, stage: Stage) -> None:
    """One bit of one file of the newest checkpoint is turned."""

    def flip(path: Path) -> str:
        content = bytearray(path.read_bytes())
        at = trial.draw.randrange(len(content))
        content[at] ^= 1 << trial.draw.randrange(8)
        path.write_bytes(content)
        return f"a bit of byte {at} turned"

    _damage(trial, stage, flip)


def truncate_file(trial: Trial, stage: Stage) -> None:
    """One file of the newest checkpoint ends early."""

    def cut(path: Path) -> str:
        size = trial.draw.randrange(path.stat().st_size)
        os.truncate(path, size)
        return f"cut to {size} bytes"

    _damage(trial, stage, cut)


def remove_file(trial: Trial, stage: Stage) -> None:
    """One file of the newest checkpoint is gone."""

    def remove(path: Path) -> str:
        path.unlink()
        return "deleted"

    _damage(trial, stage, remove)


def _damage(trial: Trial, stage: Stage, act: Callable[[Path], str]) -> None:
    """Kill the run, damage a file, start again: it must be named and set aside, the checkpoint before it be taken."""
    trial.start()
    since = 0.0
    for _ in range(stage.tries):
        trial.await_training(since=since)
        trial.session.wait(lambda: len(evidence.checkpoint_steps(trial.run)) > 1, END_SECONDS)
        before = die_with_launcher(trial, stage)
        since = before.time
        outcome = trial.tries[-1]
        steps = evidence.checkpoint_steps(trial.run)
        newest = evidence.durable_step(trial.run)
        earlier = [step for step in steps if step < newest and not evidence.faults_of(steps[step])]
        path = trial.draw.choice(sorted(each for each in steps[newest].rglob("*") if each.is_file()))
        name = path.relative_to(steps[newest])
        outcome.detail = f"{name} of step {newest}: {act(path)}"
        session = trial.start()
        trial.await_resumption(before, expected=max(earlier))
        if name.name not in session.output:
            outcome.problems.append(f"{name} was not named")
        if not list((trial.run / "checkpoints").glob(f"{steps[newest].name}.*")):
            outcome.problems.append("the damaged checkpoint was not set aside")
    trial.finish(stage.reference)

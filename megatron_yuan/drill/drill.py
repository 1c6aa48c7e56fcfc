"""Plays scenes one after another, or several at a time, and keeps what they need in common."""

from __future__ import annotations

import itertools
import random
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from megatron_yuan.drill.disks import Unsupported
from megatron_yuan.drill.events import told
from megatron_yuan.drill.evidence import History
from megatron_yuan.drill.kills import Point, Stage
from megatron_yuan.drill.plan import Scene
from megatron_yuan.drill.rig import Layout, Rig
from megatron_yuan.drill.trial import START_SECONDS, Trial, Try


@dataclass(frozen=True)
class Unbroken:
    """A run that nothing befell."""

    run: Path
    step_seconds: float
    points: list[Point]


@dataclass
class Played:
    """A scene, and what came of it."""

    scene: Scene
    tries: list[Try] = field(default_factory=list)
    skipped: str | None = None
    """Why it could not be played here."""
    seconds: float = 0.0
    folder: Path | None = None
    """Where its traces were kept."""

    @property
    def passed(self) -> bool:
        """Nothing went wrong."""
        return self.skipped is not None or all(each.passed for each in self.tries)


class Drill:
    """A folder with the data, the unbroken runs of each layout, and the broken ones."""

    def __init__(self, folder: Path, rig: Rig, keep: bool = False, slow_save_seconds: float = 60.0) -> None:
        """`keep`: also the traces of scenes that passed."""
        self.folder, self.rig, self.keep, self.slow_save_seconds = folder, rig, keep, slow_save_seconds
        self._unbroken: dict[tuple[Layout, bool], Unbroken] = {}
        self._lock = threading.Lock()

    def unbroken(self, layout: Layout, asynchronous: bool = False) -> Unbroken:
        """The run to compare with, made when it is first needed."""
        with self._lock:
            if (layout, asynchronous) not in self._unbroken:
                self._unbroken[layout, asynchronous] = self._make_unbroken(layout, asynchronous)
            return self._unbroken[layout, asynchronous]

    def _make_unbroken(self, layout: Layout, asynchronous: bool) -> Unbroken:
        folder = self.folder / f"unbroken.{layout}{'.async' if asynchronous else ''}"
        shutil.rmtree(folder, ignore_errors=True)
        flags = ["--async-save"] if asynchronous else []
        trial = Trial(folder, self.rig, layout, random.Random(0), flags)
        try:
            session = trial.start([{"do": "list"}])
            session.wait(lambda: session.ended, START_SECONDS + self.rig.steps)
            if session.launcher.poll() != 0:
                raise RuntimeError(f"the run that is to be compared with failed:\n{session.output[-3000:]}")
        finally:
            trial.close()
        times = [each["time"] for each in History.of(trial.run).steps()]
        found = told(folder / "events.jsonl", "point")
        points = sorted({Point(each["rank"], each["when"], each["point"]) for each in found}, key=repr)
        return Unbroken(trial.run, (times[-1] - times[0]) / len(times), points)

    def play(self, scene: Scene, tries: int | None = None, points: Sequence[Point] = ()) -> Played:
        """Play one scene, with as many faults as its kind has or `tries`; whatever goes wrong is in the result.

        `points`: where to die, instead of drawn ones.
        """
        played, started = Played(scene, skipped=scene.kind.unsupported), time.monotonic()
        if played.skipped:
            return played
        folder = self.folder / f"scene.{scene.index:04d}"
        shutil.rmtree(folder, ignore_errors=True)
        trial = Trial(folder, self.rig, scene.layout, scene.random(), scene.kind.flags)
        try:
            scene.kind.play(trial, self._stage(scene, tries or scene.kind.tries, points))
        except Unsupported as reason:
            played.skipped = str(reason)
        except Exception as error:
            if not trial.tries:
                trial.tries.append(Try("(before the first fault)"))
            trial.tries[-1].problems.append(f"{type(error).__name__}: {error}")
            if not isinstance(error, RuntimeError):
                trial.tries[-1].problems.append(traceback.format_exc())
        finally:
            trial.close()
        played.tries, played.seconds = trial.tries, time.monotonic() - started
        if self.keep or not played.passed:
            played.folder = folder
        else:
            shutil.rmtree(folder, ignore_errors=True)
        return played

    def _stage(self, scene: Scene, tries: int, points: Sequence[Point]) -> Stage:
        unbroken = self.unbroken(scene.layout, scene.kind.asynchronous)
        every = _in_turn(unbroken.points, random.Random(f"points/{scene.seed}/{scene.layout}"))
        # Each trial takes its part of the list, so that in time every point has its turn.
        chosen = points or [every[(scene.number * tries + turn) % len(every)] for turn in range(tries)]
        return Stage(unbroken.run, unbroken.step_seconds, tries, self.slow_save_seconds, chosen)

    def play_all(
        self, chosen: list[Scene], jobs: int, deadline: float, report: Callable[[Played, int], None]
    ) -> list[Played]:
        """Play scenes, `jobs` at a time, and begin none after `deadline` (of time.monotonic); calls
        `report(played, number of those played)` after each."""
        done: list[Played] = []

        def one(scene: Scene) -> None:
            if time.monotonic() < deadline:
                played = self.play(scene)
                with self._lock:
                    done.append(played)
                    report(played, len(done))

        with ThreadPoolExecutor(jobs) as pool:
            for each in [pool.submit(one, scene) for scene in chosen]:
                each.result()
        return sorted(done, key=lambda played: played.scene.index)


def _in_turn(points: Sequence[Point], draw: random.Random) -> list[Point]:
    """All points in a random order, in which sorts of points take turns: few of them are renames, many writes."""
    sorts: dict[tuple[str, ...], list[Point]] = {}
    for point in draw.sample(points, len(points)):
        call, _, what = point.name.partition(" ")
        place = "latest" if "latest" in what else "folder" if what.startswith(".") else ""
        sorts.setdefault((call, point.when, place), []).append(point)
    turns = itertools.zip_longest(*draw.sample(list(sorts.values()), len(sorts)))
    return [point for turn in turns for point in turn if point is not None]

"""Break real training runs in every way we know, and see that none loses a checkpoint and all come to the same end.

    python tools/fault_drill.py --minutes 60 --seed 1                     as many faults as an hour has room for
    python tools/fault_drill.py --minutes 600 --seed 1 --faults 60        60, of each kind at least 3
    python tools/fault_drill.py --minutes 10 --seed 1 --kinds SIGTERM     some kinds alone (part of a name will do)
    python tools/fault_drill.py --minutes 10 --seed 1 --only 17           one scene again

A scene is one run under torchrun that is broken some times in one way; its losses, final weights and moments are held,
to the bit, against a run of the same layout that nothing befell. Exit code 0: all survived; 1: something did not; 2: a
mistake in what was asked.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from megatron_yuan.drill.drill import Drill, Played
from megatron_yuan.drill.plan import KINDS, Scene, scenes
from megatron_yuan.drill.rig import make_rig
from megatron_yuan.drill.table import as_json, failures, table
from megatron_yuan.errors import ConfigError, run_command_line


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, required=True, help="no scene begins after this long")
    parser.add_argument("--seed", type=int, required=True, help="what all moments and choices are drawn from")
    parser.add_argument("--faults", type=int, help="end after so many, each kind having had its turn")
    parser.add_argument("--kinds", nargs="+", help="parts of names of kinds: " + "; ".join(each.name for each in KINDS))
    parser.add_argument("--only", type=int, nargs="+", help="scenes of this seed to play, by their numbers")
    parser.add_argument("--jobs", type=int, default=1, help="scenes at a time; each has two processes")
    parser.add_argument("--slow-save-seconds", type=float, default=60.0, help="how long a slow save takes")
    parser.add_argument("--output", type=Path, help="folder for results and traces; unset, a temporary one")
    parser.add_argument("--keep", action="store_true", help="keep the traces of scenes that passed, too")
    return parser.parse_args()


def choose(arguments: argparse.Namespace) -> list[Scene]:
    """The scenes that were asked for, in their order."""
    if arguments.only:
        return [next(itertools.islice(scenes(arguments.seed), number, None)) for number in arguments.only]
    wanted = arguments.kinds or [""]
    named = {each.name for each in KINDS if any(part.lower() in each.name.lower() for part in wanted)}
    if not named:
        known = "; ".join(each.name for each in KINDS)
        raise ConfigError(f"kinds is {' '.join(wanted)}, which names none of: {known}.")
    endless = (each for each in scenes(arguments.seed) if each.kind.name in named and not each.kind.unsupported)
    unsupported = [each for each in itertools.islice(scenes(arguments.seed), 100) if each.kind.unsupported]
    first_of_each = {each.kind.name: each for each in reversed(unsupported) if each.kind.name in named}
    return [*first_of_each.values(), *_until(endless, arguments.faults or 10_000, named - first_of_each.keys())]


def _until(endless: Iterable[Scene], faults: int, kinds: set[str]) -> list[Scene]:
    chosen: list[Scene] = []
    for scene in endless if kinds else []:
        chosen.append(scene)
        if sum(each.kind.tries for each in chosen) >= faults and {each.kind.name for each in chosen} >= kinds:
            break
    return chosen


def main() -> int:
    """Play, print, write."""
    arguments = parse()
    chosen = choose(arguments)
    folder = arguments.output or Path(tempfile.mkdtemp(prefix="fault-drill-"))
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    deadline = started + 60 * arguments.minutes
    drill = Drill(folder, make_rig(folder / "rig"), arguments.keep, arguments.slow_save_seconds)
    faults = sum(each.kind.tries for each in chosen)
    so_far: list[Played] = []

    def report(played: Played, count: int) -> None:
        so_far.append(played)
        done = sum(len(each.tries) for each in so_far)
        spent = time.monotonic() - started
        left = min(deadline - time.monotonic(), spent / max(1, count) * (len(chosen) - count))
        verdict = f"not tried: {played.skipped}" if played.skipped else "ok" if played.passed else "FAILED"
        print(
            f"{done}/{faults} faults, scene {played.scene.index}, {played.scene.kind.name} on {played.scene.layout}, "
            f"{len(played.tries)} faults in {played.seconds:.0f} s: {verdict}; {max(0, left) / 60:.0f} min left",
            flush=True,
        )
        for line in failures([played]):
            print(f"  {line}", file=sys.stderr, flush=True)
        (folder / "results.json").write_text(as_json(so_far))

    results = drill.play_all(chosen, arguments.jobs, deadline, report)
    print(f"\n{table(results)}\n")
    (folder / "table.md").write_text(table(results) + "\n")
    passed = all(each.passed for each in results)
    if passed and arguments.output is None and not arguments.keep:
        shutil.rmtree(folder)
    else:
        print(f"{folder}/table.md, results.json")
    return 0 if passed else 1


if __name__ == "__main__":
    run_command_line(main)

"""What a run has left on the disk, read without the program that wrote it."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_WHOLE = re.compile(r"iter_(\d+)")


def durable_step(run: Path) -> int:
    """The step of the checkpoint that `latest` names, or of the newest where that one was set aside; 0 before any."""
    try:
        named = int((run / "checkpoints" / "latest").read_text().strip().removeprefix("iter_"))
    except FileNotFoundError:
        return 0
    found = checkpoint_steps(run)
    return named if named in found else max(found, default=0)


def checkpoint_steps(run: Path) -> dict[int, Path]:
    """Finished checkpoints by their names."""
    found = {}
    for path in (run / "checkpoints").glob("iter_*"):
        match = _WHOLE.fullmatch(path.name)
        if match:
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def faults_of(checkpoint: Path) -> list[str]:
    """What is wrong with a checkpoint by its own manifest: files missing, of another size or another hash."""
    try:
        files = json.loads((checkpoint / "manifest.json").read_text())["content"]["files"]
    except (OSError, ValueError, KeyError) as error:
        return [f"{checkpoint.name}/manifest.json: {error!r}"]
    wrong = []
    for name, record in files.items():
        path = checkpoint / name
        if not path.is_file():
            wrong.append(f"{checkpoint.name}/{name} is missing")
        elif path.stat().st_size != record["size"] or _sha256(path) != record["sha256"]:
            wrong.append(f"{checkpoint.name}/{name} is not what was written")
    return wrong


@dataclass(frozen=True)
class History:
    """metrics.jsonl, line by line as it was written, steps that were trained twice included."""

    records: list[dict[str, Any]]

    @classmethod
    def of(cls, run: Path) -> History:
        """Whole lines alone."""
        path = run / "metrics.jsonl"
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        return cls([json.loads(line) for line in lines if line.endswith(b"}\n") and line.startswith(b"{")])

    @property
    def position(self) -> int:
        """The last step done, or where the newest session began."""
        steps = [each["step"] for each in self.records if each["kind"] in ("start", "step")]
        return steps[-1] if steps else 0

    def starts_since(self, moment: float) -> list[dict[str, Any]]:
        """Sessions that began after a time in seconds since 1970."""
        return [each for each in self.records if each["kind"] == "start" and each["time"] >= moment]

    def steps(self) -> list[dict[str, Any]]:
        """Every step ever trained, in the order in which it was."""
        return [each for each in self.records if each["kind"] == "step"]

    def lasting_steps(self) -> list[dict[str, Any]]:
        """Those that the end is built on: a session that began after step n left what was trained beyond it behind."""
        found: dict[int, dict[str, Any]] = {}
        for each in self.records:
            if each["kind"] == "start":
                found = {step: record for step, record in found.items() if step <= each["step"]}
            elif each["kind"] == "step":
                found[each["step"]] = each
        return list(found.values())


_COMPARED = ("loss", "losses", "grad_norm", "lr", "tokens", "samples", "skipped")


def differences(run: Path, reference: Path, poisoned: bool = False) -> list[str]:
    """Where a run is not, to the bit, the reference: steps by their figures, the last checkpoint by its tensors.

    `poisoned`: steps that were left behind count for nothing, as they were trained on weights known to be wrong.
    """
    expected = {each["step"]: _figures(each) for each in History.of(reference).steps()}
    steps = History.of(run).lasting_steps() if poisoned else History.of(run).steps()
    found = [
        f"step {each['step']}: {_figures(each)} instead of {expected.get(each['step'])}"
        for each in steps
        if _figures(each) != expected.get(each["step"])
    ]
    missing = sorted(expected.keys() - {each["step"] for each in steps})
    if missing:
        found.append(f"steps without a line in metrics.jsonl: {missing}")
    last = max(expected)
    ours, theirs = (checkpoint_steps(each).get(last) for each in (run, reference))
    if ours is None or theirs is None:
        return [*found, f"there is no checkpoint of step {last}"]
    names = {str(each.relative_to(folder)) for folder in (ours, theirs) for each in folder.rglob("*.safetensors")}
    for name in sorted([*names, "run_state.json"]):
        pair = [folder / name for folder in (ours, theirs)]
        if not all(each.is_file() for each in pair) or _sha256(pair[0]) != _sha256(pair[1]):
            found.append(f"{name} differs at step {last}")
    return found


def _figures(record: dict[str, Any]) -> dict[str, Any]:
    return {name: record.get(name) for name in _COMPARED}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

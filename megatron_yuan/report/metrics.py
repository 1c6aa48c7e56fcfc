"""metrics.jsonl: one strict JSON object a line, only ever appended to, readable while the run goes on.

Kinds of line: `start` (a session begins after `step` steps), `step`, `evaluation`, `test`, `tasks`. A run
that resumes at step n appends a `start` with step n, and the reader leaves out what came before it about steps beyond
n: nothing is doubled, and nothing is lost from the file.
JSON knows no NaN: a number that is not finite is written as the string "NaN", "Infinity" or "-Infinity".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_yuan.errors import DataError
from megatron_yuan.log import logger

NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
NOT_FINITE_TEXT = tuple(f'"{name}"'.encode() for name in NOT_FINITE)


class MetricsWriter:
    """Appends records to a file, each in one write, so that a reader never waits for a buffer."""

    def __init__(self, path: Path, start: Mapping[str, Any]) -> None:
        """Open `path` for a session that begins with the record `start`; `start["step"]`: steps done before it."""
        self._path = path
        # A crash may have left half a line: what follows must not join it.
        self._torn = path.exists() and not _ends_with_newline(path)
        self._failing = False
        self._file = path.open("ab", buffering=0)
        self.write("start", start)

    def write(self, kind: str, record: Mapping[str, Any]) -> None:
        """Append one line. A full disk is warned of once and costs the lines, not the run."""
        text = json.dumps(_strict({"kind": kind, **record}), allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        line = (("\n" if self._torn else "") + text + "\n").encode()
        try:
            written = self._file.write(line) or 0
            if written < len(line):
                raise OSError(f"only {written} of {len(line)} bytes fitted")
        except OSError as error:
            self._torn = True
            if not self._failing:
                logger.warning("%s cannot be written (%s): its lines are lost until it can.", self._path, error)
            self._failing = True
            return
        self._torn = self._failing = False

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@dataclass(frozen=True)
class Metrics:
    """The records of a run in the order of their steps, superseded ones left out."""

    starts: list[dict[str, Any]] = field(default_factory=list)
    """One for each session of the run that is still part of its history."""
    steps: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    tests: list[dict[str, Any]] = field(default_factory=list)
    tasks: list[dict[str, Any]] = field(default_factory=list)
    skipped: int = 0
    """Lines that were not whole records: a half-written last line, or damage."""


def read_metrics(path: Path) -> Metrics:
    """Read `path`. Raises DataError where there is no such file; broken lines are skipped and counted, and said."""
    if not path.is_file():
        raise DataError(f"{path} does not exist: name a run folder (what --save named) in which training has begun.")
    kinds = {"start": "starts", "step": "steps", "evaluation": "evaluations", "test": "tests", "tasks": "tasks"}
    lists: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    skipped = 0
    with path.open("rb") as lines:
        for line in lines:
            if not line.strip():
                continue
            record = _parse(line)
            if record is None or record["kind"] not in lists:
                skipped += 1
                continue
            if record["kind"] == "start":
                for kept in lists.values():
                    while kept and kept[-1]["step"] > record["step"]:
                        kept.pop()
            lists[record["kind"]].append(record)
    if skipped:
        logger.warning("%s: %d line(s) skipped that are not whole records (a crash can leave one).", path, skipped)
    return Metrics(**{name: lists[kind] for kind, name in kinds.items()}, skipped=skipped)


def _parse(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None  # still being written, or cut off: a prefix of a record may look like one
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int or not isinstance(record.get("kind"), str):
        return None
    # Few lines hold a number that is not finite; to look through all values of a long run takes longer than to read it.
    if not any(name in line for name in NOT_FINITE_TEXT):
        return record
    return {key: _number(value) for key, value in record.items()}


def _number(value: Any) -> Any:
    """Undo `_strict` for numbers, and numbers in lists and mappings."""
    if isinstance(value, str):
        return NOT_FINITE.get(value, value)
    if isinstance(value, list):
        return [_number(v) for v in value]
    if isinstance(value, dict):
        return {k: _number(v) for k, v in value.items()}
    return value


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(k): _strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(v) for v in value]
    return value


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size == 0:
            return True
        file.seek(-1, 2)
        return file.read(1) == b"\n"

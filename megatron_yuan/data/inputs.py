"""The files of text that a tool was told to read: files, folders and globs, in an order that is always the same."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megatron_yuan.data.journal import hidden
from megatron_yuan.data.stamp import CACHE
from megatron_yuan.errors import DataError
from megatron_yuan.log import logger

KINDS: dict[str, Literal["json", "txt", "parquet"]] = {
    ".jsonl": "json",
    ".json": "json",  # what Megatron-LM's tool calls an object a line
    ".txt": "txt",
    ".parquet": "parquet",
}
PACKINGS = (".gz", ".zst")
REJECTS = "_rejects.jsonl"  # how the names of our own lists of rejects end
KNOWN = ".jsonl, .json or .txt, each also with .gz or .zst, or .parquet"


@dataclass(frozen=True)
class Input:
    """One file of text."""

    path: Path
    name: str
    """The same wherever the data lies: the file's name, within the folder that was named where there is one."""

    @property
    def packing(self) -> str:
        """ ".gz", ".zst" or nothing."""
        ending = self.path.suffix.lower()
        return ending if ending in PACKINGS else ""

    @property
    def kind(self) -> Literal["json", "txt", "parquet"] | None:
        """What the file's name says is in it; None: nothing that can be read."""
        kind = KINDS.get(Path(self.path.name.lower().removesuffix(self.packing)).suffix)
        return None if kind == "parquet" and self.packing else kind


def find_inputs(inputs: Sequence[str | Path], keys: Sequence[str]) -> list[Input]:
    """The files that `inputs` name, each of a known kind; those of one folder or glob sorted by path.

    In a folder, hidden files, files of other kinds, passports, lists of rejects and runs' index files are passed over;
    a line tells how many, but for hidden ones, datasets and their index files. Raises DataError.
    """
    if not inputs:
        raise DataError("input names no file. Fix: --input FILE ...")
    if not keys or len(set(keys)) < len(keys) or any(not key or "/" in key or "\0" in key for key in keys):
        raise DataError(f"json_keys {' '.join(keys)}: each key becomes a file name; none may repeat or hold a '/'.")
    passed: list[Path] = []
    found = [each for name in inputs for each in _expand(str(name), passed)]
    passed = [path for path in passed if path.suffix not in (".bin", ".idx") and not _is_passport(path)]
    seen: set[Path] = set()
    for each in found:
        place = each.path.resolve()
        if place in seen:
            raise DataError(f"input {each.path} is named twice. Fix: name it once.")
        seen.add(place)
        if each.kind is None:
            raise DataError(f"input {each.path} is of no known kind. Fix: {KNOWN}.")
        if each.kind == "txt" and list(keys) != ["text"]:
            raise DataError(
                f"input {each.path} has no keys, but json_keys is {' '.join(keys)}. Fix: leave --json-keys out."
            )
        if not os.access(each.path, os.R_OK):
            raise DataError(f"input {each.path} cannot be read (Permission denied). Fix: see to the file's rights.")
    if passed:
        kinds = f"{KNOWN}, and no list of rejects (*{REJECTS})"
        logger.warning("input: %d passed over, the first %s; in folders, read are %s.", len(passed), passed[0], kinds)
    return found


def _expand(name: str, passed: list[Path]) -> list[Input]:
    """The files that `name` names; those that are left out come to `passed`."""
    if not name:
        raise DataError('input is "", which names no file. Fix: --input FILE ...')
    path = Path(name)
    if path.is_file():
        return [Input(path, path.name)]
    if path.is_dir():
        found = list(_in_folder(path, passed))
        if not found:
            raise DataError(f"input {path} is a folder without text. Fix: name one with files of {KNOWN}.")
        return found
    if not glob.has_magic(name):
        raise DataError(f"input {path} is not a file or a folder. Fix: name files of {KNOWN}, or folders of them.")
    fixed = Path(*_before_magic(path))
    found = []
    for match in sorted(map(Path, glob.glob(name, recursive=True))):
        inside = match.relative_to(fixed)
        if CACHE in inside.parts:
            continue
        if match.is_file():
            found.append(Input(match, inside.as_posix()))
        elif "**" not in name:  # which names what is in folders as well
            found += [Input(each.path, (inside / each.name).as_posix()) for each in _in_folder(match, passed)]
    passed += [each.path for each in found if _is_ours(each.path)]
    found = [each for each in found if not _is_ours(each.path)]
    if not found:
        raise DataError(f"input {name} matches no file. Fix: see to the pattern, and that the shell leaves it alone.")
    return found


def _before_magic(path: Path) -> Iterator[str]:
    for part in path.parts:
        if glob.has_magic(part):
            return
        yield part


def _in_folder(folder: Path, passed: list[Path]) -> Iterator[Input]:
    walked: set[str] = set()
    paths = []
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in walked:  # a link to a folder above
            folders.clear()
            continue
        walked.add(real)
        folders[:] = [each for each in folders if not each.startswith(".") and each != CACHE]
        paths += [Path(place, each) for each in files if not each.startswith(".")]
    for path in sorted(paths):
        each = Input(path, path.relative_to(folder).as_posix())
        if each.kind is not None and path.is_file() and not _is_ours(path):
            yield each
        else:
            passed.append(path)


def _is_ours(path: Path) -> bool:
    """Whether a tool of ours wrote it beside its output: a passport, or a list of rejects."""
    return path.name.endswith(REJECTS) or _is_passport(path)


def _is_passport(path: Path) -> bool:
    index = path.with_suffix(".idx")  # which gets its name after the passport, and loses it before
    return path.suffix == ".json" and (index.exists() or hidden(index).exists())

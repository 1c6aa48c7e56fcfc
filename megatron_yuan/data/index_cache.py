"""Index files: arrays that are a pure function of an identity, built once, kept by it, and read through mmap.

KEY.json says what an index is and the sha256 of each KEY-NAME.npy beside it. It is written last, and each file gets its
name when it is whole: a process killed at any moment leaves an index or none. What is damaged, cut off, or of another
identity is built again. Two runs that build the same index at once write the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from megatron_yuan.data.digest import sha256_of_entries
from megatron_yuan.data.stamp import Stamps, temporary_name, write_whole
from megatron_yuan.errors import DataError

FORMAT = 2
"""Counts up when the same identity comes to mean another order of samples."""

Arrays = dict[str, np.ndarray]


def load_or_build(folder: Path, identity: Mapping[str, Any], build: Callable[[], Arrays]) -> Arrays:
    """The arrays of `identity` (plain JSON values), read-only, from `folder`; what `build` returns is kept there.

    Raises DataError where the folder cannot take what it lacks.
    """
    described = json.dumps({"format": FORMAT, **identity}, sort_keys=True)
    key = hashlib.sha256(described.encode()).hexdigest()[:32]
    found = _load(folder, key, described)
    if found is None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _clear_leftovers(folder, key)
            _save(folder, key, described, build())
        except OSError as error:
            raise DataError(
                f"data_cache_path {folder} cannot take an index file ({error.strerror}). "
                "Fix: free some space, or --data-cache-path FOLDER that may be written to."
            ) from None
        found = _load(folder, key, described)
    if found is None:
        raise DataError(f"data_cache_path {folder} does not give back what was written. Fix: see to the disk.")
    return found


def _load(folder: Path, key: str, described: str) -> Arrays | None:
    """None where there is no such index, or where it is not what it was."""
    try:
        note = json.loads((folder / f"{key}.json").read_text(encoding="utf-8"))
        if note["identity"] != described or note["sha256_of_sha256"] != sha256_of_entries(note["sha256"]):
            return None
        stamps, arrays = Stamps(folder), {}
        for name, sha256 in note["sha256"].items():
            file = _array_file(folder, key, name)
            if stamps.sha256(file) != sha256:
                return None
            arrays[name] = np.load(file, mmap_mode="r", allow_pickle=False)
        return arrays
    except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError):
        return None


def _save(folder: Path, key: str, described: str, arrays: Arrays) -> None:
    stamps, hashes = Stamps(folder), {}
    for name, array in arrays.items():
        file = _array_file(folder, key, name)
        temporary = file.with_name(temporary_name(file.name))
        try:
            with open(temporary, "wb") as out:
                hashing = _Hashing(out)
                # To a file of Python's, numpy writes in small blocks and through us; an array is written at one stroke.
                np.lib.format.write_array_header_1_0(
                    hashing,  # type: ignore[arg-type]
                    np.lib.format.header_data_from_array_1_0(array),
                )
                hashing.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
                out.flush()
                os.fsync(out.fileno())
            os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)
        hashes[name] = hashing.digest.hexdigest()
        stamps.remember(file, file.stat(), {"sha256": hashes[name]}, fresh=True)
    # The digest of digests tells a note that lacks an array, which would pass for whole.
    note = {"identity": described, "sha256": hashes, "sha256_of_sha256": sha256_of_entries(hashes)}
    write_whole(folder / f"{key}.json", json.dumps(note, indent=1).encode())


class _Hashing:
    """A file that hashes what is written into it."""

    def __init__(self, file: Any) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data: bytes | memoryview) -> None:
        self.digest.update(data)
        self.file.write(data)


def _clear_leftovers(folder: Path, key: str) -> None:
    """Remove what processes of this machine left half-written when they were killed."""
    here = temporary_name("").removesuffix(str(os.getpid()))  # ..HOST.
    for file in folder.glob(f".{key}*{here.lstrip('.')}*"):
        number = file.name.rpartition(".")[2]
        if number.isdigit() and int(number) != os.getpid() and not Path(f"/proc/{number}").exists():
            file.unlink(missing_ok=True)


def _array_file(folder: Path, key: str, name: str) -> Path:
    return folder / f"{key}-{name}.npy"

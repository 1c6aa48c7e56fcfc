from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from megatron_yuan.data.index_cache import load_or_build
from megatron_yuan.errors import DataError

IDENTITY = {"kind": "test", "seed": 1}
ARRAYS = {"order": np.arange(100, dtype=np.int32), "places": np.arange(60, dtype=np.int64).reshape(30, 2)}


class Builder:
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return ARRAYS


def same(found) -> bool:
    return found.keys() == ARRAYS.keys() and all(np.array_equal(found[name], ARRAYS[name]) for name in ARRAYS)


def test_an_index_is_built_once_and_then_mapped_into_memory(tmp_path):
    build = Builder()
    for _ in range(3):
        found = load_or_build(tmp_path, IDENTITY, build)
        assert same(found) and all(isinstance(each, np.memmap) and not each.flags.writeable for each in found.values())
    assert build.calls == 1


def test_another_identity_is_another_index(tmp_path):
    build = Builder()
    load_or_build(tmp_path, IDENTITY, build)
    load_or_build(tmp_path, IDENTITY | {"seed": 2}, build)
    assert build.calls == 2


def test_an_empty_array_is_kept_too(tmp_path):
    for _ in range(2):
        found = load_or_build(tmp_path, IDENTITY, lambda: {"none": np.zeros((0, 2), np.int32)})
        assert found["none"].shape == (0, 2)


def test_a_cache_folder_may_be_copied(tmp_path):
    build = Builder()
    load_or_build(tmp_path / "a", IDENTITY, build)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert same(load_or_build(tmp_path / "b", IDENTITY, build)) and build.calls == 1


DAMAGES = {
    "cut off": lambda f: os.truncate(f, f.stat().st_size // 2),
    "emptied": lambda f: os.truncate(f, 0),
    "overwritten": lambda f: f.write_bytes(b"x" * f.stat().st_size),
    "removed": lambda f: f.unlink(),
    "longer": lambda f: f.write_bytes(f.read_bytes() + b"x"),
    "a bit flipped": lambda f: f.write_bytes(f.read_bytes()[:-1] + bytes([f.read_bytes()[-1] ^ 1])),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
@pytest.mark.parametrize("which", ["*-order.npy", "*-places.npy", "*.json"])
def test_a_damaged_index_is_built_again(tmp_path, which, damage):
    build = Builder()
    load_or_build(tmp_path, IDENTITY, build)
    (file,) = tmp_path.glob(which)
    damage(file)
    assert same(load_or_build(tmp_path, IDENTITY, build))
    assert build.calls == 2 or (which == "*.json" and file.read_bytes()[-1:] in b"x\n")
    assert same(load_or_build(tmp_path, IDENTITY, build)) and build.calls <= 2


@pytest.mark.parametrize("kept", [[], ["order"]])
def test_a_note_that_lacks_an_array_is_built_again(tmp_path, kept):
    build = Builder()
    load_or_build(tmp_path, IDENTITY, build)
    (path,) = (each for each in tmp_path.glob("*.json") if "identity" in each.read_text())
    note = json.loads(path.read_text())
    note["sha256"] = {name: note["sha256"][name] for name in kept}
    path.write_text(json.dumps(note))
    assert same(load_or_build(tmp_path, IDENTITY, build)) and build.calls == 2


def test_no_garbage_in_the_cache_is_ever_taken_for_an_index(tmp_path):
    load_or_build(tmp_path, IDENTITY, Builder())
    files, source = sorted(tmp_path.glob("*.*")), random.Random(0)
    for _ in range(60):
        file = source.choice(files)
        data = bytearray(file.read_bytes())
        for _ in range(source.randint(1, 9)):
            data[source.randrange(len(data))] = source.randrange(256)
        file.write_bytes(data[: source.randint(1, len(data))])
        assert same(load_or_build(tmp_path, IDENTITY, Builder()))


def test_what_a_killed_process_left_is_removed(tmp_path):
    build = Builder()
    load_or_build(tmp_path, IDENTITY, build)
    (note,) = tmp_path.glob("*.json")
    from megatron_yuan.data.stamp import temporary_name

    left = tmp_path / (temporary_name(f"{note.stem}-order.npy").rpartition(".")[0] + ".999999999")
    left.write_bytes(b"half")
    note.unlink()
    load_or_build(tmp_path, IDENTITY, build)
    assert not left.exists() and not list(tmp_path.glob(".*"))


def test_a_folder_that_takes_no_file_is_named(tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(DataError, match=r"data_cache_path .*file cannot take an index file .*Fix: "):
        load_or_build(file, IDENTITY, Builder())


def test_an_error_while_building_leaves_nothing(tmp_path):
    def fail():
        raise DataError("the set is gone")

    with pytest.raises(DataError, match="the set is gone"):
        load_or_build(tmp_path, IDENTITY, fail)
    assert not [each for each in Path(tmp_path).rglob("*") if each.is_file()]

"""A checkpoint made to do harm: refused in words; nothing in it runs, and nothing is written or read elsewhere."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_yuan.checkpoint import strict_json
from megatron_yuan.checkpoint.agreement import ALONE
from megatron_yuan.checkpoint.load import load_checkpoint, open_checkpoint
from megatron_yuan.errors import CheckpointError

from .conftest import make_tensors

FILE = "model/layers.0001.safetensors"


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch exploded",)


def put(checkpoint: Path, file: str, content: bytes) -> None:
    """Replace a file such that size and sha256 in the manifest agree with it."""
    (checkpoint / file).write_bytes(content)
    rewrite(checkpoint, lambda files: files[file].update(size=len(content), sha256=hashlib.sha256(content).hexdigest()))


def rewrite(checkpoint: Path, change: Any) -> None:
    outer = json.loads((checkpoint / "manifest.json").read_text())
    change(outer["content"]["files"])
    outer["sha256"] = hashlib.sha256(strict_json.canonical(outer["content"]).encode()).hexdigest()
    (checkpoint / "manifest.json").write_text(json.dumps(outer))


def with_header(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def a_pickle(checkpoint: Path) -> None:
    put(checkpoint, FILE, pickle.dumps(Bomb()) + bytes(4096))


def a_torch_file(checkpoint: Path) -> None:
    torch.save({"layers.1.input_norm.weight": Bomb()}, checkpoint / "bomb")
    put(checkpoint, FILE, (checkpoint / "bomb").read_bytes())


def a_pickle_for_a_run_state(checkpoint: Path) -> None:
    put(checkpoint, "run_state.json", pickle.dumps(Bomb()))


def a_way_up(checkpoint: Path) -> None:
    rewrite(checkpoint, lambda files: files.update({"model/../../../../secret": files[FILE]}))


def an_absolute_path(checkpoint: Path) -> None:
    rewrite(checkpoint, lambda files: files.update({str(checkpoint.parents[2] / "secret"): files[FILE]}))


def a_link_out(checkpoint: Path) -> None:
    (checkpoint / FILE).rename(checkpoint.parents[2] / "elsewhere")
    (checkpoint / FILE).symlink_to(checkpoint.parents[2] / "elsewhere")


def a_folder_that_is_a_link(checkpoint: Path) -> None:
    (checkpoint / "model").rename(checkpoint.parents[2] / "elsewhere")
    (checkpoint / "model").symlink_to(checkpoint.parents[2] / "elsewhere")


def ten_terabytes(checkpoint: Path) -> None:
    entry = {"dtype": "BF16", "shape": [5, 10**12], "data_offsets": [0, 10**13]}
    put(checkpoint, FILE, with_header({"layers.1.input_norm.weight": entry}))


def ten_terabytes_in_the_manifest_too(checkpoint: Path) -> None:
    ten_terabytes(checkpoint)
    entry = {"layers.1.input_norm.weight": ["BF16", [5, 10**12]]}
    rewrite(checkpoint, lambda files: files[FILE].update(tensors=entry))


def not_a_number(checkpoint: Path) -> None:
    put(checkpoint, FILE, with_header(b'{"w": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 0]}}'))


def not_a_number_in_the_run_state(checkpoint: Path) -> None:
    text = (checkpoint / "run_state.json").read_text().replace("800", "NaN")
    put(checkpoint, "run_state.json", text.encode())


def a_number_without_end(checkpoint: Path) -> None:
    text = (checkpoint / "run_state.json").read_text().replace("800", "1e999")
    put(checkpoint, "run_state.json", text.encode())


def nested_without_end(checkpoint: Path) -> None:
    put(checkpoint, "run_state.json", b"[" * 1_000_000)


HARMS = [
    (a_pickle, "not a safetensors file"),
    (a_torch_file, "not a safetensors file"),
    (a_pickle_for_a_run_state, "not valid JSON"),
    (a_way_up, "which no checkpoint has: refused"),
    (an_absolute_path, "which no checkpoint has: refused"),
    (a_link_out, "is a link, which no checkpoint has: refused"),
    (a_folder_that_is_a_link, "is a link, which no checkpoint has: refused"),
    (ten_terabytes, "truncated|other tensors"),
    (ten_terabytes_in_the_manifest_too, r"which its tensors' shapes exceed"),
    (not_a_number, "NaN is not JSON"),
    (not_a_number_in_the_run_state, "NaN is not JSON"),
    (a_number_without_end, "out of range"),
    (nested_without_end, "not valid JSON"),
]


@pytest.mark.parametrize(("harm", "reason"), HARMS, ids=[harm.__name__ for harm, _ in HARMS])
@pytest.mark.parametrize("verify", [True, False])
def test_it_is_refused_in_words_and_does_nothing(
    saved: Path, monkeypatch: pytest.MonkeyPatch, harm: Any, reason: str, verify: bool
) -> None:
    checkpoint = saved / "checkpoints" / "iter_0000100"
    monkeypatch.chdir(saved.parent)
    harm(checkpoint)
    before = {path: path.lstat().st_mtime_ns for path in saved.parent.rglob("*")}
    held = make_tensors()
    with pytest.raises(CheckpointError, match=reason) as raised:
        load_checkpoint(open_checkpoint(saved, verify=verify), ALONE, held.weights, held.optimizer)
    assert len(str(raised.value)) < 1500
    assert {path: path.lstat().st_mtime_ns for path in saved.parent.rglob("*")} == before

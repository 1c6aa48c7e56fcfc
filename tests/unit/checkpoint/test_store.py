from __future__ import annotations

import hashlib
import json
import pickle
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_yuan.checkpoint.store import (
    DTYPES,
    Pieces,
    TensorSpec,
    read_specs,
    read_tensors,
    sha256_of,
    write_tensors,
)
from megatron_yuan.errors import CheckpointError


def some_tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    made = {f"of.{code}": (torch.rand(3, 5) * 2).to(dtype) for code, dtype in DTYPES.items()}
    return {**made, "scalar": torch.tensor(2.5), "empty": torch.empty(0, 4), "across": torch.rand(4, 3).t()}


def file_with_header(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_the_safetensors_package_reads_what_is_written(tmp_path: Path) -> None:
    size, digest = write_tensors(tmp_path / "a.safetensors", some_tensors())
    content = (tmp_path / "a.safetensors").read_bytes()
    assert (size, digest) == (len(content), hashlib.sha256(content).hexdigest())
    read = load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(read[name], tensor) for name, tensor in some_tensors().items())
    assert read.keys() == some_tensors().keys()


def test_what_the_safetensors_package_writes_is_read(tmp_path: Path) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in some_tensors().items()}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "pt"})
    into = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    read_tensors(tmp_path / "a.safetensors", into, sha256_of(tmp_path / "a.safetensors"))
    assert all(torch.equal(into[name], tensor) for name, tensor in tensors.items())


def test_tensors_larger_than_a_chunk_come_back_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_yuan.checkpoint.store._CHUNK", 16)
    _, digest = write_tensors(tmp_path / "a.safetensors", some_tensors())
    into = {name: torch.zeros_like(tensor) for name, tensor in some_tensors().items()}
    read_tensors(tmp_path / "a.safetensors", into, digest)
    assert all(torch.equal(into[name], tensor) for name, tensor in some_tensors().items())


def test_some_tensors_are_read_in_place_into_parameters_of_another_type_and_stride(tmp_path: Path) -> None:
    tensors = some_tensors()
    _, digest = write_tensors(tmp_path / "a.safetensors", tensors)
    parameter = torch.nn.Parameter(torch.zeros(3, 5, dtype=torch.float32))
    across = torch.zeros(4, 3).t()
    for expected in (digest, None):
        read_tensors(tmp_path / "a.safetensors", {"of.BF16": parameter, "across": across}, expected)
        assert torch.equal(parameter, tensors["of.BF16"].float()) and torch.equal(across, tensors["across"])


def test_a_truncated_file_is_named_wherever_it_ends(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", some_tensors())
    content = (tmp_path / "a.safetensors").read_bytes()
    for size in (0, 4, 9, 100, len(content) - 1):
        (tmp_path / "cut.safetensors").write_bytes(content[:size])
        with pytest.raises(CheckpointError, match=r"cut\.safetensors is truncated"):
            read_specs(tmp_path / "cut.safetensors")


def test_a_flipped_byte_anywhere_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {"w": torch.arange(4.0)}
    _, digest = write_tensors(path, tensors)
    content = path.read_bytes()
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x11]) + content[position + 1 :])
        with pytest.raises(CheckpointError, match=r"a\.safetensors"):
            read_tensors(path, {"w": torch.zeros(4)}, digest)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}, "truncated"),
        ({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 8]}}, "does not fit"),
        ({"w": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, "impossible shape"),
        ({"w": {"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]}}, "impossible shape"),
        ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}, "data_offsets"),
        ({"w": {"dtype": "os.system", "shape": [2], "data_offsets": [0, 8]}}, "unknown tensor type"),
        ({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, "gap"),
        ({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, "belong to no tensor"),
        ({"w": 3}, "data_offsets"),
        (b'{"w": NaN}', "not valid JSON"),
        (b'{"w": 1, "w": 2}', "twice"),
        (b"[" * 100_000, "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[]", "object was expected"),
    ],
)
def test_a_hostile_header_is_refused_in_words(tmp_path: Path, header: object, reason: str) -> None:
    path = file_with_header(tmp_path / "bad.safetensors", header, bytes(8))
    with pytest.raises(CheckpointError, match=reason) as raised:
        read_specs(path)
    assert "bad.safetensors" in str(raised.value) and len(str(raised.value)) < 1000


def test_a_pickle_under_a_safetensors_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.safetensors").write_bytes(pickle.dumps({"w": list(range(100))}))
    torch.save({"w": torch.zeros(3)}, tmp_path / "t.safetensors")
    for name in ("p", "t"):
        with pytest.raises(CheckpointError, match="not a safetensors file"):
            read_specs(tmp_path / f"{name}.safetensors")


def test_a_tensor_made_piece_by_piece_is_written_as_if_whole(tmp_path: Path) -> None:
    whole = torch.arange(24, dtype=torch.float32).view(2, 3, 4)
    pieces = Pieces(TensorSpec.of(whole), lambda: iter([whole[0].t().contiguous().t(), whole[1]]))
    write_tensors(tmp_path / "whole", {"a": whole}, {"format": "pt"})
    write_tensors(tmp_path / "pieces", {"a": pieces}, {"format": "pt"})
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "pieces").read_bytes()

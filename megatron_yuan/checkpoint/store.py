"""One safetensors file: written in one pass and hashed on the way, read in one pass into tensors that exist already.

The format is eight bytes of header length, a JSON header, then the tensors' bytes without a gap. The
safetensors package writes a file that then has to be read again for its hash, and maps the file that it reads, which
gives no bytes to hash on the way; so the little code that the format needs is here, and the tests hold it to the
package in both directions. Nothing is allocated, and no tensor touched, before the header agrees with the file's size.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from megatron_yuan.checkpoint import strict_json
from megatron_yuan.checkpoint.damage import DamagedError
from megatron_yuan.errors import CheckpointError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_CHUNK = 4 << 20  # bytes at a time: stays in the cache between read, hash and copy; a multiple of every item size
_MAX_HEADER = 100 << 20  # the safetensors package's own limit
_KICK = 32 << 20  # bytes after which the disk is told to begin, rather than idle until the fsync
_SYNC = 1 << 30  # bytes after which the disk is waited for, so that a slow one is seen to move, and a dead one not to

Count = Callable[[int], None]
"""Told of every so many bytes that are done; may raise, to break off."""


@dataclass(frozen=True)
class TensorSpec:
    """Type and shape of a tensor, without its values."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor | Pieces) -> TensorSpec:
        """The spec of `tensor`."""
        return tensor.spec if isinstance(tensor, Pieces) else cls(tensor.dtype, tuple(tensor.shape))

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * self.dtype.itemsize

    def to_json(self) -> list[Any]:
        """As the manifest holds it: ["BF16", [4, 8]]."""
        return [_CODES[self.dtype], list(self.shape)]

    @classmethod
    def from_json(cls, code: Any, shape: Any, source: str) -> TensorSpec:
        """The inverse, for values of unknown origin."""
        if not isinstance(code, str) or code not in DTYPES:
            raise CheckpointError(f"{source} has the unknown tensor type {code!r}")
        if not isinstance(shape, list) or len(shape) > 16 or not all(map(strict_json.is_count, shape)):
            raise CheckpointError(f"{source} has the impossible shape {shape!r}"[:300])
        return cls(DTYPES[code], tuple(shape))


@dataclass(frozen=True)
class Pieces:
    """A tensor that never exists whole: it is written from pieces of its type, made one after another as they are
    needed, whose elements in row-major order follow each other in it."""

    spec: TensorSpec
    make: Callable[[], Iterable[Tensor]]


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor | Pieces],
    metadata: Mapping[str, str] | None = None,
    count: Count | None = None,
) -> tuple[int, str]:
    """Write a new file and wait until the disk has it; returns its size and sha256 (hex). OSError where it cannot.

    `metadata` becomes the format's `__metadata__`. Extra memory: one chunk, or one tensor (or piece) where it is not
    contiguous.
    """
    # Wide types first, so that every tensor starts at a multiple of its item size: readers may map the file.
    names = sorted(tensors, key=lambda name: (-TensorSpec.of(tensors[name]).dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        spec = TensorSpec.of(tensors[name])
        begin, end = end, end + spec.nbytes
        header[name] = {"dtype": _CODES[spec.dtype], "shape": list(spec.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "xb") as file:
        output = _HashedOutput(file, count)
        output.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            for chunk in chunks(tensors[name]):
                output.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return output.size, output.digest.hexdigest()


class _HashedOutput:
    """A file being written: hashed, counted, and passed on to the disk as it grows."""

    def __init__(self, file: BinaryIO, count: Count | None) -> None:
        self.file, self.count = file, count
        self.digest, self.size, self.kicked, self.synced = hashlib.sha256(), 0, 0, 0

    def write(self, chunk: bytes | memoryview) -> None:
        self.digest.update(chunk)
        self.file.write(chunk)
        self.size += len(chunk)
        if self.count is not None:
            self.count(len(chunk))
        if self.size - self.kicked >= _KICK and hasattr(os, "posix_fadvise"):
            # Linux begins to write a range out when told that it will not be needed, and does not wait for it.
            self.file.flush()
            os.posix_fadvise(self.file.fileno(), self.kicked, self.size - self.kicked, os.POSIX_FADV_DONTNEED)
            self.kicked = self.size
        if self.size - self.synced >= _SYNC:
            self.file.flush()
            os.fsync(self.file.fileno())
            self.synced = self.size


def chunks(tensor: Tensor | Pieces) -> Iterator[memoryview]:
    """The bytes of `tensor`, from whatever device, in its row-major order."""
    if isinstance(tensor, Pieces):
        written = 0
        for piece in tensor.make():
            assert piece.dtype == tensor.spec.dtype, "a piece of another type"
            written += piece.nbytes
            yield from chunks(piece)
        assert written == tensor.spec.nbytes, "pieces do not fill the tensor"
        return
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    for begin in range(0, flat.numel(), _CHUNK):
        yield flat[begin : begin + _CHUNK].cpu().numpy().data


def read_specs(path: Path) -> dict[str, TensorSpec]:
    """Types and shapes of the tensors in a file, in the file's order; its header is checked, its values are not."""
    with _open(path) as file:
        return _read_header(_HashedInput(file, path, False, None))


def read_tensors(path: Path, into: Mapping[str, Tensor], sha256: str | None = None, count: Count | None = None) -> None:
    """Copy tensors of the file into tensors of the same names and shapes, in place, casting to their types and devices.

    With `sha256` the file's hash is taken on the way and compared at the end. A file that is missing, cut short, of
    other shapes or (hash) damaged is a CheckpointError naming it; the tensors of `into` are then undefined.
    """
    with _open(path) as file, torch.no_grad():
        source = _HashedInput(file, path, sha256 is not None, count)
        specs = _read_header(source)
        for name, target in into.items():
            if name not in specs or specs[name].shape != tuple(target.shape):
                found = list(specs[name].shape) if name in specs else "nothing"
                raise CheckpointError(f"{path} holds {found} under {name}, wanted {list(target.shape)}")
        for name, spec in specs.items():
            if name in into:
                _fill(into[name], spec, source)
            elif sha256:
                source.pass_over(spec.nbytes)
            else:
                file.seek(spec.nbytes, os.SEEK_CUR)
    if sha256 and source.digest.hexdigest() != sha256:
        raise DamagedError(f"{path} is damaged: its sha256 is not the one that was recorded when it was written")


def sha256_of(path: Path, count: Count | None = None) -> str:
    """Hash of a file's bytes, in hex."""
    with _open(path) as file:
        source = _HashedInput(file, path, True, count)
        source.pass_over(os.fstat(file.fileno()).st_size)
    return source.digest.hexdigest()


def _open(path: Path) -> BinaryIO:
    """Open a regular file (a pipe would wait for ever), errors in words."""
    try:
        file = open(path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    except FileNotFoundError:
        raise DamagedError(f"{path} is missing") from None
    except OSError as error:
        raise CheckpointError(f"cannot open {path}: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise CheckpointError(f"{path} is not a regular file")
    return file  # type: ignore[return-value]


class _HashedInput:
    """A file being read from its beginning: hashed where that is asked for, and counted."""

    def __init__(self, file: BinaryIO, path: Path, hashed: bool, count: Count | None) -> None:
        self.file, self.path, self.count = file, path, count
        self.digest, self.hashed = hashlib.sha256(), hashed
        self.scratch: Tensor | None = None

    def fill(self, memory: memoryview) -> None:
        """Read exactly as much as `memory` holds."""
        filled = 0
        while filled < len(memory):
            try:
                got = self.file.readinto(memory[filled : filled + _CHUNK])  # type: ignore[attr-defined]
            except OSError as error:
                raise CheckpointError(f"cannot read {self.path}: {error.strerror}") from None
            if not got:
                raise DamagedError(f"{self.path} is truncated: it ends before its last tensor")
            if self.hashed:
                self.digest.update(memory[filled : filled + got])
            if self.count is not None:
                self.count(got)
            filled += got

    def chunks(self, nbytes: int) -> Iterator[Tensor]:
        """The next `nbytes` of the file, each time in the same memory."""
        if self.scratch is None:
            self.scratch = torch.empty(_CHUNK, dtype=torch.uint8)
        while nbytes > 0:
            chunk = self.scratch[: min(nbytes, _CHUNK)]
            self.fill(chunk.numpy().data)
            yield chunk
            nbytes -= len(chunk)

    def pass_over(self, nbytes: int) -> None:
        """Read and drop."""
        for _ in self.chunks(nbytes):
            pass


def _fill(target: Tensor, spec: TensorSpec, source: _HashedInput) -> None:
    """Copy one tensor from the file's position into `target`: straight into its memory where that takes it as it is."""
    whole = target if target.is_contiguous() else torch.empty_like(target, memory_format=torch.contiguous_format)
    flat, begin = whole.detach().view(-1), 0
    if whole.dtype == spec.dtype and whole.device.type == "cpu":
        source.fill(flat.view(torch.uint8).numpy().data)
    else:
        for chunk in source.chunks(spec.nbytes):
            values = chunk.view(spec.dtype)
            flat[begin : begin + values.numel()].copy_(values)
            begin += values.numel()
    if whole is not target:
        target.detach().copy_(whole)


def _read_header(source: _HashedInput) -> dict[str, TensorSpec]:
    """Read and check the header; the file's position is then that of the first tensor's bytes."""
    path, size = source.path, os.fstat(source.file.fileno()).st_size
    if size < 8:
        raise DamagedError(f"{path} is truncated: {size} bytes are no safetensors file")
    prefix = bytearray(8)
    source.fill(memoryview(prefix))
    length = int.from_bytes(prefix, "little")
    if length > _MAX_HEADER:
        raise DamagedError(f"{path} is not a safetensors file: it begins with {bytes(prefix)!r}")
    if 8 + length > size:
        raise DamagedError(f"{path} is truncated: {size} bytes, of which the header alone should take {8 + length}")
    text = bytearray(length)
    source.fill(memoryview(text))
    return _parse_header(bytes(text), size - 8 - length, path)


def _parse_header(text: bytes, room: int, path: Path) -> dict[str, TensorSpec]:
    """Specs in order of offsets, which must fill exactly the `room` bytes behind the header."""
    entries = strict_json.parse(text, f"the header of {path}")
    entries.pop("__metadata__", None)
    places: list[tuple[int, int, str, TensorSpec]] = []
    for name, entry in entries.items():
        source = f"{path}, tensor {name[:200]!r},"
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        if not (isinstance(offsets, list) and len(offsets) == 2 and all(map(strict_json.is_count, offsets))):
            raise DamagedError(f"{source} has no valid data_offsets")
        try:
            spec = TensorSpec.from_json(entry.get("dtype"), entry.get("shape"), source)
        except CheckpointError as error:
            raise DamagedError(str(error)) from None
        if spec.nbytes != offsets[1] - offsets[0]:
            raise DamagedError(f"{source} of shape {list(spec.shape)} does not fit its {offsets[1] - offsets[0]} bytes")
        places.append((offsets[0], offsets[1], name, spec))
    places.sort(key=lambda place: place[:2])
    position = 0
    for begin, end, name, _ in places:
        if begin != position:
            raise DamagedError(
                f"{path}, tensor {name[:200]!r}, leaves a gap or overlaps another: the header is damaged"
            )
        position = end
    if position != room:
        state = "is truncated" if position > room else "has bytes that belong to no tensor"
        raise DamagedError(f"{path} {state}: its header describes {position} bytes of tensors, it has {room}")
    return {name: spec for _, _, name, spec in places}

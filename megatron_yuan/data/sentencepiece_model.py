"""What a SentencePiece model's own settings say: the few that decide where a text may be cut before it is encoded.

The file is a protocol buffer, whose format (tag, value, tag, value ...) is simple enough to read without its library.
Field numbers and defaults are those of sentencepiece_model.proto.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

_TRAINER, _NORMALIZER = 2, 3
_BPE = 2
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5

WITHOUT_PREFIX = bytes([_NORMALIZER << 3 | _LENGTH, 2, 3 << 3 | _VARINT, 0])
"""Put behind a model it becomes the same model without add_dummy_prefix: of a field given twice the later counts."""


@dataclass(frozen=True)
class ModelSettings:
    """Of one model."""

    bpe: bool
    byte_fallback: bool
    identity: bool
    """Takes text as it is, but for spaces, each of which becomes U+2581."""
    prefix: bool
    """Puts U+2581 before a text."""


def read_settings(model: bytes) -> ModelSettings:
    """Raises ValueError where `model` is not a protocol buffer."""
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for field, value in _fields(model):
        if field in (_TRAINER, _NORMALIZER) and isinstance(value, bytes):
            (trainer if field == _TRAINER else normalizer).update(_fields(value))
    return ModelSettings(
        bpe=trainer.get(3, 1) == _BPE,
        byte_fallback=bool(trainer.get(35, 0)),
        identity=not normalizer.get(2)  # a table of characters to replace
        and not normalizer.get(4, 1)  # remove_extra_whitespaces
        and bool(normalizer.get(5, 1))  # escape_whitespaces
        and not trainer.get(24, 0),  # treat_whitespace_as_suffix
        prefix=bool(normalizer.get(3, 1)),
    )


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if kind not in (_LENGTH, _FIXED64, _FIXED32):
            raise ValueError(f"byte {at}: a field of unknown kind {kind}")
        size, at = _varint(data, at) if kind == _LENGTH else ({_FIXED64: 8, _FIXED32: 4}[kind], at)
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data):
            raise ValueError("ends within a number")
        byte = data[at]
        value, at, shift = value | (byte & 127) << shift, at + 1, shift + 7
        if byte < 128:
            return value, at

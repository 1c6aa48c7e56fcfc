"""Rows of input to texts, or to what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from megatron_yuan.data.inputs import Input
from megatron_yuan.data.readers import Batch, read_batches
from megatron_yuan.errors import DataError

LONG_BYTES = 4 * 2**20
"""A row of more than that is a long one."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
REASONS = ("utf-8", "json", "key", "type", "surrogate", "empty", "nul")
"""Why a document cannot be used, in short."""


@dataclass(frozen=True)
class Reject:
    """A document that cannot be used."""

    row: int
    """Number of its line or row in its file, from 1."""
    reason: Literal["utf-8", "json", "key", "type", "surrogate", "empty", "nul"]
    why: str
    """In words, with the fix."""


class RejectError(Exception):
    """A row is no text."""

    def __init__(self, reason: Any, why: str) -> None:
        super().__init__(why)
        self.reason, self.why = reason, why


Document = tuple[int, tuple[str, ...]]
"""Number of its row, and its text under each key."""


def parse_batch(batch: Batch, keys: Sequence[str]) -> Iterator[Document | Reject]:
    """What each row holds; blank lines are no documents."""
    for row, content in enumerate(batch.rows, start=batch.first):
        try:
            if isinstance(content, tuple):
                yield row, tuple(map(text_of_value, keys, content))
            elif line := clean_line(content, row):
                yield row, parse_line(line, batch.source.kind, keys)
        except RejectError as error:
            yield Reject(row, error.reason, error.why)


def read_documents(inputs: Sequence[Input], keys: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The texts of each document of all files, in order. DataError for the first that is none."""
    for batch in read_batches(inputs, keys):
        for found in parse_batch(batch, keys):
            if isinstance(found, Reject):
                raise rejected(batch.source, found)
            yield found[1]


def rejected(source: Input, reject: Reject) -> DataError:
    """The error that names a bad document."""
    return DataError(f"{source.path}, {unit_of(source)} {reject.row}: {reject.why}")


def unit_of(source: Input) -> str:
    """What a file of this kind is counted in."""
    return "row" if source.kind == "parquet" else "line"


def clean_line(line: bytes, row: int) -> bytes:
    """`line`, or nothing if it is blank."""
    if row == 1:
        line = line.removeprefix(BYTE_ORDER_MARK)
    if line[:1].isspace() or line[:1] > b"\x7e":  # of Unicode there are blanks of more than one byte
        blank = line.isspace() or (len(line) < LONG_BYTES and line.decode(errors="replace").isspace())
        return b"" if blank else line
    return line


def parse_line(line: bytes, kind: str | None, keys: Sequence[str]) -> tuple[str, ...]:
    """The text under each of `keys`. Raises RejectError."""
    text = decode(line, "line")
    if kind == "txt":
        # Step by step as the published preprocessing does it.
        text = text.removeprefix("<n>").strip().replace("\r", "").replace("\u2583", "")
        return (text.replace("[SEP]", "<sep>").replace("<n>", "\n"),)
    found = load_object(text, keys)
    return tuple(checked_text(key, found[key]) for key in keys)


def load_object(text: str, keys: Sequence[str]) -> dict[str, Any]:
    """The JSON object of a line, which has all `keys`. Raises RejectError."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise RejectError(
            "json", f"not JSON ({error.msg}, character {error.pos + 1} of the line). Fix: mend the line."
        ) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets in thousands of brackets
        raise RejectError("json", f"JSON that cannot be read ({error}). Fix: mend the line.") from None
    if not isinstance(found, dict):
        raise RejectError(
            "json", f"not a JSON object but a {type(found).__name__}. Fix: write {{{keys[0]!r}: ...}} a line."
        )
    for key in keys:
        if key not in found:
            names = ", ".join(repr(name[:40]) for name in list(found)[:8]) or "none"
            raise RejectError("key", f"no key {key!r}; its keys are {names}. Fix: --json-keys KEY, or mend the line.")
    return found


def checked_text(key: str, text: Any) -> str:
    """What stands under `key`, if it is text. Raises RejectError."""
    if not isinstance(text, str):
        raise RejectError(
            "type", f"key {key!r} holds a {type(text).__name__}, not text. Fix: --json-keys KEY, or mend the line."
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise RejectError(
            "surrogate", f"key {key!r} holds half a surrogate pair, which is no character. Fix: mend the line."
        ) from None
    return text


def text_of_value(key: str, value: Any) -> str:
    """What stands in a column. Raises RejectError."""
    if not isinstance(value, bytes):
        raise RejectError(
            "type", f"column {key!r} holds {type(value).__name__}, not text. Fix: fill it, or drop the row."
        )
    return decode(value, "text")


def decode(data: bytes, unit: str, before: int = 0) -> str:
    """UTF-8, of which `before` bytes of the same `unit` stand before. Raises RejectError."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RejectError(
            "utf-8",
            f"not UTF-8 ({error.reason}, byte {before + error.start + 1} of the {unit}). Fix: write the file in UTF-8.",
        ) from None


def check_fit(texts: Sequence[str]) -> None:
    """Raise RejectError for texts that cannot be encoded, though they are text."""
    for text in texts:
        if not text:
            raise empty()
        if "\0" in text:
            raise nul()


def empty() -> RejectError:
    """There is nothing to encode."""
    return RejectError("empty", "no text. Fix: drop the document.")


def nul() -> RejectError:
    """Where a NUL is, a file was damaged or is not text."""
    return RejectError("nul", "a NUL character in the text. Fix: drop the document, or the character.")

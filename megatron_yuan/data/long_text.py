"""A row of many megabytes in slices: so that neither its text nor the ids of it ever stand in memory whole.

What `parse.py` does with a row happens here slice by slice, and to the same effect: first all of the row is looked
through, then its texts are given out.
"""

from __future__ import annotations

import json
import secrets
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from megatron_yuan.data.parse import RejectError, checked_text, decode, empty, load_object, nul
from megatron_yuan.data.readers import Row

SLICE_BYTES = 2**20
_FIRST_HALVES = (b"\\ud8", b"\\ud9", b"\\uda", b"\\udb")  # \\ud83d\\ude00 is one character
_LONG_STRING = 2**16  # bytes of a string in JSON that is looked at by itself


@dataclass(frozen=True)
class LongText:
    """UTF-8, or what stands between the quotation marks of a string in JSON."""

    data: memoryview
    escaped: bool

    def slices(self, unit: str = "text", before: int = 0) -> Iterator[str]:
        """The text, about SLICE_BYTES at a time. Raises RejectError."""
        start = 0
        while start < len(self.data):
            end = self._slice_end(start)
            text = decode(bytes(self.data[start:end]), unit, before + start)
            yield _unescaped(text, before + start) if self.escaped else text
            start = end

    def _slice_end(self, start: int) -> int:
        """Where the slice from `start` ends: neither within a character nor within an escape."""
        end = min(start + SLICE_BYTES, len(self.data))
        if end == len(self.data):
            return end
        while end > start + 1 and self.data[end] & 0xC0 == 0x80:
            end -= 1
        if self.escaped:
            end = self._before_escape(start, end)
            if end - 6 > start and bytes(self.data[end - 6 : end - 2]).lower() in _FIRST_HALVES:
                end = self._before_escape(start, end - 1)
        return end

    def _before_escape(self, start: int, end: int) -> int:
        last = bytes(self.data[max(start, end - 6) : end]).rfind(b"\\")
        if last < 0:
            return end
        last += max(start, end - 6)
        first = last
        while first > start and self.data[first - 1] == ord("\\"):
            first -= 1
        if (last - first) % 2:  # as many again: it is itself escaped
            return end
        size = 6 if self.data[last + 1] == ord("u") else 2
        return last if last + size > end else end


def parse_long(row: Row, kind: str | None, keys: Sequence[str]) -> tuple[LongText, ...]:
    """The text under each of `keys`, all of it looked through. Raises RejectError."""
    if isinstance(row, tuple):
        texts = tuple(map(_of_value, keys, row))
    elif kind == "txt":
        texts = (LongText(memoryview(_clean(row)), escaped=False),)
    else:
        texts = _of_json(row, keys)
    for key, text in zip(keys, texts, strict=True):
        if not text.data:
            raise empty()
        for each in text.slices("line" if kind == "txt" else "text"):
            if "\0" in checked_text(key, each):
                raise nul()
    return texts


def _of_value(key: str, value: object) -> LongText:
    if not isinstance(value, bytes):
        raise RejectError(
            "type", f"column {key!r} holds {type(value).__name__}, not text. Fix: fill it, or drop the row."
        )
    return LongText(memoryview(value), escaped=False)


def _clean(line: bytes) -> bytes:
    """The published steps, which are the same on bytes as on characters, as no character holds another's bytes."""
    line = line.removeprefix(b"<n>")
    while size := _blank(line[:SLICE_BYTES].decode(errors="replace")):
        line = line[size:]
    while size := _blank(line[-SLICE_BYTES:].decode(errors="replace")[::-1]):
        line = line[:-size]
    line = line.replace(b"\r", b"").replace("\u2583".encode(), b"")
    return line.replace(b"[SEP]", b"<sep>").replace(b"<n>", b"\n")


def _blank(text: str) -> int:
    """Bytes of blank characters at the beginning of `text`."""
    return len(text[: len(text) - len(text.lstrip())].encode())


def _of_json(line: bytes, keys: Sequence[str]) -> tuple[LongText, ...]:
    """Long strings that stand for values are taken out of the line, and what is left is read as ever."""
    view, mark = memoryview(line), secrets.token_hex(16)  # which no line has
    kept: list[bytes] = []
    long: list[LongText] = []
    at = 0
    for start, end in _strings(line):
        if end - start > _LONG_STRING and not line[end + 1 : end + 100].lstrip().startswith(b":"):
            text = LongText(view[start:end], escaped=True)
            deque(text.slices("line", start), maxlen=0)  # is it JSON?
            kept += line[at:start], f"{mark}{len(long)}".encode()
            long.append(text)
            at = end
    kept.append(line[at:])
    found = load_object(decode(b"".join(kept), "line"), keys)
    return tuple(_text_of(key, found[key], mark, long) for key in keys)


def _text_of(key: str, value: object, mark: str, long: Sequence[LongText]) -> LongText:
    if isinstance(value, str) and value.startswith(mark):
        return long[int(value.removeprefix(mark))]
    return LongText(memoryview(checked_text(key, value).encode()), escaped=False)


def _strings(line: bytes) -> Iterator[tuple[int, int]]:
    """Where the strings of a line of JSON begin and end, without their quotation marks."""
    at = 0
    while (start := line.find(b'"', at)) >= 0:
        end = start
        while True:
            end = line.find(b'"', end + 1)
            if end < 0:
                return  # it has no end, which JSON's reader says
            first = end
            while line[first - 1] == ord("\\"):
                first -= 1
            if (end - first) % 2 == 0:
                break
        yield start + 1, end
        at = end + 1


def _unescaped(text: str, before: int) -> str:
    try:
        return json.loads(f'"{text}"')
    except json.JSONDecodeError as error:
        raise RejectError(
            "json", f"not JSON ({error.msg}, near byte {before + error.pos} of the line). Fix: mend the line."
        ) from None

"""Documents from files, in order: jsonl (an object a line) and the published txt form (a document a line), or either
in gzip. Errors name file and line.

Lines are read in batches, so that many processes can share the work of making text of them.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from megatron_yuan.errors import DataError

JSON_KINDS = (".jsonl", ".json", ".jsonl.gz", ".json.gz")  # .json: what Megatron-LM's tool calls an object a line
TXT_KINDS = (".txt", ".txt.gz")
BATCH_BYTES = 2**20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Lines:
    """Some consecutive lines of one file."""

    path: Path
    first: int
    """Number of the first line; the file's first is 1."""
    lines: list[bytes]
    size: int
    """Bytes in `lines`."""
    position: int
    """Bytes taken from the disk so far, files before this one included (compressed ones count as they lie there)."""


def check_inputs(inputs: Sequence[str | Path], keys: Sequence[str]) -> list[Path]:
    """The input files, each of a known kind and readable. Raises DataError otherwise."""
    if not inputs:
        raise DataError("input names no file. Fix: --input FILE ...")
    if len(set(keys)) < len(keys) or any(not key or "/" in key for key in keys):
        raise DataError(f"json_keys {' '.join(keys)}: each key becomes a file name; none may repeat or hold a '/'.")
    paths = [Path(name) for name in inputs]
    for path in paths:
        if not path.is_file():
            raise DataError(f"input {path} is not a file. Fix: name files, of {', '.join(JSON_KINDS + TXT_KINDS)}.")
        if not path.name.endswith(JSON_KINDS + TXT_KINDS):
            raise DataError(f"input {path} is of no known kind. Fix: one of {', '.join(JSON_KINDS + TXT_KINDS)}.")
        if path.name.endswith(TXT_KINDS) and list(keys) != ["text"]:
            raise DataError(f"input {path} has no keys, but json_keys is {' '.join(keys)}. Fix: leave --json-keys out.")
    return paths


def read_lines(paths: Sequence[Path]) -> Iterator[Lines]:
    """All lines of all files in order, about BATCH_BYTES at a time."""
    before = 0
    for path in paths:
        try:
            with open(path, "rb") as raw:
                # GzipFile is made to be used as a file, though its type is another.
                file = cast("IO[bytes]", gzip.GzipFile(fileobj=raw)) if path.suffix == ".gz" else raw
                first, lines, size = 1, [], 0
                for line in file:
                    lines.append(line)
                    size += len(line)
                    if size >= BATCH_BYTES:
                        yield Lines(path, first, lines, size, before + raw.tell())
                        first, lines, size = first + len(lines), [], 0
                if lines:
                    yield Lines(path, first, lines, size, before + raw.tell())
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(f"input {path} is not whole gzip ({error}). Fix: make or fetch it again.") from None
        except OSError as error:
            raise DataError(f"input {path} cannot be read ({error.strerror}). Fix: see to the file.") from None
        before += path.stat().st_size


def parse_lines(batch: Lines, keys: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The texts of each document, one for each of `keys`; blank lines are no documents. Raises DataError."""
    parse = _parse_txt if batch.path.name.endswith(TXT_KINDS) else _parse_json
    for number, line in enumerate(batch.lines, start=batch.first):
        if number == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
        if not line.strip():
            continue
        try:
            yield parse(line.decode("utf-8"), keys)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{batch.path}, line {number}: not UTF-8 ({error.reason}, byte {error.start + 1} of the line). "
                "Fix: write the file in UTF-8."
            ) from None
        except DataError as error:
            raise DataError(f"{batch.path}, line {number}: {error}") from None


def read_documents(paths: Sequence[Path], keys: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The texts of each document of all files, in order."""
    for batch in read_lines(paths):
        yield from parse_lines(batch, keys)


def _parse_txt(line: str, keys: Sequence[str]) -> tuple[str, ...]:
    # Step by step as the published preprocessing does it.
    text = line.removeprefix("<n>").strip().replace("\r", "").replace("\u2583", "")
    return (text.replace("[SEP]", "<sep>").replace("<n>", "\n"),)


def _parse_json(line: str, keys: Sequence[str]) -> tuple[str, ...]:
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"not JSON ({error.msg}, character {error.pos + 1} of the line). Fix: mend the line.") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets in thousands of brackets
        raise DataError(f"JSON that cannot be read ({error}). Fix: mend the line.") from None
    if not isinstance(found, dict):
        raise DataError(f"not a JSON object but a {type(found).__name__}. Fix: write {{{keys[0]!r}: ...}} a line.")
    return tuple(_text_of(found, key) for key in keys)


def _text_of(found: dict[str, Any], key: str) -> str:
    if key not in found:
        raise DataError(f"no key {key!r}; its keys are {', '.join(found) or 'none'}. Fix: --json-keys KEY.")
    text = found[key]
    if not isinstance(text, str):
        raise DataError(f"key {key!r} holds a {type(text).__name__}, not text. Fix: --json-keys KEY, or mend the line.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(
            f"key {key!r} holds half a surrogate pair, which is no character. Fix: mend the line."
        ) from None
    return text

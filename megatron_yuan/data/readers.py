"""Documents from files, in order: jsonl and jsonl.gz (an object a line), and the published txt form (a text a line).

In txt, `<n>` stands for a line break and `[SEP]` for `<sep>`. Errors name file and line.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from megatron_yuan.errors import DataError

KINDS = (".jsonl", ".jsonl.gz", ".json", ".txt", ".txt.gz")


@dataclass(frozen=True)
class Document:
    """One document: its text under each key, and how many bytes of input it was."""

    texts: tuple[str, ...]
    input_bytes: int


def check_inputs(inputs: Sequence[str]) -> list[Path]:
    """The input files, each of a known kind and there. Raises DataError otherwise."""
    paths = [Path(name) for name in inputs]
    for path in paths:
        if not path.is_file():
            raise DataError(f"input {path} does not exist or is no file. Fix: name files of {', '.join(KINDS)}.")
        if not path.name.endswith(KINDS):
            raise DataError(f"input {path} is of no known kind. Fix: name files of {', '.join(KINDS)}.")
    return paths


def read_documents(paths: Sequence[Path], keys: Sequence[str]) -> Iterator[Document]:
    """Each document of `paths`; `keys` are the text keys of a jsonl object (txt has one text, whatever the keys)."""
    for path in paths:
        parse = _parse_txt if ".txt" in path.suffixes else _parse_json
        with _open(path) as file:
            for number, line in enumerate(_lines(file, path), start=1):
                if not line.strip():
                    continue
                try:
                    text = line.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{path}, line {number}: not UTF-8 ({error.reason} at byte {error.start})."
                    ) from None
                yield Document(parse(text, keys, path, number), len(line))


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")


def _lines(file: IO[bytes], path: Path) -> Iterator[bytes]:
    try:
        yield from file
    except (gzip.BadGzipFile, EOFError) as error:
        raise DataError(f"input {path} is damaged: {error}. Fix: unpack or fetch it again.") from None


def _parse_txt(text: str, keys: Sequence[str], path: Path, number: int) -> tuple[str, ...]:
    text = text.strip().removeprefix("<n>").replace("[SEP]", "<sep>").replace("<n>", "\n")
    return (text,) * len(keys)


def _parse_json(text: str, keys: Sequence[str], path: Path, number: int) -> tuple[str, ...]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {number}: not JSON ({error.msg} at character {error.pos}).") from None
    except RecursionError:
        raise DataError(f"{path}, line {number}: JSON nested too deep.") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}, line {number}: not a JSON object but a {type(found).__name__}.")
    for key in keys:
        if not isinstance(found.get(key), str):
            have = ", ".join(found) or "none"
            raise DataError(f"{path}, line {number}: no text under key '{key}' (keys: {have}). Fix: --json-keys KEY.")
    try:
        for key in keys:
            found[key].encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{path}, line {number}: key '{key}' holds half a surrogate pair, which is no text.") from None
    return tuple(found[key] for key in keys)

"""From rows to texts, or to what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_yuan.data.inputs import find_inputs
from megatron_yuan.data.parse import read_documents
from megatron_yuan.errors import DataError


def read(path: Path, *keys: str) -> list[tuple[str, ...]]:
    return list(read_documents(find_inputs([path], keys or ("text",)), keys or ("text",)))


def test_txt_is_read_by_the_published_steps(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("<n>问题[SEP]第一行<n>第二行▃ \r\n\n  two  words  \n", encoding="utf-8", newline="")
    assert read(path) == [("问题<sep>第一行\n第二行",), ("two  words",)]


def test_several_keys_come_in_the_order_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "1", "b": "2"}\n', encoding="utf-8")
    assert read(path, "b", "a") == [("2", "1")]


def test_blank_lines_and_a_byte_order_mark_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "x"}\r\n\n   \n\xe3\x80\x80\n{"text": "y"}')
    assert read(path) == [("x",), ("y",)]


def test_line_separators_of_unicode_do_not_end_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x\u2028y\x85z"}\n', encoding="utf-8")
    assert read(path) == [("x\u2028y\x85z",)]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"text": "\xff"}', "line 2: not UTF-8"),
        (b'{"text": "x"', "line 2: not JSON"),
        (b"[" * 100_000, "line 2: "),
        (b'{"text": ' + b"1" * 5000 + b"}", "line 2: "),
        (b'["text"]', "line 2: not a JSON object but a list"),
        (b'{"body": "x"}', "line 2: no key 'text'; its keys are 'body'.*--json-keys"),
        (b'{"text": null}', "line 2: key 'text' holds a NoneType"),
        (b'{"text": "\\ud83d"}', "line 2: key 'text' holds half a surrogate pair"),
    ],
)
def test_a_bad_line_is_named_with_its_file(tmp_path: Path, line: bytes, says: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(DataError, match=rf"bad\.jsonl, {says}"):
        read(path)

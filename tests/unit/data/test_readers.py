from __future__ import annotations

import gzip

import pytest

from megatron_yuan.data import readers
from megatron_yuan.data.readers import check_inputs, read_documents, read_lines
from megatron_yuan.errors import DataError


def read(path, *keys):
    return list(read_documents([path], keys or ("text",)))


def test_txt_is_read_by_the_published_steps(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("<n>问题[SEP]第一行<n>第二行▃ \r\n\n  two  words  \n", encoding="utf-8", newline="")
    assert read(path) == [("问题<sep>第一行\n第二行",), ("two  words",)]


def test_several_keys_come_in_the_order_asked_for(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "1", "b": "2"}\n', encoding="utf-8")
    assert read(path, "b", "a") == [("2", "1")]


def test_blank_lines_and_a_byte_order_mark_are_no_text(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "x"}\r\n\n   \n{"text": "y"}')
    assert read(path) == [("x",), ("y",)]


def test_line_separators_of_unicode_do_not_end_a_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x\u2028y\x85z"}\n', encoding="utf-8")
    assert read(path) == [("x\u2028y\x85z",)]


def test_small_batches_give_the_same_lines_and_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "BATCH_BYTES", 10)
    path, packed = tmp_path / "a.txt", tmp_path / "b.txt.gz"
    path.write_bytes(b"".join(b"line %d\n" % i for i in range(1, 50)))
    packed.write_bytes(gzip.compress(path.read_bytes()))
    for batch in (batches := list(read_lines([path, packed]))):
        assert [line.decode() for line in batch.lines] == [
            f"line {i}\n" for i in range(batch.first, batch.first + len(batch.lines))
        ]
    assert sum(batch.size for batch in batches) == 2 * path.stat().st_size
    assert batches[-1].position == path.stat().st_size + packed.stat().st_size


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"text": "\xff"}', "line 2: not UTF-8"),
        (b'{"text": "x"', "line 2: not JSON"),
        (b"[" * 100_000, "line 2: "),
        (b'{"text": ' + b"1" * 5000 + b"}", "line 2: "),
        (b'["text"]', "line 2: not a JSON object but a list"),
        (b'{"body": "x"}', "line 2: no key 'text'; its keys are body.*--json-keys"),
        (b'{"text": null}', "line 2: key 'text' holds a NoneType"),
        (b'{"text": "\\ud83d"}', "line 2: key 'text' holds half a surrogate pair"),
    ],
)
def test_a_bad_line_is_named_with_its_file(tmp_path, line, says):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(DataError, match=rf"bad\.jsonl, {says}"):
        read(path)


@pytest.mark.parametrize("damage", [lambda data: data[:-12], lambda data: b"plain", lambda data: data[:20] + data[30:]])
def test_damaged_gzip_is_named(tmp_path, damage):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(damage(gzip.compress(b"some text that is long enough\n" * 100)))
    with pytest.raises(DataError, match=r"a\.txt\.gz is not whole gzip"):
        read(path)


@pytest.mark.parametrize("name", ["missing.jsonl", "folder.jsonl", "table.csv"])
def test_input_of_no_known_kind_is_refused(tmp_path, name):
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "table.csv").write_text("x")
    with pytest.raises(DataError, match=rf"{name} is .*Fix: "):
        check_inputs([tmp_path / name], ["text"])


def test_txt_has_no_keys_to_choose(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match="json_keys is body"):
        check_inputs([tmp_path / "a.txt"], ["body"])

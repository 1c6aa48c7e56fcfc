"""Rows of files, packed or not, in batches that are always the same."""

from __future__ import annotations

import gzip
import hashlib
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_yuan.data import readers
from megatron_yuan.data.inputs import find_inputs
from megatron_yuan.data.parse import read_documents
from megatron_yuan.data.readers import Batch, read_batches
from megatron_yuan.errors import DataError

TEXT = b"".join(b'{"text": "some text of line %d, long enough"}\n' % i for i in range(300))


def zst(data: bytes) -> bytes:
    return pytest.importorskip("zstandard").ZstdCompressor(write_checksum=True).compress(data)


def batches(*paths: Path) -> list[Batch]:
    return list(read_batches(find_inputs(paths, ["text"]), ["text"]))


@pytest.mark.parametrize(("ending", "pack"), [("", bytes), (".gz", gzip.compress), (".zst", zst)])
def test_batches_hold_every_line_with_its_number_and_tell_what_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, pack: Callable[[bytes], bytes]
) -> None:
    monkeypatch.setattr(readers, "BATCH_BYTES", 1000)
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(pack(TEXT))
    found = batches(path)
    assert len(found) > 5 and b"".join(row for batch in found for row in batch.rows) == TEXT
    assert [batch.first for batch in found] == [1 + sum(len(b.rows) for b in found[:i]) for i in range(len(found))]
    assert [batch.index for batch in found] == list(range(len(found)))
    assert (found[-1].taken, found[-1].last) == (path.stat().st_size, True)
    assert found[-1].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert batches(path) == found


def test_frames_and_members_that_follow_each_other_are_one_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(TEXT[:5000]) + gzip.compress(TEXT[5000:]))
    (tmp_path / "b.jsonl.zst").write_bytes(zst(TEXT[:5000]) + zst(b"") + zst(TEXT[5000:]))
    for name in ("a.jsonl.gz", "b.jsonl.zst"):
        assert b"".join(row for batch in batches(tmp_path / name) for row in batch.rows) == TEXT


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-12], lambda data: b"plain", lambda data: data[:20] + data[30:], lambda data: b""]
)
@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".zst", zst)])
def test_a_damaged_archive_is_named(
    tmp_path: Path, damage: Callable[[bytes], bytes], ending: str, pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / f"a.txt{ending}"
    path.write_bytes(damage(pack(TEXT)))
    with pytest.raises(DataError, match=rf"a\.txt\{ending} is not whole (gzip|zstd)"):
        batches(path)


def table(path: Path, **columns: object) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path, row_group_size=7)
    return path


def test_parquet_is_read_row_by_row(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", other=[1] * 20, body=[f"文本 {i}" for i in range(20)])
    found = list(read_documents(find_inputs([path], ["body"]), ["body"]))
    assert found == [(f"文本 {i}",) for i in range(20)]


def test_what_is_taken_of_parquet_grows_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "BATCH_BYTES", 1000)
    path = table(tmp_path / "a.parquet", text=["ten bytes." for _ in range(3000)])
    found, size = batches(path), path.stat().st_size
    assert 0 < found[0].taken < size / 5 and abs(found[len(found) // 2].taken / size - 0.5) < 0.1
    assert (found[-1].taken, found[-1].last) == (size, True)
    assert found[-1].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_column_that_is_not_there_or_holds_no_text_is_named(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", number=[1, 2])
    with pytest.raises(DataError, match="has no column 'text'; its columns are number"):
        batches(path)
    with pytest.raises(DataError, match="column 'number' holds int64, not text"):
        list(read_batches(find_inputs([path], ["number"]), ["number"]))


def test_two_columns_of_the_keys_name_are_refused_as_such(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 2, ["text", "text"]), path)
    with pytest.raises(DataError, match="has 2 columns 'text'; its columns are text, text"):
        batches(path)


def test_a_row_without_text_is_named_by_its_number(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", text=["x", None])
    with pytest.raises(DataError, match=r"a\.parquet, row 2: column 'text' holds NoneType"):
        list(read_documents(find_inputs([path], ["text"]), ["text"]))


def test_random_damage_is_an_error_in_words_or_text_and_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    draw = random.Random(7)
    whole = {
        "a.jsonl.gz": gzip.compress(TEXT),
        "a.jsonl.zst": zst(TEXT),
        "a.parquet": table(tmp_path / "whole.parquet", text=[f"text {i}" for i in range(50)]).read_bytes(),
        "a.jsonl": TEXT,
    }
    for name, data in whole.items():
        for _ in range(25):
            damaged = bytearray(data)
            for _ in range(draw.choice([1, 3, 10])):
                damaged[draw.randrange(len(damaged))] = draw.randrange(256)
            if draw.random() < 0.3:
                del damaged[draw.randrange(len(damaged)) :]
            (tmp_path / name).write_bytes(damaged)
            try:
                for _ in read_documents(find_inputs([tmp_path / name], ["text"]), ["text"]):
                    pass
            except DataError as error:
                assert name in str(error)


def test_text_is_read_from_columns_of_views_too(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    path = table(tmp_path / "a.parquet", text=pyarrow.array(["一", "two"], pyarrow.string_view()))
    assert list(read_documents(find_inputs([path], ["text"]), ["text"])) == [("一",), ("two",)]


def test_little_that_unpacks_to_much_is_never_in_memory_whole(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / "a.jsonl.zst"
    packer = pytest.importorskip("zstandard").ZstdCompressor().compressobj()
    with open(path, "wb") as file:
        for _ in range(10):  # 100 MB in 20 KB, all of which is read from the disk in one go
            file.write(packer.compress(b'{"text": "the same line, again and again"}\n' * 233_000))
        file.write(packer.flush())
    assert path.stat().st_size < readers.CHUNK_BYTES
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (first, *_) = [batch.first for batch in read_batches(find_inputs([path], ["text"]), ["text"]) if batch.index < 2]
    assert first == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60 * 1024


def test_a_table_of_one_row_group_is_never_in_memory_whole(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    columns = pyarrow.schema([("text", pyarrow.string())])
    with parquet.ParquetWriter(path, columns, compression="none", use_dictionary=False) as writer:
        writer.write_table(pyarrow.table({"text": ["x" * 100_000] * 1000}), row_group_size=1000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert sum(batch.size for batch in read_batches(find_inputs([path], ["text"]), ["text"])) == 100_000_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60 * 1024

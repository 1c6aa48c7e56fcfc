from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from megatron_yuan.data import pair, readers
from megatron_yuan.data.digest import sha256_of
from megatron_yuan.data.encode import smallest_dtype
from megatron_yuan.data.passport import read_passport
from megatron_yuan.data.preprocess import Progress, preprocess
from megatron_yuan.errors import DataError
from megatron_yuan.mcore.indexed import IndexedDataset
from tests.unit.data.conftest import make_texts, write_jsonl

TOOL = Path(__file__).resolve().parents[3] / "tools" / "preprocess_data.py"
ENDINGS = (".bin", ".idx", ".json")


def documents(prefix: Path) -> list[list[int]]:
    return [ids.tolist() for ids in IndexedDataset(str(prefix))]


def test_megatron_reads_back_every_document_in_order(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "BATCH_BYTES", 1000)
    texts = make_texts(1, 50)
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(write_jsonl(tmp_path / "b.jsonl", texts[30:]).read_bytes()))
    preprocess([write_jsonl(tmp_path / "a.jsonl", texts[:30]), packed], tmp_path / "out", tokenizer, append_eod=True)
    assert documents(tmp_path / "out_text_document") == [[*tokenizer.encode(text), tokenizer.eod_id] for text in texts]
    assert IndexedDataset(str(tmp_path / "out_text_document")).document_indices.tolist() == list(range(51))


def test_without_append_eod_nothing_ends_a_document(tokenizer, tmp_path):
    preprocess([write_jsonl(tmp_path / "a.jsonl", ["一 apple", "x"])], tmp_path / "out", tokenizer, append_eod=False)
    assert documents(tmp_path / "out_text_document") == [tokenizer.encode("一 apple"), tokenizer.encode("x")]


def test_the_bytes_are_the_same_for_any_number_of_workers(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "BATCH_BYTES", 2000)
    path = write_jsonl(tmp_path / "a.jsonl", make_texts(2, 100))
    for workers in (1, 3):
        preprocess([path], tmp_path / str(workers), tokenizer, append_eod=True, workers=workers)
    for ending in ENDINGS:
        one, three = (tmp_path / f"{workers}_text_document{ending}" for workers in (1, 3))
        assert one.read_bytes() == three.read_bytes(), ending


def test_each_key_gets_files_of_its_own(tokenizer, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"title": "one", "body": "seven pears"}\n{"title": "two", "body": "coins"}\n', encoding="utf-8")
    titles, bodies = preprocess([path], tmp_path / "out", tokenizer, append_eod=False, keys=["title", "body"])
    assert documents(tmp_path / "out_title_document") == [tokenizer.encode(text) for text in ("one", "two")]
    assert documents(tmp_path / "out_body_document") == [tokenizer.encode(text) for text in ("seven pears", "coins")]
    assert (titles.json_key, bodies.json_key, titles.json_keys) == ("title", "body", ["title", "body"])


def test_progress_ends_with_all_bytes_and_documents(tokenizer, tmp_path):
    seen: list[Progress] = []
    path = write_jsonl(tmp_path / "a.jsonl", ["one", "two"])
    preprocess([path], tmp_path / "out", tokenizer, append_eod=True, report=seen.append)
    assert seen[-1].documents == 2 and seen[-1].tokens == sum(map(len, documents(tmp_path / "out_text_document")))
    assert seen[-1].input_bytes == seen[-1].disk_bytes == seen[-1].disk_bytes_total == path.stat().st_size


@pytest.mark.parametrize(("vocabulary", "dtype"), [(400, np.uint16), (65_499, np.uint16), (65_500, np.int32)])
def test_ids_are_as_small_as_megatron_makes_them(vocabulary, dtype):
    from megatron.core.datasets.indexed_dataset import DType

    assert smallest_dtype(vocabulary) == dtype == DType.optimal_dtype(vocabulary)


def test_the_passport_tells_what_the_pair_is(tokenizer, tmp_path):
    (passport,) = preprocess([write_jsonl(tmp_path / "a.jsonl", make_texts(3, 9))], tmp_path / "out", tokenizer, True)
    prefix = tmp_path / "out_text_document"
    assert read_passport(prefix) == passport
    assert (passport.documents, passport.append_eod, passport.vocab_size) == (9, True, 400)
    assert passport.tokens == sum(map(len, documents(prefix)))
    assert (passport.tokenizer_sha256, passport.eod_id) == (tokenizer.sha256, tokenizer.eod_id)
    assert (passport.bin_bytes, passport.bin_sha256) == (2 * passport.tokens, sha256_of(Path(f"{prefix}.bin")))
    assert (passport.idx_bytes, passport.idx_sha256) == (
        Path(f"{prefix}.idx").stat().st_size,
        sha256_of(Path(f"{prefix}.idx")),
    )


def test_data_made_elsewhere_has_no_passport_and_a_damaged_one_is_named(tmp_path):
    assert read_passport(tmp_path / "foreign") is None
    for content in ("{", "[]", '{"version": 1}', '{"version": 99}', '{"version": "1"}'):
        (tmp_path / "out.json").write_text(content)
        with pytest.raises(DataError, match=r"out\.json is damaged or newer"):
            read_passport(tmp_path / "out")


def test_output_that_exists_is_kept_unless_overwrite_is_given(tokenizer, tmp_path):
    first, second = (write_jsonl(tmp_path / f"{text}.jsonl", [text]) for text in ("one", "seven"))
    preprocess([first], tmp_path / "out", tokenizer, append_eod=False)
    with pytest.raises(DataError, match=r"out_text_document\.bin exists already.*--overwrite"):
        preprocess([second], tmp_path / "out", tokenizer, append_eod=False)
    assert documents(tmp_path / "out_text_document") == [tokenizer.encode("one")]
    preprocess([second], tmp_path / "out", tokenizer, append_eod=False, overwrite=True)
    assert documents(tmp_path / "out_text_document") == [tokenizer.encode("seven")]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_broken_line_leaves_older_output_and_nothing_else(tokenizer, tmp_path, monkeypatch, workers):
    monkeypatch.setattr(readers, "BATCH_BYTES", 1000)
    path = write_jsonl(tmp_path / "a.jsonl", make_texts(4, 60))
    preprocess([path], tmp_path / "out", tokenizer, append_eod=True)
    before = {file: file.read_bytes() for file in tmp_path.glob("out*")}
    with open(path, "ab") as file:
        file.write(b'{"text": "\xff"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl, line 61: not UTF-8"):
        preprocess([path], tmp_path / "out", tokenizer, append_eod=True, overwrite=True, workers=workers)
    assert {file: file.read_bytes() for file in tmp_path.iterdir() if file != path} == before


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_input_without_text_is_an_error_and_leaves_nothing(tokenizer, tmp_path, content):
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=r"a\.jsonl holds no text"):
        preprocess([path], tmp_path / "out", tokenizer, append_eod=True)
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_an_error_in_words_and_leaves_nothing(tokenizer, tmp_path, monkeypatch):
    def no_space(path: Path, passport: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(pair, "write_passport", no_space)
    path = write_jsonl(tmp_path / "a.jsonl", ["one"])
    with pytest.raises(DataError, match=r"out cannot be written \(No space left on device\)"):
        preprocess([path], tmp_path / "out", tokenizer, append_eod=True)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("output", ["", ".", "..", "/", "data/"])
def test_an_output_without_a_name_is_refused(tokenizer, corpus, output):
    with pytest.raises(DataError, match=f'output_prefix is "{re.escape(output)}"'):
        preprocess([corpus], output, tokenizer, True)


def test_less_than_one_worker_is_refused(tokenizer, corpus, tmp_path):
    with pytest.raises(DataError, match="workers is 0"):
        preprocess([corpus], tmp_path / "out", tokenizer, append_eod=True, workers=0)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc to find child processes")
def test_killed_outright_it_leaves_no_process_and_no_file_of_the_final_name(tokenizer, tmp_path):
    path = tmp_path / "long.jsonl"
    path.write_text('{"text": "seven pears"}\n' * 400_000)
    flags = ("--output-prefix", tmp_path / "out", "--tokenizer-model", tokenizer.path, "--workers", "2")
    tool = subprocess.Popen([sys.executable, TOOL, "--input", path, *flags], stdout=subprocess.DEVNULL)
    children: set[int] = set()
    deadline = time.monotonic() + 60
    while tool.poll() is None and time.monotonic() < deadline:  # until the first batch is written
        time.sleep(0.02)
        children |= set(map(int, Path(f"/proc/{tool.pid}/task/{tool.pid}/children").read_text().split()))
        if any(file.stat().st_size for file in tmp_path.glob(".out_text_document.bin.*")):
            break
    tool.kill()
    assert tool.wait() == -signal.SIGKILL, "it ended before it could be killed"
    assert len(children) >= 2, "two workers"
    while any(_is_running(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [child for child in children if _is_running(child)]
    assert not list(tmp_path.glob("out_text_document*"))


def _is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def run_tool(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, TOOL, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def test_the_command_line_sums_up_on_a_pipe_and_fails_in_one_line(tokenizer, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ["one", "seven pears"])
    flags = ("--output-prefix", tmp_path / "out", "--tokenizer-model", tokenizer.path, "--append-eod", "--workers", 2)
    done = run_tool("--input", path, *flags)
    assert done.returncode == 0, done.stderr
    assert re.search(r"out_text_document: 2 documents, \d+ tokens", done.stdout)
    assert re.search(r"documents/s, .* MB/s, .* tokens/s\n$", done.stdout)
    assert json.loads((tmp_path / "out_text_document.json").read_text())["documents"] == 2

    done = run_tool("--input", path, *flags)
    assert done.returncode == 2
    assert done.stderr.startswith("error: output ") and "Traceback" not in done.stderr

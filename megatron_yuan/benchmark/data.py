"""Preprocessing beside SentencePiece alone, and beside one document at a time as Megatron-LM's tool works.

Ours is what a user starts: from files on the disk to files on the disk, with its start and its hashes. SentencePiece
has all texts in memory already, on as many of its own threads. The third reads a line, parses it, encodes it and adds
it to megatron-core's builder, through `Pool.imap` in chunks of 32, as Megatron-LM's tools/preprocess_data.py does.
"""

from __future__ import annotations

import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from megatron_yuan.data.encode import smallest_dtype
from megatron_yuan.data.inputs import Input, find_inputs
from megatron_yuan.data.parse import parse_line, read_documents
from megatron_yuan.data.readers import read_batches
from megatron_yuan.data.tokenizer import Tokenizer
from megatron_yuan.errors import DataError
from megatron_yuan.mcore.indexed import IndexedDatasetBuilder

WORKERS = (1, 2)
CHUNK = 32
TOOL = """
import sys
from megatron_yuan.data.preprocess import preprocess
from megatron_yuan.data.tokenizer import Tokenizer
output, tokenizer, workers, *inputs = sys.argv[1:]
preprocess(inputs, output, Tokenizer(tokenizer), append_eod=True, workers=int(workers))
"""


def report(inputs: Sequence[str], tokenizer_model: str, rounds: int) -> dict[str, Any]:
    """Megabytes of text a second, medians over `rounds`, printed and returned; DataError for input that is none."""
    sources, tokenizer = find_inputs(inputs, ["text"]), Tokenizer(tokenizer_model)
    if any(source.kind != "json" for source in sources):
        raise DataError("input must be .jsonl here, packed or not: what the tool beside ours reads.")
    texts = [text for (text,) in read_documents(sources, ["text"])]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    alone = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.path))
    result: dict[str, Any] = {"megabytes": megabytes, "documents": len(texts), "tokenizer": str(tokenizer_model)}
    print(f"{len(texts):,} documents, {megabytes:.1f} MB of text, a vocabulary of {tokenizer.vocab_size:,}; MB/s:")
    print(f"{'workers, threads':<18}{'ours':>8}{'SentencePiece':>15}{'one by one':>12}{'ours beside them':>20}")
    for workers in WORKERS:
        ways: dict[str, Callable[[], object]] = {
            "ours": lambda workers=workers: _ours(inputs, tokenizer_model, workers),
            "SentencePiece": lambda workers=workers: alone.encode(texts, num_threads=workers),
            "one by one": lambda workers=workers: _one_by_one(sources, tokenizer, workers),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):  # in turn, so that a slow spell hits all alike
            for name, way in ways.items():
                begun = time.perf_counter()
                way()
                seconds[name].append(time.perf_counter() - begun)
        rates = {name: megabytes / statistics.median(each) for name, each in seconds.items()}
        ours, raw, single = rates.values()
        print(
            f"{workers:<18}{ours:>8.2f}{raw:>15.2f}{single:>12.2f}{ours / raw:>12.2f}{ours / single:>8.2f}", flush=True
        )
        result[f"{workers} workers"] = rates
    return result


def _ours(inputs: Sequence[str], tokenizer_model: str, workers: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", TOOL, f"{folder}/ours", tokenizer_model, str(workers), *inputs]
        subprocess.run(command, check=True)


def _one_by_one(sources: Sequence[Input], tokenizer: Tokenizer, workers: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        dtype = smallest_dtype(tokenizer.vocab_size).type
        builder = IndexedDatasetBuilder(str(Path(folder) / "one.bin"), dtype=dtype)
        # Forked, as that tool does it.
        with multiprocessing.get_context("fork").Pool(workers, _start, (tokenizer.path,)) as pool:
            for ids in pool.imap(_encode, _lines(sources), CHUNK):
                builder.add_document(ids, [len(ids)])  # type: ignore[arg-type]  # makes an array of it first thing
        builder.finalize(str(Path(folder) / "one.idx"))


def _lines(sources: Sequence[Input]) -> Iterator[bytes]:
    for batch in read_batches(sources, ["text"]):
        yield from (row for row in batch.rows if isinstance(row, bytes))


_tokenizer: Tokenizer | None = None  # of this process


def _start(tokenizer_model: Path) -> None:
    global _tokenizer
    _tokenizer = Tokenizer(tokenizer_model)


def _encode(line: bytes) -> list[int]:
    assert _tokenizer is not None
    (text,) = parse_line(line, "json", ["text"])
    return [*_tokenizer.encode(text), _tokenizer.eod_id]

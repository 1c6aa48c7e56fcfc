"""Damaged pairs, passports, blend files and index files: each is told in one error, or does no harm; nothing hangs.

A seeded few here; `fuzz(seed, number, folder)` takes as many as one likes.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megatron_yuan.config.schema import DataConfig
from megatron_yuan.data.datasets import build_training_samples, build_validation_samples, open_sources
from megatron_yuan.data.preprocess import preprocess
from megatron_yuan.data.tokenizer import Tokenizer
from megatron_yuan.data.train_tokenizer import train_tokenizer
from megatron_yuan.data.verify import verify_sources
from megatron_yuan.errors import YuanError
from tests.unit.data.conftest import make_texts, write_jsonl

PATIENCE_SECONDS = 20
BLEND = """sets:
- {name: one, prefix: one_text_document, weight: 0.75, language: zh, fim: true, max_epochs: 3}
- {name: two, prefix: two_text_document, weight: 0.25, language: en}
valid:
- {prefix: three_text_document}
test: []
"""
SCALARS = (
    *("nan", ".nan", ".inf", "-1", "0", "1e400", "1e-400", "-.5", "''", "null", "~", "[]", "{}", "[1, 2]", "{a: 1}"),
    *("true", "2026-01-01", "0x7fffffffffffffffffff", "9" * 400, "*a", "&a b", "!!python/object:os.system x", "'\\0'"),
    *("one_text_document", "'one_text_document/'", "/", ".", "..", "~nobody/x", "!!binary aGk=", "? x", "1_0", "\t"),
    *("'../data/one_text_document'", "é\u2028", "- - -", "<<: *x", "\ud800".encode("utf-8", "surrogatepass").hex()),
)


class Set:
    """A sound blend of three sets in a folder, and a start of a run on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        texts = write_jsonl(folder / "t.jsonl", make_texts(0, 300))
        self.tokenizer = Tokenizer(train_tokenizer([texts], folder / "tokenizer.model", 400))
        for number, name in enumerate(("one", "two", "three"), 1):
            talk = [f"{text[:40]}<sep>{text[40:90]}." for text in make_texts(number, 40)]
            preprocess([write_jsonl(folder / f"{name}.jsonl", talk)], folder / name, self.tokenizer, append_eod=True)
        (folder / "blend.yaml").write_text(BLEND)
        self.config = DataConfig(
            data_args_path=str(folder / "blend.yaml"),
            tokenizer_model=str(self.tokenizer.path),
            data_cache_path=str(folder / "cache"),
            seq_length=32,
            fim_rate=0.0,
        )

    def start(self, sft: bool) -> list[list[int]]:
        """All that a run does with its data before the first step, and some samples."""
        config = replace(self.config, sft=sft)
        sources = open_sources(config, 400)
        verify_sources(sources, config, 400, lambda text: None)
        train = build_training_samples(sources, config, 40, seed=1)
        held_out = build_validation_samples(sources, config, seed=1)
        rows = [train[i].tokens.tolist() for i in range(40)]
        return rows + [samples[0].tokens.tolist() for samples in held_out.values()]


def damage(data: bytes, source: random.Random) -> bytes:
    """`data` with one thing wrong."""
    place, length = source.randrange(len(data) + 1), source.choice((1, 2, 4, 8, 16, 100, 5000))
    kind = source.choice(("flip", "cut", "grow", "zero", "noise", "number", "drop", "double", "empty", "swap"))
    if kind == "flip" and place < len(data):
        return data[:place] + bytes([data[place] ^ (1 << source.randrange(8))]) + data[place + 1 :]
    if kind == "number":
        place = source.choice((9, 17, 18, 26, 34, max(0, 34 + 4 * source.randrange(300)), place))
        value = source.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1))
        return data[:place] + value.to_bytes(8, "little") + data[place + 8 :]
    return {
        "cut": data[:place],
        "grow": data + source.randbytes(length),
        "zero": data[:place] + bytes(length) + data[place + length :],
        "noise": data[:place] + source.randbytes(length) + data[place + length :],
        "drop": data[:place] + data[place + length :],
        "double": data[:place] + data[place : place + length] * 2 + data[place + length :],
        "empty": b"",
        "swap": data[place:] + data[:place],
    }.get(kind, data)


def damage_words(data: bytes, source: random.Random) -> bytes:
    """A text with one value, or one mark, that is another."""
    words = data.decode().replace(",", " ,").replace("}", " }").replace("\n", "\n ").split(" ")
    at = source.randrange(len(words))
    if source.random() < 0.7:
        values = [i for i, word in enumerate(words) if i and words[i - 1].endswith(":")]
        at = source.choice(values) if values else at
        words[at] = source.choice(SCALARS)
    else:
        words[at] = source.choice((*SCALARS, "", "}", "{", ":", "-", "#", "sets:", '"'))
    return " ".join(words).replace("\n ", "\n").encode("utf-8", "surrogatepass")


@contextmanager
def within_patience() -> Iterator[None]:
    def give_up(*_: object) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(PATIENCE_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fuzz(seed: int, number: int, folder: Path, report: Callable[[str], None] = lambda line: None) -> Counter[str]:
    """`number` damages; counts how each kind of file's ended. AssertionError where one did not end well."""
    sound = Set(folder)
    before = {sft: sound.start(sft) for sft in (False, True)}
    kept = folder.with_name(folder.name + "-kept")
    shutil.copytree(folder, kept)
    source, counts = random.Random(seed), Counter[str]()
    for turn in range(number):
        kind = source.choice((".idx", ".bin", ".json", "blend.yaml", "cache", "stamps"))
        files = {
            "blend.yaml": [folder / "blend.yaml"],
            "cache": sorted(f for f in (folder / "cache").iterdir() if f.is_file()),
            "stamps": sorted((folder / "cache" / "stamps").iterdir()),
        }.get(kind) or sorted(folder.glob(f"*_document{kind}"))
        file, sft = source.choice(files), source.random() < 0.5
        data = file.read_bytes()
        textual = kind in ("blend.yaml", ".json") and source.random() < 0.7
        damaged = (damage_words if textual else damage)(data, source)
        passport = file.with_suffix(".json")
        stranger = kind in (".idx", ".bin") and source.random() < 0.5
        if stranger:
            passport.unlink()
        file.write_bytes(damaged)
        what = f"seed {seed}, turn {turn}: {file.name}, {len(data)} -> {len(damaged)} bytes, sft {sft}"
        try:
            with within_patience():
                rows = sound.start(sft)
            if kind in ("cache", "stamps") or damaged == data:
                assert rows == before[sft], what
            if kind == ".json":
                assert json.loads(damaged) == json.loads(data), what
            ended = "no harm"
        except YuanError as error:
            ended = "told"
            assert kind not in ("cache", "stamps"), f"{what}: {error}"
            assert 1 <= len(str(error).splitlines()) <= 2 and len(str(error)) < 1500, f"{what}: {error}"
            report(f"{what}: {error}")
        except Exception as error:
            raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
        counts[f"{kind}{' without passport' if stranger else ''}: {ended}"] += 1
        file.write_bytes(data)
        if stranger:
            passport.write_bytes((kept / passport.name).read_bytes())
    return counts


@pytest.mark.parametrize("seed", range(3))
def test_damaged_files_are_told_or_rebuilt_and_nothing_breaks(seed: int, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    counts = fuzz(seed, 40, tmp_path / "data")
    assert sum(counts.values()) == 40 and any(name.endswith("told") for name in counts)


def test_a_fuzz_is_the_same_for_the_same_seed() -> None:
    data = np.arange(100, dtype=np.uint8).tobytes()
    assert [damage(data, random.Random(s)) for s in range(9)] == [damage(data, random.Random(s)) for s in range(9)]

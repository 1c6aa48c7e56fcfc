"""tools/inspect_data.py as a user calls it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from megatron_yuan.data.preprocess import preprocess
from megatron_yuan.data.tokenizer import Tokenizer
from megatron_yuan.data.train_tokenizer import train_tokenizer
from tests.unit.data.conftest import make_texts, write_jsonl

ROOT = Path(__file__).resolve().parents[3]


def inspect(*arguments: str | Path) -> tuple[int, str, str]:
    command = [sys.executable, ROOT / "tools" / "inspect_data.py", *map(str, arguments)]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60
    )
    return done.returncode, done.stdout, done.stderr


def test_a_set_is_looked_at_in_every_way(tmp_path: Path) -> None:
    corpus = write_jsonl(tmp_path / "t.jsonl", make_texts(0, 100))
    model = train_tokenizer([corpus], tmp_path / "tokenizer.model", 380)
    preprocess([corpus], tmp_path / "t", Tokenizer(model), append_eod=True)
    pair = tmp_path / "t_text_document"
    code, out, error = inspect("document", pair, 3, "--tokenizer-model", model)
    assert code == 0 and out.splitlines()[0].startswith("document 3 of 100: ") and "<eod>" in out, error
    code, out, _ = inspect("document", pair, 3, "--ids")
    assert code == 0 and out.split()[-1].isdigit()
    code, out, _ = inspect("find", pair, "cat", "--tokenizer-model", model, "--limit", 2)
    assert code == 0 and len(out.splitlines()) == 3 and "cat" in out and "\x1b" not in out
    code, out, _ = inspect("lengths", pair, "--png", tmp_path / "l.png")
    assert code == 0 and (tmp_path / "l.png").is_file() and "quantiles" in out
    code, out, _ = inspect("verify", pair)
    assert code == 0 and "as its passport says" in out


def test_a_document_is_shown_to_the_letter(tmp_path: Path) -> None:
    corpus = write_jsonl(tmp_path / "t.jsonl", make_texts(0, 100))
    model = train_tokenizer([corpus], tmp_path / "tokenizer.model", 380)
    text = "def f():\n\treturn d[:key:]  :smile:\r\n\a[bold]x[/bold]"
    preprocess([write_jsonl(tmp_path / "a.jsonl", [text])], tmp_path / "a", Tokenizer(model), append_eod=False)
    command = [sys.executable, ROOT / "tools" / "inspect_data.py"]
    pair, flags = tmp_path / "a_text_document", ("--tokenizer-model", model)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    out = subprocess.run([*command, "document", pair, "0", *flags], stdout=subprocess.PIPE, env=env, timeout=60).stdout
    assert out.partition(b"\n")[2] == text.encode() + b"\n"
    code, said, _ = inspect("find", pair, "d[:key:]", *flags)
    assert code == 0 and "d[:key:]  :smile:" in said
    code, _, error = inspect("find", pair, os.fsdecode(b"\xff"), *flags)
    assert code == 2 and "not UTF-8" in error


def test_mistakes_are_answered_in_a_sentence(tmp_path: Path) -> None:
    for arguments, words in (
        (("document", tmp_path / "none", 0, "--ids"), "does not exist"),
        (("find", tmp_path / "none", "x"), "--tokenizer-model FILE"),
        (("step", tmp_path, 1), "name a run folder"),
        (("shares", tmp_path / "none"), "name a run folder"),
        (("lengths", tmp_path / "none"), "does not exist"),
        (("step", tmp_path, 1, "--limit", 0), "limit is 0"),
    ):
        code, _, error = inspect(*arguments)
        assert code == 2 and error.startswith("error: ") and words in error and len(error.splitlines()) <= 2, error

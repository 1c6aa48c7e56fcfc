"""A small trained run with a tokenizer, and questions to ask it: what tests of evaluation share."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_yuan.data.preprocess import preprocess
from megatron_yuan.data.tokenizer import Tokenizer
from megatron_yuan.data.train_tokenizer import train_tokenizer
from tests.processes import free_port
from tests.unit.data.conftest import make_texts, write_jsonl

ROOT = Path(__file__).parents[1]
SHAPE = "--preset tiny --num-layers 3 --vocab-size 400 --seq-length 64 --peak-tflops 1 --device cpu"


def write_questions(folder: Path, number: int = 12) -> Path:
    """`number` questions each of ARC-C, MMLU, GSM8K, MATH and HumanEval, in the forms of their published files."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen, texts = random.Random(0), make_texts(7, 5 * number)
    choices = [
        f"{texts[i][:80]}<n>" + "<n>".join(f"{each}.{texts[number + 4 * i + k][:9]}" for k, each in enumerate("ABCD"))
        for i in range(number)
    ]
    choices = [" ".join(each.split()) for each in choices]
    rows = [f"{each}[SEP]{chosen.choice('ABCD')}\n" for each in choices]
    (folder / "arc_challenge.txt").write_text("".join(rows), encoding="utf-8")
    (folder / "mmlu").mkdir()
    for i, subject in enumerate(("law", "logic")):
        (folder / "mmlu" / f"{subject}_test.txt").write_text("".join(rows[i::2]), encoding="utf-8")
    sums = [{"question": f"{i} and {i} pears?", "answer": f"They are {2 * i}.\n#### {2 * i}"} for i in range(number)]
    (folder / "gsm8k.jsonl").write_text("".join(json.dumps(each) + "\n" for each in sums), encoding="utf-8")
    (folder / "math.txt").write_text("".join(f"What is ${i}+1$?[SEP]{i + 1}\n" for i in range(number)))
    program = {
        "task_id": "HumanEval/0",
        "prompt": "def double(x):\n",
        "test": "def check(c):\n    assert c(2) == 4\n",
        "entry_point": "double",
    }
    (folder / "HumanEval.jsonl").write_text(json.dumps(program) + "\n")
    return folder


def write_data(folder: Path) -> tuple[str, Path]:
    """Prefix of a small training set, and its tokenizer."""
    corpus = write_jsonl(folder / "corpus.jsonl", make_texts(0, 300))
    tokenizer = Tokenizer(train_tokenizer([corpus], folder / "tokenizer.model", 400))
    preprocess([corpus], folder / "set", tokenizer, append_eod=True)
    return str(folder / "set_text_document"), Path(tokenizer.path)


def train(folder: Path, save: Path, steps: int, *flags: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
    """The entry as a command, on what `write_data` wrote into `folder`; into the run folder `save`."""
    command = [
        *("pretrain_yuan_moe.py", *SHAPE.split(), "--data-path", str(folder / "set_text_document")),
        *("--tokenizer-model", str(folder / "tokenizer.model"), "--split", "1,0,0", "--train-iters", str(steps)),
        *("--lr-warmup-iters", "0", "--micro-batch-size", "1", "--global-batch-size", "4", "--save", str(save)),
    ]
    return run([*command, *flags], processes)


def run(command: Sequence[Any], processes: int = 1) -> subprocess.CompletedProcess[str]:
    """A script of the project with its arguments, under torchrun where it takes several processes."""
    launcher = [sys.executable]
    if processes > 1:
        port = str(free_port())
        launcher += ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", port]
    script, *arguments = [str(each) for each in command]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*launcher, str(ROOT / script), *arguments], capture_output=True, text=True, timeout=300, env=environment
    )

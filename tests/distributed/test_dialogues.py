"""Instruction data over several processes: rows with much and with little loss count by their tokens, not by rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from megatron_yuan.config.presets import preset
from megatron_yuan.data.preprocess import preprocess
from megatron_yuan.data.tokenizer import Tokenizer
from megatron_yuan.data.train_tokenizer import train_tokenizer
from tests.distributed.training import train
from tests.processes import run_processes
from tests.unit.data.conftest import make_texts, write_jsonl


def test_a_run_on_dialogues_has_the_losses_of_one_process_on_any_layout(tmp_path: Path) -> None:
    words = make_texts(2, 300)
    texts = [f"{words[2 * i]}<sep>{words[2 * i + 1][: 3 + i % 90]}" for i in range(150)]
    corpus = write_jsonl(tmp_path / "chat.jsonl", texts)
    tokenizer = Tokenizer(train_tokenizer([corpus], tmp_path / "tokenizer.model", 400))
    preprocess([corpus], tmp_path / "chat", tokenizer, append_eod=True)
    tiny = preset("tiny")
    alone = replace(
        tiny,
        model=replace(tiny.model, vocab_size=400),
        data=replace(
            tiny.data,
            data_path=(str(tmp_path / "chat_text_document"),),
            tokenizer_model=str(tokenizer.path),
            sft=True,
            seq_length=128,
            split="1,0,0",
        ),
        optimizer=replace(tiny.optimizer, lr_warmup_iters=0),
        training=replace(tiny.training, train_iters=5, micro_batch_size=1, global_batch_size=8, eval_interval=0),
        logging=replace(tiny.logging, peak_tflops=1.0),
    )
    spread = replace(alone, parallel=replace(alone.parallel, pipeline_model_parallel_size=2))
    one, four = run_processes(train, 1, alone)[0], run_processes(train, 4, spread)
    for steps in four:
        np.testing.assert_allclose([s["loss"] for s in steps], [s["loss"] for s in one], rtol=1e-5)
    assert one[-1]["loss"] < one[0]["loss"]

"""A model spread over stages answers as one process does: text, scores, and every layout alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import megatron_yuan
from megatron_yuan.config.fields import with_values
from megatron_yuan.config.schema import Config
from megatron_yuan.inference.sampling import Sampling
from megatron_yuan.inference.scoring import Question, score
from tests.processes import run_processes
from tests.reference import yuan
from tests.reference.published_layout import config_json, published, write_folder

SHAPE = yuan.Shape(
    layers=5, hidden=24, heads=2, head_dim=16, ffn=20, experts=4, chosen=2, vocab=50, rotary_dim=8, tied=True
)
PROMPTS = [[3], [11, 5, 30, 2, 8, 44, 19], [1, 2], [9] * 40]
QUESTIONS = [Question(prompt, [[5], [6, 7, 8]]) for prompt in PROMPTS]


def answers(model: Any) -> Any:
    sampled = Sampling(temperature=1.5, top_p=0.9, seed=3)
    return (
        model.complete(PROMPTS, 6, stop_ids=()),
        model.complete(PROMPTS, 6, sampled, stop_ids=(), use_cache=False),
        score(model, QUESTIONS, batch_size=3),
    )


def answer_as_stage(folder: Path, stages: int, chunk: int) -> Any:
    from megatron_yuan.inference import decoding
    from megatron_yuan.parallel import topology as processes

    decoding.PREFILL_CHUNK = chunk
    topology = processes.start(with_values(Config(), {"pipeline_model_parallel_size": stages, "device": "cpu"}))
    try:
        return answers(megatron_yuan.load(folder, topology=topology))
    finally:
        processes.stop()


@pytest.mark.parametrize(("processes", "stages", "chunk"), [(2, 2, 4096), (3, 3, 7), (4, 2, 7)])
def test_stages_and_replicas_answer_as_one_process_does(
    tmp_path: Path, processes: int, stages: int, chunk: int
) -> None:
    weights = yuan.random_weights(SHAPE)
    folder = write_folder(tmp_path / "hf", published(weights, SHAPE), config_json(SHAPE))
    greedy, sampled, scores = answers(megatron_yuan.load(folder))
    for found in run_processes(answer_as_stage, processes, folder, stages, chunk):
        for mine, alone in zip((*found[0], *found[1]), (*greedy, *sampled), strict=True):
            assert mine.ids == alone.ids
            assert mine.logprobs == pytest.approx(alone.logprobs, abs=1e-5)
        for mine, alone in zip(found[2], scores, strict=True):
            # A sum over many tokens: 53 in float32 has steps of 4e-6, and how products round differs by processor.
            assert [each.logprob for each in mine] == pytest.approx(
                [each.logprob for each in alone], abs=1e-5, rel=5e-7
            )

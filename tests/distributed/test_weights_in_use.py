"""What measures a model while it trains holds the weights in training, at any layout of stages and replicas."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import megatron_yuan
from megatron_yuan.config.presets import preset
from megatron_yuan.config.schema import Config
from megatron_yuan.evaluation.in_training import sharing
from megatron_yuan.inference.scoring import Question, score
from tests.distributed.training import train
from tests.indexed_data import EOD, counting_documents, write_indexed
from tests.processes import run_processes

QUESTIONS = [Question(prompt, [[5], [6, 7, 8]]) for prompt in ([3], [11, 5, 30, 2, 8, 44, 19], [9] * 40)]


def scored(model: Any) -> list[list[float]]:
    return [[each.logprob for each in scores] for scores in score(model, QUESTIONS, batch_size=2)]


def measured(run: Any) -> tuple[list[list[float]], bool]:
    weights = {name: parameter.detach() for name, parameter in run.model.parameters.items()}
    model = sharing(weights, run.config, run.topology)
    copied = [name for name, each in model.named_parameters() if each.data_ptr() != weights.get(name, each).data_ptr()]
    return scored(model), not copied and all(each.requires_grad for each in run.model.parameters.values())


def train_and_measure(config: Config) -> Any:
    return train(config, after=measured)[-1]


@pytest.mark.parametrize(
    ("processes", "stages", "virtual", "layout"), [(1, 1, 1, None), (2, 2, 1, "1,3"), (2, 2, 2, None), (4, 2, 1, None)]
)
def test_scores_in_training_are_those_of_the_checkpoint(
    tmp_path: Path, processes: int, stages: int, virtual: int, layout: str | None
) -> None:
    prefix = write_indexed(tmp_path / "set", counting_documents(0))
    tiny = preset("tiny")
    config = replace(
        tiny,
        data=replace(tiny.data, data_path=(prefix,), split="1,0,0", seq_length=32, eod_id=EOD),
        parallel=replace(
            tiny.parallel,
            pipeline_model_parallel_size=stages,
            virtual_pipeline_model_parallel_size=virtual,
            pipeline_model_parallel_layout=layout,
        ),
        training=replace(tiny.training, train_iters=2, micro_batch_size=1, global_batch_size=4),
        checkpoint=replace(tiny.checkpoint, save=str(tmp_path / "run")),
        logging=replace(tiny.logging, peak_tflops=1.0),
    )
    found = run_processes(train_and_measure, processes, config)
    expected = scored(megatron_yuan.load(tmp_path / "run", "fp32"))
    for scores, shared_and_trainable in found:
        assert shared_and_trainable
        for mine, theirs in zip(scores, expected, strict=True):
            assert mine == pytest.approx(theirs, abs=1e-5)

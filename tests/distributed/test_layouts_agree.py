"""Truth by parity: the same seed and global batch give the same run at any layout of processes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from megatron_yuan.config.presets import preset
from megatron_yuan.config.schema import Config
from tests.distributed.training import train
from tests.indexed_data import EOD, counting_documents, write_indexed
from tests.processes import run_processes

STEPS = 30
LAYOUTS = [(2, 1, 1), (4, 1, 1), (1, 2, 1), (2, 2, 1), (2, 1, 2)]  # stages, replicas, virtual


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    """`tiny` in fp32 over a blend of two sets, with a short sequence."""
    folder = tmp_path_factory.mktemp("data")
    prefixes = [write_indexed(folder / name, counting_documents(i)) for i, name in enumerate(("zh", "en"))]
    tiny = preset("tiny")
    return replace(
        tiny,
        data=replace(
            tiny.data, data_path=("1", prefixes[0], "1", prefixes[1]), split="1,0,0", seq_length=64, eod_id=EOD
        ),
        optimizer=replace(tiny.optimizer, bf16=False, lr_warmup_iters=5),
        training=replace(tiny.training, train_iters=STEPS, micro_batch_size=1, global_batch_size=8),
        logging=replace(tiny.logging, peak_tflops=1.0),
    )


@pytest.fixture(scope="module")
def alone(config) -> list[dict]:
    return run_processes(train, 1, config)[0]


def at(config: Config, stages: int, virtual: int) -> Config:
    layout = replace(config.parallel, pipeline_model_parallel_size=stages, virtual_pipeline_model_parallel_size=virtual)
    return replace(config, parallel=layout)


@pytest.mark.parametrize(("stages", "replicas", "virtual"), LAYOUTS)
def test_every_layout_gives_the_losses_of_one_process(config, alone, stages, replicas, virtual, capsys):
    by_rank = run_processes(train, stages * replicas, at(config, stages, virtual))
    assert all(steps == by_rank[0] for steps in by_rank), "the ranks disagree among themselves"
    ratios = [abs(a["loss"] / b["loss"] - 1) for a, b in zip(by_rank[0], alone, strict=True)]
    with capsys.disabled():
        print(f"\n{stages} x {replicas} x {virtual}: first {ratios[0]:.1e}, worst {max(ratios):.1e}")
    assert ratios[0] <= 1e-6
    # Sums in another order differ by 1e-7; where two experts tie within that, a token takes the other: up to 1e-4.
    assert max(ratios) <= 1e-4
    assert by_rank[0][-1]["loss"] < 0.9 * by_rank[0][0]["loss"], "nothing was learnt, so agreement proves little"


def test_dropout_and_recompute_leave_layouts_in_agreement(config):
    model = replace(config.model, attention_dropout=0.1, hidden_dropout=0.1)
    noisy = replace(config, model=model, training=replace(config.training, train_iters=6))
    quiet = run_processes(train, 1, replace(config, training=noisy.training))[0]
    alone = run_processes(train, 1, noisy)[0]
    recomputed = replace(noisy, parallel=replace(noisy.parallel, recompute_granularity="full"))
    pair = run_processes(train, 2, at(recomputed, 2, 1))[0]
    np.testing.assert_allclose([s["loss"] for s in pair], [s["loss"] for s in alone], rtol=1e-5)
    assert abs(quiet[0]["loss"] / alone[0]["loss"] - 1) > 1e-6, "dropout drew nothing"


def test_an_uneven_layout_and_larger_microbatches_change_nothing(config):
    short = replace(config, training=replace(config.training, train_iters=6))
    alone = run_processes(train, 1, short)[0]
    uneven = replace(short.parallel, pipeline_model_parallel_size=2, pipeline_model_parallel_layout="1,3")
    bigger = replace(short.training, micro_batch_size=4)
    pair = run_processes(train, 2, replace(short, parallel=uneven, training=bigger))[0]
    np.testing.assert_allclose([s["loss"] for s in pair], [s["loss"] for s in alone], rtol=1e-5)


def test_expert_load_counts_every_token_once_under_pipeline_accumulation_and_recompute(config):
    short = replace(config, training=replace(config.training, train_iters=2))
    recomputed = replace(short, parallel=replace(short.parallel, recompute_granularity="full"))
    alone = run_processes(train, 1, short)[0]
    spread = run_processes(train, 4, at(recomputed, 2, 1))[0]
    routed = config.training.global_batch_size * config.data.seq_length * config.model.moe_router_topk
    for steps in (alone, spread):
        assert all(sum(layer) == routed for step in steps for layer in step["load"])
    assert spread[0]["load"] == alone[0]["load"]


def test_each_sets_training_loss_is_the_mean_over_its_own_tokens(config):
    short = replace(config, training=replace(config.training, train_iters=2))
    alone = run_processes(train, 1, short)[0]
    spread = run_processes(train, 4, at(short, 2, 1))[0]
    for one, other in zip(alone, spread, strict=True):
        assert one["losses"].keys() == {"zh", "en"}
        assert other["losses"] == pytest.approx(one["losses"], rel=1e-5)
        # Half of the samples each, so the blend's loss is the mean of the two.
        assert sum(one["losses"].values()) / 2 == pytest.approx(one["loss"], rel=1e-6)
    assert alone[1]["losses"]["zh"] != alone[1]["losses"]["en"]

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from megatron_yuan.config.schema import DataConfig
from megatron_yuan.data.batch import Batch
from megatron_yuan.data.sample import Sample
from megatron_yuan.data.sampler import Microbatches

CONFIG = DataConfig(seq_length=4)


class Counted:
    """Sample i is S + 1 times i; every third has no loss on its last token."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> Sample:
        assert 0 <= index < self.number
        return Sample(np.full(5, index), np.array([1, 1, 1, 1, 0], np.float32) if index % 3 == 0 else None)


def microbatches(replica: int = 0, replicas: int = 1, micro: int = 2, number: int = 1000, **changes) -> Microbatches:
    return Microbatches(Counted(number), replace(CONFIG, **changes), 99, micro, 12, replica, replicas)


def rows(batches) -> list[tuple[int, int, float]]:
    """Of each row: its number, its first token, and its tokens with loss."""
    return [
        (sample, int(batch.tokens[i, 0]), float(batch.loss_mask[i].sum()))
        for batch in batches
        for i, sample in enumerate(batch.sample_ids)
    ]


@pytest.mark.parametrize(("replicas", "micro"), [(1, 2), (2, 2), (3, 2), (6, 2), (2, 1), (4, 3), (1, 12)])
def test_any_number_of_replicas_sees_the_same_global_batch(replicas, micro):
    parts = [microbatches(r, replicas, micro) for r in range(replicas)]
    assert {len(part) for part in parts} == {12 // (micro * replicas)}
    steps = [list(part.step(24)) for part in parts]
    # Microbatch m of all replicas, then m + 1: together they are the global batch in order.
    found = rows(itertools.chain.from_iterable(zip(*steps, strict=True)))
    assert found == [(i, i, 3.0 if i % 3 == 0 else 4.0) for i in range(24, 36)]


def test_a_resumed_run_goes_on_as_the_unbroken_one():
    unbroken, resumed = microbatches(1, 2), microbatches(1, 2)
    steps = [rows(unbroken.step(consumed)) for consumed in range(0, 60, 12)]
    assert [rows(resumed.step(consumed)) for consumed in (36, 48)] == steps[3:]


def test_steps_may_be_asked_for_in_any_order():
    some = microbatches()
    first, second = rows(some.step(0)), rows(some.step(12))
    assert rows(some.step(12)) == second
    assert rows(some.step(0)) == first


def test_past_the_end_samples_have_no_loss():
    found = rows(microbatches(number=7).step(0))
    assert [loss for _, _, loss in found] == [3, 4, 4, 3, 4, 4, 3, 0, 0, 0, 0, 0]
    assert [sample for sample, _, _ in found] == list(range(12)), "and still a number of their own"
    assert [token for _, token, _ in found] == [*range(7), *range(5)]


def test_workers_bring_the_same_batches():
    here, there = microbatches(), microbatches(num_workers=2)
    for consumed in (0, 12, 24):
        for one, other in zip(here.step(consumed), there.step(consumed), strict=True):
            assert_equal(one, other)


def assert_equal(one: Batch, other: Batch) -> None:
    assert one.sample_ids == other.sample_ids
    for name in ("tokens", "labels", "loss_mask", "position_ids"):
        assert getattr(one, name).equal(getattr(other, name)), name


def test_documents_are_bounded_as_the_config_says():
    bounded = Microbatches(Counted(9), replace(CONFIG, reset_attention_mask=True), 3, 1, 4, 0, 1)
    starts = [batch.document_start for batch in bounded.step(0)]
    assert starts[0] is not None and starts[0].tolist() == [[0, 0, 0, 0]]
    assert starts[3] is not None and starts[3].tolist() == [[0, 1, 2, 3]], "sample 3 is nothing but <eod>"

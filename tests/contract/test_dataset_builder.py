"""What this project adds to megatron-core's dataset builder, and that the builder still needs and takes it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist

from megatron_yuan.mcore import datasets as door
from megatron_yuan.mcore.datasets import build_split
from tests.indexed_data import EOD, counting_documents, write_indexed
from tests.processes import run_processes

LENGTH = 16


def build(folder: Path, names: str = "ab", weights: tuple[float, ...] = (0.7, 0.3), num_samples: int = 50):
    prefixes = [str(folder / name) for name in names]
    contents = {prefix: "" for prefix in prefixes}
    blend = prefixes, list(weights)
    samples = build_split(blend, "9,1,0", 0, num_samples, LENGTH, 1, EOD, str(folder / "cache"), contents)
    assert samples is not None
    return samples


def digest(samples) -> str:
    return hashlib.sha256(b"".join(samples[i]["tokens"].tobytes() for i in range(len(samples)))).hexdigest()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, name in enumerate("abcd"):
        write_indexed(tmp_path / name, counting_documents(i, 12, longest=40))
    return tmp_path


@pytest.fixture
def alone():
    assert not dist.is_initialized(), "an earlier test left its process group"


def test_a_process_without_a_group_builds_a_blend_and_stays_without(alone, folder):
    cold = build(folder)
    assert len(cold) >= 50 and not dist.is_initialized()
    assert digest(build(folder)) == digest(cold), "from the index files, now that they are there"


@pytest.mark.parametrize("num_samples", [1, 2, 3, 7, 50, 201])
@pytest.mark.parametrize("weights", [(1e-6, 1e-6, 1e-6, 100.0), (1.0, 1.0, 1.0, 1.0), (0.97, 0.01, 0.01, 0.01)])
def test_few_samples_of_many_sets_are_enough(alone, folder, num_samples, weights):
    samples = build(folder, "abcd", weights, num_samples)
    assert len(samples) >= num_samples
    assert all(samples[i]["tokens"].shape == (LENGTH + 1,) for i in range(len(samples)))


def test_in_long_runs_a_set_has_megatrons_surplus():
    assert door._surplus(44, 100_000) == door.SURPLUS == door.PackedConfig.mid_level_dataset_surplus


@pytest.mark.parametrize(
    "damage", [lambda f: os.truncate(f, f.stat().st_size // 2), lambda f: f.write_bytes(b"x" * 99)]
)
@pytest.mark.parametrize("kind", ["document", "sample", "shuffle", "dataset", "dataset_sample"])
def test_an_index_file_that_cannot_be_read_is_made_again(alone, folder, kind, damage):
    before = digest(build(folder))
    files = list((folder / "cache").glob(f"*-{kind}_index.npy"))
    assert files
    for file in files:
        damage(file)
    assert digest(build(folder)) == before
    assert all(np.load(file).size for file in files)


def _digests_in_world(folder: Path) -> tuple[str, str]:
    dist.init_process_group("gloo")
    try:
        cold = digest(build(folder))
        dist.barrier()
        if dist.get_rank() == 0:
            for file in (folder / "cache").glob("*_index.npy"):
                os.truncate(file, 10)
        dist.barrier()
        return cold, digest(build(folder))
    finally:
        dist.destroy_process_group()


def test_all_ranks_read_what_rank_0_builds_or_mends(alone, folder):
    (first, *others) = run_processes(_digests_in_world, 2, folder)
    assert set(first) == {digest(build(folder))}
    assert others == [first]

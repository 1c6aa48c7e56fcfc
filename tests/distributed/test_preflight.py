"""Ranks that are not alike stop in words, all of them; those that are measure their links."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from megatron_yuan.config.presets import preset
from megatron_yuan.config.schema import Config
from megatron_yuan.config.validate import validate_world
from tests.processes import run_processes


def started(config: Config, seeds: dict[int, int]) -> tuple[str, list[tuple[str, int, int]]]:
    from megatron_yuan.errors import ParallelError
    from megatron_yuan.parallel import topology as processes
    from megatron_yuan.parallel.links import measure_links

    seed = seeds.get(int(os.environ["RANK"]), config.training.seed)
    config = validate_world(replace(config, training=replace(config.training, seed=seed)), processes.world_size())
    try:
        links = measure_links(processes.start(config))
        assert all(link.seconds > 0 and link.bytes_per_second > 0 for link in links)
        return "", [(link.kind, link.source, link.target) for link in links]
    except ParallelError as error:
        return str(error), []
    finally:
        processes.stop()


@pytest.fixture
def config() -> Config:
    tiny = preset("tiny")
    return replace(tiny, parallel=replace(tiny.parallel, pipeline_model_parallel_size=2))


def test_another_setting_on_one_rank_is_named_on_all(config: Config) -> None:
    told = [error for error, _ in run_processes(started, 2, config, {1: 99})]
    assert told[0] == told[1]
    assert (
        told[0].startswith(f"ranks differ in seed: {config.training.seed} on rank 0 (host ")
        and "99 on rank 1" in told[0]
    )


def test_every_link_of_pipelines_and_replicas_is_measured_once(config: Config) -> None:
    found = run_processes(started, 4, config, {})
    assert found == [("", [("stages", 0, 2), ("replicas", 0, 1), ("stages", 1, 3), ("replicas", 2, 3)])] * 4

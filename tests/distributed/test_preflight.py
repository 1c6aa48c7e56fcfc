"""Ranks that are not alike stop in words, all of them; those that are measure their links."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_yuan.config.presets import preset
from megatron_yuan.config.schema import Config
from megatron_yuan.config.validate import validate_world
from tests.indexed_data import EOD, counting_documents, write_indexed
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


def with_data_of_its_own(config: Config, folders: list[Path]) -> str:
    """What a host says whose disk, like its own first rank, is not shared with the other's."""
    from megatron_yuan.data.datasets import open_sources
    from megatron_yuan.errors import ParallelError
    from megatron_yuan.parallel import topology as processes
    from megatron_yuan.training.start import start_run

    os.chdir(folders[int(os.environ["RANK"])])
    os.environ["LOCAL_RANK"] = "0"
    config = validate_world(config, processes.world_size())
    try:
        start_run(config, processes.start(config), open_sources(config.data, config.model.vocab_size))
        return ""
    except ParallelError as error:
        return str(error)
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


def test_other_tokens_on_one_host_are_found_where_no_passport_tells_of_them(config: Config, tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for stride, folder in enumerate(folders):
        documents = [2 + ids % 250 if stride else ids for ids in counting_documents(0)]
        write_indexed(folder / "set", [[*ids[:-1], EOD] for ids in documents])
    data = replace(config.data, data_path=("set",), eod_id=EOD, split="1,0,0", seq_length=16)
    told = run_processes(with_data_of_its_own, 2, replace(config, data=data), folders)
    assert told[0] == told[1]
    assert told[0].startswith("data set is not the same on all ranks: sha256 ") and "on rank 1" in told[0]

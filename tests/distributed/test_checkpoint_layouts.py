"""What one layout saves any other loads: every weight and moment to the bit, and the next step's loss."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_yuan.config.presets import preset
from megatron_yuan.config.schema import Config
from megatron_yuan.config.validate import validate_world
from tests.distributed.test_resume import digest
from tests.indexed_data import EOD, counting_documents, write_indexed
from tests.processes import free_port, run_processes

STEPS = 2
LAYOUTS = {"1x1": (1, 1, 1), "2x1": (2, 1, 1), "4x1": (4, 1, 1), "2x2": (2, 2, 1), "2x1x2": (2, 1, 2)}
"""Stages, replicas, virtual."""
WORLDS = {1: ["1x1"], 2: ["2x1", "2x1x2"], 4: ["4x1", "2x2"]}
BEHIND = ("2x1x2", "2x2")
"""Saved with --async-save."""


def at(config: Config, layout: str, **checkpoint: Any) -> Config:
    stages, _, virtual = LAYOUTS[layout]
    return replace(
        config,
        parallel=replace(
            config.parallel, pipeline_model_parallel_size=stages, virtual_pipeline_model_parallel_size=virtual
        ),
        checkpoint=replace(config.checkpoint, **checkpoint),
    )


def visit(visits: list[list[Config]], ports: list[int]) -> list[list[dict[str, Any]]]:
    """For each layout among `visits`, and each config of that layout: start, train to STEPS if not there yet, save;
    then one more step. Returns what each run held at STEPS, and the loss of the step after."""
    found = []
    for configs, port in zip(visits, ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)  # processes that meet again under one port find the addresses of before
        found.append(_visit(configs))
    return found


def _visit(configs: list[Config]) -> list[dict[str, Any]]:
    from megatron_yuan.data.datasets import open_sources
    from megatron_yuan.parallel import topology as processes
    from megatron_yuan.training.start import start_run

    configs = [validate_world(config, processes.world_size()) for config in configs]
    topology = processes.start(configs[0])
    found = []
    try:
        for config in configs:
            run = start_run(config, topology, open_sources(config.data, config.model.vocab_size))
            with run.telemetry, run.saver:
                resumed = run.step
                for step in range(run.step + 1, STEPS + 1):
                    run.train_step(step)
                held = digest(run)
                if not resumed:
                    run.save()
                loss = run.train_step(STEPS + 1).loss
            run.release()
            found.append({"from": resumed, "held": held, "loss": loss})
    finally:
        processes.stop()
    return found


def short_run(data: Path) -> Config:
    """`tiny` for STEPS steps and one, in bf16, with its data in the folder `data`."""
    prefix = write_indexed(data / "set", counting_documents(0))
    tiny = preset("tiny")
    return replace(
        tiny,
        data=replace(tiny.data, data_path=(prefix,), split="1,0,0", seq_length=32, eod_id=EOD),
        optimizer=replace(tiny.optimizer, bf16=True, lr_warmup_iters=0),
        training=replace(tiny.training, train_iters=STEPS + 1, micro_batch_size=1, global_batch_size=4),
        logging=replace(tiny.logging, peak_tflops=1.0),
    )


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return short_run(tmp_path_factory.mktemp("data"))


def merged(ranks: list[dict[str, Any]]) -> dict[str, str]:
    """All tensors of a model, stages together; those that several ranks hold must be the same on each."""
    whole: dict[str, str] = {}
    for rank in ranks:
        for name, value in rank["held"].items():
            assert whole.setdefault(name, value) == value, name
    return whole


@pytest.fixture(scope="module")
def saves(config: Config, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Layout -> its run folder, what it held when it saved (behind, in some cases), and its next loss."""
    made = {}
    for world, layouts in WORLDS.items():
        folders = {layout: str(tmp_path_factory.mktemp("runs") / layout) for layout in layouts}
        visits = [[at(config, layout, save=folders[layout], async_save=layout in BEHIND)] for layout in layouts]
        ranks = run_processes(visit, world, visits, [free_port() for _ in visits])
        for number, layout in enumerate(layouts):
            runs = [found[number][0] for found in ranks]
            made[layout] = {"folder": folders[layout], "held": merged(runs), "loss": runs[0]["loss"]}
    return made


@pytest.mark.parametrize("world", WORLDS)
def test_every_layouts_save_loads_at_every_other_to_the_bit_and_goes_on_with_the_same_loss(
    config: Config, saves: dict[str, Any], world: int
) -> None:
    visits = [[at(config, layout, load=saved["folder"]) for saved in saves.values()] for layout in WORLDS[world]]
    ranks = run_processes(visit, world, visits, [free_port() for _ in visits])
    for number, layout in enumerate(WORLDS[world]):
        for turn, (source, saved) in enumerate(saves.items()):
            loaded = [found[number][turn] for found in ranks]
            assert [rank["from"] for rank in loaded] == [STEPS] * world
            assert merged(loaded) == saved["held"], f"{source} loaded at {layout}"
            assert len(saved["held"]) > 100
            for rank in loaded:
                assert rank["loss"] == pytest.approx(saved["loss"], rel=1e-6), f"{source} loaded at {layout}"

"""A trace of real steps: every rank's phases, on one page that a browser draws without an error."""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_yuan.config.fields import with_values
from megatron_yuan.config.presets import preset
from megatron_yuan.config.schema import Config
from megatron_yuan.config.validate import validate_world
from megatron_yuan.report.trace.trace import KINDS
from tests.browser import BROWSER, browsed
from tests.indexed_data import EOD, counting_documents, write_indexed
from tests.processes import run_processes

FIRST, LAST, MICROBATCHES = 3, 22, 4


def fitted(config: Config) -> None:
    from megatron_yuan.data.datasets import open_sources
    from megatron_yuan.parallel import topology as processes
    from megatron_yuan.training.loop import fit
    from megatron_yuan.training.start import start_run

    config = validate_world(config, processes.world_size())
    topology = processes.start(config)
    try:
        fit(start_run(config, topology, open_sources(config.data, config.model.vocab_size)))
    finally:
        processes.stop()


def stopped_in_the_second_step(config: Config) -> None:
    from megatron_yuan.training.run import Run

    train_step = Run.train_step

    def and_a_signal(run: Run, step: int) -> Any:
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(run, step)

    Run.train_step = and_a_signal  # type: ignore[method-assign]
    fitted(config)


def settings(tmp_path: Path, stages: int, **values: Any) -> Config:
    tiny = preset("tiny")
    prefix = write_indexed(tmp_path / "set", counting_documents(0))
    config = replace(tiny, data=replace(tiny.data, data_path=(prefix,), eod_id=EOD, split="1,0,0", seq_length=16))
    values = {
        "num_layers": 4,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "kv_channels": 16,
        "ffn_hidden_size": 32,
        "pipeline_model_parallel_size": stages,
        "micro_batch_size": 1,
        "global_batch_size": 2 * MICROBATCHES,
        "train_iters": LAST + 1,
        "lr_warmup_iters": 0,
        "eval_interval": 0,
        "peak_tflops": 1.0,
        "profile_step_start": FIRST,
        "profile_step_end": LAST,
        "save": str(tmp_path / "run"),
    } | values
    return with_values(config, values)


def test_twenty_steps_of_two_stages_and_two_replicas(tmp_path: Path) -> None:
    run_processes(fitted, 4, settings(tmp_path, 2, use_pytorch_profiler=True, profile_ranks=(1,)))
    traces = tmp_path / "run" / "traces"
    named = f"steps-{FIRST}-{LAST}"
    assert {each.name for each in traces.iterdir()} == {
        f"{named}.html",
        f"{named}.json",
        f"kernels-{FIRST}-{LAST}-rank1.json",
    }
    events = json.loads((traces / f"{named}.json").read_text())["traceEvents"]
    passes: dict[tuple[int, int, str], list[int]] = defaultdict(list)
    kinds: dict[int, set[str]] = defaultdict(set)
    for event in events:
        if event["ph"] == "X":
            kinds[event["pid"]].add(event["cat"])
            if event["cat"] in ("forward", "backward"):
                passes[event["pid"], event["args"]["step"], event["cat"]].append(event["args"]["microbatch"])
    assert kinds == {rank: set(KINDS) for rank in range(4)}
    assert len(passes) == 4 * 20 * 2
    assert all(sorted(set(found)) == [1, 2, 3, 4] for found in passes.values())
    log = (tmp_path / "run" / "log.txt").read_text()
    assert f"trace of steps {FIRST} to {LAST}: " in log and "by theory 20.0%" in log
    if BROWSER is None:
        pytest.skip("the trace is right; there is no Chromium or Chrome to open its page in")
    document, console = browsed(traces / f"{named}.html", tmp_path / "profile")
    assert console == [] and 'data-drawn="4"' in document


def test_an_interleaved_schedule_has_each_microbatch_once_in_every_chunk(tmp_path: Path) -> None:
    run_processes(
        fitted,
        2,
        settings(tmp_path, 2, virtual_pipeline_model_parallel_size=2, global_batch_size=4, profile_step_end=FIRST),
    )
    events = json.loads((tmp_path / "run" / "traces" / f"steps-{FIRST}-{FIRST}.json").read_text())["traceEvents"]
    for rank in range(2):
        for kind in ("forward", "backward"):
            passes = [e["args"] for e in events if e["ph"] == "X" and (e["pid"], e["cat"]) == (rank, kind)]
            places = {(each["microbatch"], each["chunk"]) for each in passes}
            assert places == set(itertools.product((1, 2, 3, 4), (1, 2)))


def test_a_session_that_ends_inside_the_range_leaves_what_it_traced_and_the_next_one_the_rest(tmp_path: Path) -> None:
    once = {"global_batch_size": 2, "train_iters": 4, "profile_step_end": 4, "profile_step_start": 1}
    run_processes(stopped_in_the_second_step, 1, settings(tmp_path, 1, **once))
    assert (tmp_path / "run" / "traces" / "steps-1-2.html").exists()
    run_processes(fitted, 1, settings(tmp_path, 1, **once))
    traced = {path.stem: path for path in (tmp_path / "run" / "traces").glob("*.json")}
    assert set(traced) == {"steps-1-2", "steps-3-4"}
    events = json.loads(traced["steps-3-4"].read_text())["traceEvents"]
    assert {event["args"]["step"] for event in events if event["ph"] == "X"} == {3, 4}

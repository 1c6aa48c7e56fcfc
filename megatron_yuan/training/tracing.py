"""Traces of the steps that the settings name, by all ranks, written by the main one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from megatron_yuan.config.schema import Config
from megatron_yuan.log import logger
from megatron_yuan.parallel.topology import Topology
from megatron_yuan.parallel.trace import Recorder
from megatron_yuan.report.run_folder import RunFolder
from megatron_yuan.report.trace.findings import findings
from megatron_yuan.report.trace.perfetto import to_perfetto
from megatron_yuan.report.trace.timeline import to_page
from megatron_yuan.report.trace.trace import Rank, Trace


class Tracer:
    """Records from the first step of profile-step-start ... profile-step-end that this session trains to the last."""

    def __init__(self, config: Config, topology: Topology, microbatches: int) -> None:
        self._config, self._topology, self._microbatches = config, topology, microbatches
        self._recorder: Recorder | None = None
        self._first = 0
        self._kernels: Any = None

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Around each step. Called by all ranks together."""
        start, end = self._config.logging.profile_step_start, self._config.logging.profile_step_end
        if start is None or end is None or not start <= step <= end:
            yield
            return
        if self._recorder is None:
            self._first, self._recorder = step, Recorder(self._topology)
            self._kernels = self._start_kernels()
        yield
        if step == end:
            self.close(step)

    def close(self, step: int) -> None:
        """Write what was recorded up to `step`, if anything: a session may end inside the range. Called by all ranks
        together."""
        if self._recorder is not None:
            self._write(self._first, step)

    def _start_kernels(self) -> Any:
        logging = self._config.logging
        if not logging.use_pytorch_profiler or self._topology.rank not in logging.profile_ranks:
            return None
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self._topology.device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        profiler = torch.profiler.profile(activities=activities)
        profiler.start()
        return profiler

    def _write(self, start: int, end: int) -> None:
        assert self._recorder is not None and self._config.checkpoint.save is not None
        topology, spans, self._recorder = self._topology, self._recorder.spans(), None
        folder = RunFolder(Path(self._config.checkpoint.save)).traces
        folder.mkdir(exist_ok=True)
        if self._kernels is not None:
            self._kernels.stop()
            self._kernels.export_chrome_trace(str(folder / f"kernels-{start}-{end}-rank{topology.rank}.json"))
            self._kernels = None
        mine = Rank(topology.rank, topology.pp_rank, topology.dp_rank, os.uname().nodename, spans)
        trace = Trace(topology.gather(mine), topology.pp_size, topology.vp_size, self._microbatches)
        if not topology.is_main:
            return
        found, page = findings(trace), folder / f"steps-{start}-{end}.html"
        page.write_text(to_page(trace, found), encoding="utf-8")
        page.with_suffix(".json").write_text(to_perfetto(trace), encoding="utf-8")
        logger.info(f"trace of {trace.name}: {page}; {page.with_suffix('.json').name} is for ui.perfetto.dev")
        for line in found.lines():
            logger.info(line)

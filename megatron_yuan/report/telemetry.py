"""One object that the loop tells its results to, and that tells console, metrics.jsonl, TensorBoard and wandb.

Only rank 0 speaks: the others hold a `SilentTelemetry`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from megatron_yuan.config.schema import LoggingConfig
from megatron_yuan.log import logger, mirrored_to
from megatron_yuan.report.console import ConsoleReport
from megatron_yuan.report.curves import pixels_of
from megatron_yuan.report.expert_plot import load_figure
from megatron_yuan.report.expert_report import ExpertReport
from megatron_yuan.report.metrics import MetricsWriter
from megatron_yuan.report.result import EvalResult, StepResult, TaskScores
from megatron_yuan.report.run_folder import RunFolder
from megatron_yuan.report.sinks import Sink, open_sinks
from megatron_yuan.report.step_record import step_record, step_scalars
from megatron_yuan.report.throughput import Arithmetic


class Telemetry:
    """Use as a context manager, so that files are closed and the terminal is whole after an error too."""

    def __init__(
        self,
        config: LoggingConfig,
        folder: RunFolder | None,
        arithmetic: Arithmetic,
        total_steps: int,
        start_step: int = 0,
        settings: Mapping[str, Any] | None = None,
        last_step: int | None = None,
        session: Mapping[str, Any] | None = None,
    ) -> None:
        """Open everything that `config` asks for.

        `settings` (the resolved config) is shown in wandb; `last_step` is where this session ends, unset `total_steps`;
        `session` is kept in the record of its start.
        """
        self._arithmetic = arithmetic
        last_step = total_steps if last_step is None else last_step
        self._experts = ExpertReport(config.log_experts_interval, total_steps, start_step, last_step)
        with ExitStack() as opening:
            if folder is not None:
                opening.enter_context(mirrored_to(folder.log))
            self._sinks: list[Sink] = []
            for sink in open_sinks(config, folder, start_step, settings or {}):
                self._sinks.append(sink)
                opening.callback(sink.close)
            self._metrics = None
            if folder is not None:
                start = {**_start_record(arithmetic, total_steps, start_step), **(session or {})}
                self._metrics = MetricsWriter(folder.metrics, start)
                opening.callback(self._metrics.close)
            self._console = ConsoleReport(arithmetic, total_steps, start_step, config.log_interval)
            opening.callback(self._console.close)
            self._open = opening.pop_all()

    def step(self, result: StepResult) -> None:
        """Report one step."""
        self._console.step(result)
        record = step_record(result, self._arithmetic)
        experts = self._experts.step(result)
        if self._metrics is not None:
            self._metrics.write("step", {**record, **experts.fields})
        if not self._sinks:
            return
        values = {**step_scalars(result, record), **experts.scalars}
        for sink in self._sinks:
            sink.scalars(result.step, values)
        if experts.load_LE is not None:
            pixels = pixels_of(load_figure(experts.load_LE, *experts.steps))
            for sink in self._sinks:
                sink.picture(result.step, "experts/load", pixels)

    def evaluation(self, result: EvalResult) -> None:
        """Report one validation, or the test."""
        self._console.evaluation(result)
        if self._metrics is not None:
            record = {"step": result.step, "losses": result.losses, "tokens": result.tokens, "time": time.time()}
            if result.languages:
                record["languages"] = result.languages
            self._metrics.write("test" if result.kind == "test" else "evaluation", record)
        values = {f"{result.kind}/loss/{name}": loss for name, loss in result.losses.items()}
        values |= {f"{result.kind}/language/{name}": loss for name, loss in result.languages.items()}
        for sink in self._sinks:
            sink.scalars(result.step, values)

    def tasks(self, step: int, scores: TaskScores) -> None:
        """Report a measurement on tasks."""
        self._console.tasks(step, scores)
        if self._metrics is not None:
            self._metrics.write("tasks", {"step": step, **asdict(scores), "time": time.time()})
        for sink in self._sinks:
            sink.scalars(step, {f"tasks/accuracy/{name}": value for name, value in scores.accuracy.items()})

    def message(self, text: str) -> None:
        """Say something in words."""
        logger.info("%s", text)

    def close(self) -> None:
        """Close everything; further results have nowhere to go."""
        self._open.close()

    def __enter__(self) -> Telemetry:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SilentTelemetry(Telemetry):
    """Telemetry of a rank that has nothing to say."""

    def __init__(self) -> None:
        pass

    def step(self, result: StepResult) -> None:
        """Nothing."""

    def evaluation(self, result: EvalResult) -> None:
        """Nothing."""

    def tasks(self, step: int, scores: TaskScores) -> None:
        """Nothing."""

    def message(self, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def _start_record(arithmetic: Arithmetic, total_steps: int, start_step: int) -> dict[str, Any]:
    return {
        "step": start_step,
        "total_steps": total_steps,
        "flops_per_token": arithmetic.flops_per_token,
        "attention_scores_counted": arithmetic.scores_counted,
        "peak_flops_per_device": arithmetic.peak.flops,
        "peak_source": arithmetic.peak.source,
        "devices": arithmetic.devices,
        "time": time.time(),
    }

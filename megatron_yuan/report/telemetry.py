"""One object that the loop tells its results to, and that tells console, metrics.jsonl, TensorBoard and wandb.

Only rank 0 speaks: the others hold a `SilentTelemetry`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from megatron_yuan.config.schema import LoggingConfig
from megatron_yuan.log import logger, mirrored_to
from megatron_yuan.report.console import ConsoleReport
from megatron_yuan.report.metrics import MetricsWriter
from megatron_yuan.report.result import EvalResult, StepResult
from megatron_yuan.report.run_folder import RunFolder
from megatron_yuan.report.sinks import Sink, open_sinks
from megatron_yuan.report.throughput import Arithmetic

# A table of loads for each step of a long run of a large model would be gigabytes; beyond this many steps a table holds
# the sum over several, and nothing is left out.
MOST_LOAD_TABLES = 5000


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
    ) -> None:
        """Open everything that `config` asks for; `settings` (the resolved config) is shown in wandb."""
        self._arithmetic = arithmetic
        self._load_stride = max(1, -(-total_steps // MOST_LOAD_TABLES))
        self._load = LoadSum()
        with ExitStack() as opening:
            if folder is not None:
                opening.enter_context(mirrored_to(folder.log))
            self._sinks: list[Sink] = []
            for sink in open_sinks(config, folder, start_step, settings or {}):
                self._sinks.append(sink)
                opening.callback(sink.close)
            self._metrics = None
            if folder is not None:
                self._metrics = MetricsWriter(folder.metrics, _start_record(arithmetic, total_steps, start_step))
                opening.callback(self._metrics.close)
            self._console = ConsoleReport(arithmetic, total_steps, start_step, config.log_interval)
            opening.callback(self._console.close)
            self._open = opening.pop_all()

    def step(self, result: StepResult) -> None:
        """Report one step."""
        self._console.step(result)
        record = _step_record(result, self._arithmetic)
        if self._metrics is not None:
            self._metrics.write("step", {**record, **self._load.table(result, self._load_stride)})
        values = _step_scalars(result, record)
        for sink in self._sinks:
            sink.scalars(result.step, values)

    def evaluation(self, result: EvalResult) -> None:
        """Report one validation."""
        self._console.evaluation(result)
        if self._metrics is not None:
            record = {"step": result.step, "losses": result.losses, "tokens": result.tokens, "time": time.time()}
            self._metrics.write("evaluation", record)
        for sink in self._sinks:
            sink.scalars(result.step, {f"validation/loss/{name}": loss for name, loss in result.losses.items()})

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

    def message(self, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class LoadSum:
    """Expert loads summed over the steps since they were last written."""

    def __init__(self) -> None:
        self._table: list[list[int]] | None = None
        self._steps = 0

    def table(self, result: StepResult, stride: int) -> dict[str, Any]:
        """Add `result`'s load; at each `stride`-th step give the sum, as the fields of a record, and begin anew."""
        if result.expert_load is None:
            return {}
        load = [[int(count) for count in layer] for layer in result.expert_load]
        if self._table is not None:
            load = [[a + b for a, b in zip(old, new, strict=True)] for old, new in zip(self._table, load, strict=True)]
        self._table, self._steps = load, self._steps + 1
        if result.step % stride:
            return {}
        fields = {"expert_load": self._table, "expert_load_steps": self._steps}
        self._table, self._steps = None, 0
        return fields


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


def _step_record(result: StepResult, arithmetic: Arithmetic) -> dict[str, Any]:
    rate = result.tokens_per_second
    imbalance = result.load_imbalance
    return {
        "step": result.step,
        "loss": result.loss,
        "losses": dict(result.set_losses),
        "grad_norm": result.grad_norm,
        "lr": result.lr,
        "tokens": result.tokens,
        "computed_tokens": result.computed_tokens,
        "samples": result.samples,
        "seconds": round(result.seconds, 6),
        "tokens_per_second": round(rate, 3),
        "tflops_per_device": round(arithmetic.tflops(rate), 6),
        "mfu": round(arithmetic.mfu(rate), 6),
        "memory_bytes": result.memory_bytes,
        "load_max_over_mean": None if imbalance is None else [round(ratio, 4) for ratio in imbalance],
        "time": round(time.time(), 3),
    }


def _step_scalars(result: StepResult, record: Mapping[str, Any]) -> dict[str, float]:
    values = {f"train/{name}": record[name] for name in ("loss", "grad_norm", "lr", "samples")}
    if len(result.set_losses) > 1:
        values |= {f"train/loss/{name}": loss for name, loss in result.set_losses.items()}
    values |= {f"speed/{name}": record[name] for name in ("tokens_per_second", "tflops_per_device", "mfu", "seconds")}
    values["memory/peak_gib"] = result.memory_bytes / 2**30
    if result.worst_imbalance is not None:
        values["experts/worst_max_over_mean"] = result.worst_imbalance[0]
    values |= {f"experts/max_over_mean/layer_{i:03d}": r for i, r in enumerate(record["load_max_over_mean"] or ())}
    return values

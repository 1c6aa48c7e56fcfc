"""One step as a line of metrics.jsonl, and as scalars for TensorBoard and wandb."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from megatron_yuan.report.result import StepResult
from megatron_yuan.report.throughput import Arithmetic


def step_record(result: StepResult, arithmetic: Arithmetic) -> dict[str, Any]:
    """All but what concerns the experts, rounded to what is known."""
    rate = result.tokens_per_second
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
        "time": round(time.time(), 3),
        **({} if result.skipped is None else {"skipped": result.skipped}),
    }


def step_scalars(result: StepResult, record: Mapping[str, Any]) -> dict[str, float]:
    """The same by the names of TensorBoard's and wandb's charts."""
    values = {f"train/{name}": record[name] for name in ("loss", "grad_norm", "lr", "samples")}
    if len(result.set_losses) > 1:
        values |= {f"train/loss/{name}": loss for name, loss in result.set_losses.items()}
    values |= {f"speed/{name}": record[name] for name in ("tokens_per_second", "tflops_per_device", "mfu", "seconds")}
    values["memory/peak_gib"] = result.memory_bytes / 2**30
    return values

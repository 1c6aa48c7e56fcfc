"""A whole run in the calling process, as the entry makes it: what distributed tests start in each process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megatron_yuan.config.schema import Config
from megatron_yuan.config.validate import validate_world


def train(config: Config, after: Callable[[Any], Any] | None = None) -> list[dict[str, Any]]:
    """Train to the config's end; returns loss, gradient norm and load of each step, and `after(run)` at last."""
    from megatron_yuan.data.datasets import open_sources
    from megatron_yuan.parallel import topology as processes
    from megatron_yuan.training.start import start_run

    config = validate_world(config, processes.world_size())
    topology = processes.start(config)
    try:
        run = start_run(config, topology, open_sources(config.data, config.model.vocab_size))
        steps = []
        with run.telemetry:
            for step in range(run.step + 1, run.last_step + 1):
                result = run.train_step(step)
                steps.append(
                    {
                        "loss": result.loss,
                        "losses": dict(result.set_losses),
                        "grad_norm": result.grad_norm,
                        "load": result.expert_load,
                    }
                )
            run.save()
        if after is not None:
            steps.append(after(run))
        return steps
    finally:
        processes.stop()

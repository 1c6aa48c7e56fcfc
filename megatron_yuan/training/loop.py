"""The training loop."""

from __future__ import annotations

from megatron_yuan.training.run import Run


def fit(run: Run) -> None:
    """Train from where the run stands to its last step; validate, save and report on the way, and at the end."""
    config = run.config
    with run.telemetry, run.saver:
        if run.step == 0:
            run.validate(0)
        for step in range(run.step + 1, run.last_step + 1):
            result = run.train_step(step)
            run.telemetry.step(result)
            run.saver.poll()
            last = step == run.last_step
            if last or _due(step, config.training.eval_interval):
                run.validate(step)
            if last or _due(step, config.checkpoint.save_interval):
                run.save()
        run.draw()


def _due(step: int, interval: int) -> bool:
    return interval > 0 and step % interval == 0

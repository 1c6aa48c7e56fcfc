"""The training loop."""

from __future__ import annotations

from megatron_yuan.training.out_of_memory import explaining_memory
from megatron_yuan.training.run import Run


def fit(run: Run) -> None:
    """Train from where the run stands to its last step, or until it should stop; validate, save and report on the way.

    However it ends, what it was doing is in status.json; where it ends in good order, the last step is saved.
    """
    config = run.config
    explaining = run.watch.explaining  # twice: first of all, and for what the saver meets as it closes
    memory = explaining_memory(config, run.topology, run.model)
    with run.telemetry, run.outcome.training(run), run.stopping, explaining(), run.saver, explaining(), memory:
        if run.step in (0, run.last_step):  # before all training; or once more, where a session ended in between
            run.validate(run.step)
        while run.step < run.last_step and run.stop_reason is None:
            step = run.step + 1
            with run.tracer.step(step):
                result = run.train_step(step)
            run.telemetry.step(result)
            run.say_start_up()
            run.saver.poll()
            if _due(step, config.guard.check_weight_hash_across_dp_replicas_interval or 0):
                run.check_replicas()
            last = step == run.last_step
            if run.stop_reason is None and (last or _due(step, config.training.eval_interval)):
                run.validate(step)
            if run.stop_reason is None and (last or _due(step, config.training.eval_tasks_interval)):
                run.measure_tasks(step)
            if last or run.stop_reason is not None or _due(step, config.checkpoint.save_interval):
                run.save()
        run.tracer.close(run.step)
        if run.stop_reason is None and run.step == config.training.train_iters:
            run.measure_test()
        run.draw()
    run.release()


def _due(step: int, interval: int) -> bool:
    return interval > 0 and step % interval == 0

"""Pretrain a Yuan mixture-of-experts language model.

    python pretrain_yuan_moe.py --preset tiny --data-path data/zh_text_document --save runs/first
    torchrun --nproc-per-node 8 pretrain_yuan_moe.py --preset yuan2-m32 --data-path ... --save ...

The story: config -> topology -> data -> model -> fit. `--help` lists every setting; `--dry-run` only counts.
"""

from __future__ import annotations

import sys

from megatron_yuan.config.load import Invocation, parse
from megatron_yuan.config.validate import validate_run, validate_world
from megatron_yuan.errors import run_command_line
from megatron_yuan.parallel.launcher import rank, world_size
from megatron_yuan.training.outcome import Outcome
from megatron_yuan.training.stopping import Stopping


def main() -> None:
    """Read the command line, then plan or train."""
    invocation = parse(sys.argv[1:])
    if invocation.dry_run:
        from megatron_yuan.planning.dry_run import dry_run_report

        validate_world(invocation.config, invocation.config.parallel.pipeline_model_parallel_size)
        print(dry_run_report(invocation.config, invocation.preset))
        return

    stopping = Stopping(invocation.config.training.exit_duration_in_mins)
    with Outcome(invocation.config.checkpoint.save, rank() == 0) as outcome:
        train(invocation, stopping, outcome)


def train(invocation: Invocation, stopping: Stopping, outcome: Outcome) -> None:
    """Settings and data are checked before torch is loaded and processes meet: a mistake costs no waiting."""
    validate_run(invocation.config, world_size())
    config = validate_world(invocation.config, world_size())
    from megatron_yuan.data.datasets import open_sources

    sources = open_sources(config.data, config.model.vocab_size)
    from megatron_yuan.evaluation.in_training import task_measure

    measure = task_measure(config)
    from megatron_yuan.parallel import topology as processes

    topology = processes.start(config)
    try:
        from megatron_yuan.parallel.watch.start import watch_over
        from megatron_yuan.training.loop import fit
        from megatron_yuan.training.start import start_run

        with watch_over(config, topology) as watch, watch.explaining():
            fit(start_run(config, topology, sources, invocation.remarks, stopping, watch, outcome, measure))
    finally:
        processes.stop()


if __name__ == "__main__":
    run_command_line(main)

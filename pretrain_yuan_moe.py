"""Pretrain a Yuan mixture-of-experts language model.

    python pretrain_yuan_moe.py --preset tiny --data-path data/zh_text_document --save runs/first
    torchrun --nproc-per-node 8 pretrain_yuan_moe.py --preset yuan2-m32 --data-path ... --save ...

The story: config -> topology -> data -> model -> fit. `--help` lists every setting; `--dry-run` only counts.
"""

from __future__ import annotations

import sys

from megatron_yuan.config.load import parse
from megatron_yuan.config.validate import validate_run, validate_world
from megatron_yuan.errors import run_command_line
from megatron_yuan.parallel.launcher import world_size
from megatron_yuan.training.stopping import Stopping


def main() -> None:
    """Read the command line, then plan or train."""
    invocation = parse(sys.argv[1:])
    if invocation.dry_run:
        from megatron_yuan.planning.dry_run import dry_run_report

        validate_world(invocation.config, invocation.config.parallel.pipeline_model_parallel_size)
        print(dry_run_report(invocation.config, invocation.preset))
        return

    # Settings and data are checked before torch is loaded and processes meet: a mistake costs no waiting.
    validate_run(invocation.config)
    stopping = Stopping(invocation.config.training.exit_duration_in_mins)
    config = validate_world(invocation.config, world_size())
    from megatron_yuan.data.datasets import open_sources

    sources = open_sources(config.data, config.model.vocab_size)
    from megatron_yuan.parallel import topology as processes

    topology = processes.start(config)
    try:
        from megatron_yuan.parallel.watch.start import watch_over
        from megatron_yuan.training.loop import fit
        from megatron_yuan.training.start import start_run

        with watch_over(config, topology) as watch, watch.explaining():
            fit(start_run(config, topology, sources, invocation.remarks, stopping, watch))
    finally:
        processes.stop()


if __name__ == "__main__":
    run_command_line(main)

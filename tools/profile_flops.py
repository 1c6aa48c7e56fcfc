"""Hold the FLOPs that --dry-run prints against what DeepSpeed's profiler counts (extra 'deepspeed').

python tools/profile_flops.py --preset tiny [any flag of pretrain_yuan_moe.py]
"""

from __future__ import annotations

import sys

from megatron_yuan.config.load import parse
from megatron_yuan.errors import run_command_line


def main() -> None:
    """Read the command line, count both ways, print both."""
    config = parse(sys.argv[1:]).config

    from megatron_yuan.benchmark.profiled_flops import profiled_flops
    from megatron_yuan.planning.accounting import forward_flops

    formula = forward_flops(config.model, config.data.seq_length).dense
    profiled = profiled_flops(config)
    print(f"formula, attention scores dense: {formula:,.0f} FLOP a token forward")
    print(f"DeepSpeed's profiler:            {profiled:,.0f} FLOP a token forward")
    print(f"profiler / formula - 1:          {profiled / formula - 1:+.3%}")


if __name__ == "__main__":
    run_command_line(main)

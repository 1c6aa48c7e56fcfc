"""Does a model keep to the past? Change a token, and see that nothing changes that must not feel it.

    python tools/audit_causality.py --load RUN_OR_HF_FOLDER
    python tools/audit_causality.py --load RUN --seq-length 16 2048

Every part of every layer, its values and its gradients, in whole rows and with documents apart; a leak is named by its
layer and part. In float32. Exit code 0: causal; 1: a leak; 2: a mistake in what was asked.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_yuan.errors import run_command_line


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load", type=Path, required=True, help="run folder, checkpoint or HF folder")
    parser.add_argument(
        "--seq-length", type=int, nargs="+", help="lengths of the rows; unset, short ones known to set traps"
    )
    parser.add_argument(
        "--experts",
        choices=("looped", "grouped"),
        help="compute the experts one by one, to the bit, or the fast way; unset, both",
    )
    parser.add_argument("--eod-id", type=int, help="token that ends a document; unset, the model's")
    parser.add_argument("--seed", type=int, default=0, help="of the random tokens")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda or cuda:N")
    return parser.parse_args()


def main() -> int:
    """Load, audit, print."""
    arguments = parse()
    from megatron_yuan.audit import audit_causality
    from megatron_yuan.audit.causality import KINDS
    from megatron_yuan.inference.load import load

    report = audit_causality(
        load(arguments.load, "fp32", arguments.device),
        arguments.seq_length,
        (arguments.experts,) if arguments.experts else KINDS,
        arguments.eod_id,
        arguments.seed,
        progress=lambda setting: print(setting, file=sys.stderr, flush=True),
    )
    print(report.text())
    return 0 if report.clean else 1


if __name__ == "__main__":
    run_command_line(main)

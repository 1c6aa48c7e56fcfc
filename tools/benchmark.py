"""Measure speed in one process, where the time goes, and the machine's own limit beside it.

python tools/benchmark.py --preset bench-cpu [--part step|moe|router|checkpoint] [--peers] [--rounds N] [--json FILE]
    [any flag of pretrain_yuan_moe.py]

step (default): a training step by part. moe: the mixture-of-experts layer alone, in float32 and bfloat16, with real and
with forced-balanced routing. router: the attention router's arithmetic beside the naive formula.
checkpoint: saving, loading and saving behind of a model of --parameters N (200e6), on the disk of --save FOLDER, beside
cp, sha256, memcpy and torch.distributed.checkpoint.
--peers adds Hugging Face transformers' Mixtral (installed apart) to the first two.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from megatron_yuan.config.load import parse
from megatron_yuan.errors import ConfigError, run_command_line

PARTS = ("step", "moe", "router", "checkpoint")


def main() -> None:
    """Read the command line, measure, print, and write JSON where asked."""
    arguments = sys.argv[1:]
    if "--help" in arguments:
        print(__doc__)
    part, rounds = _take(arguments, "--part", "step"), _take(arguments, "--rounds", "5")
    output = _take(arguments, "--json", "")
    parameters = _take(arguments, "--parameters", "200e6")
    if part not in PARTS:
        raise ConfigError(f"part is {part!r}, but must be one of {', '.join(PARTS)}.")
    if output and not Path(output).parent.is_dir():
        raise ConfigError(f"json is {output}, but there is no folder {Path(output).parent}; make it, or name another.")
    if not (rounds.isascii() and rounds.isdigit()) or int(rounds) < 1:
        raise ConfigError(f"rounds is {rounds!r}, but must be a whole number, at least 1.")
    config = parse([argument for argument in arguments if argument != "--peers"]).config

    result: dict[str, Any]
    if part == "checkpoint":
        from megatron_yuan.benchmark import checkpoints

        result = checkpoints.report(_count(parameters), int(rounds), config.checkpoint.save)
    else:
        from megatron_yuan.benchmark import reports

        report = {"step": reports.step, "moe": reports.moe, "router": reports.router}[part]
        result = report(config, int(rounds), "--peers" in arguments)
    if output:
        Path(output).write_text(json.dumps(result, indent=1) + "\n")


def _count(text: str) -> int:
    try:
        count = float(text)
    except ValueError:
        count = 0.0
    if not 1e5 <= count <= 1e13:
        raise ConfigError(f"parameters is {text!r}, but must be a number from 1e5 up, such as 200e6.")
    return int(count)


def _take(arguments: list[str], flag: str, default: str) -> str:
    if flag not in arguments:
        return default
    at = arguments.index(flag)
    if at + 1 == len(arguments):
        raise ConfigError(f"{flag} needs a value.")
    _, value = arguments.pop(at), arguments.pop(at)
    return value


if __name__ == "__main__":
    run_command_line(main)

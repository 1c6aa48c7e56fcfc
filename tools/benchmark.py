"""Measure speed in one process, where the time goes, and the machine's own limit beside it.

python tools/benchmark.py [--preset bench-cpu] [--peers] [--rounds N] [--json FILE] [any flag of pretrain_yuan_moe.py]
    [--part step|moe|router|inference|checkpoint|data|blend|plan|pipeline|balance]

step (default): a training step by part. moe: the mixture-of-experts layer alone, in float32 and bfloat16, with real and
with forced-balanced routing. router: the attention router's arithmetic beside the naive formula.
inference: prefill and decoding at batch 1 and 16; with --peers beside transformers with the exported code and Mixtral.
checkpoint: saving, loading and saving behind of a model of --parameters N (200e6), on the disk of --save FOLDER, beside
cp, sha256, memcpy and torch.distributed.checkpoint.
data: preprocessing --input FILE ... with --tokenizer-model FILE, beside SentencePiece alone on as many threads, and
beside one document at a time, as Megatron-LM's tool works.
blend: opening a blend of 44 sets, --documents N (5e6) in all, on the disk of --save FOLDER: its index built and found
again, time and memory at three sizes, beside megatron-core's own builder for one such set.
plan: memory of each process and time of a step as the planner predicts them, beside what gloo processes need here.
pipeline: how near 1F1B and interleaved 1F1B come to their ideal at the measured stage times, 2 and 4 gloo processes.
balance: what --pipeline-model-parallel-layout auto gains over equal stages, with --pipeline-model-parallel-size N.
--peers adds Hugging Face transformers' Mixtral (installed apart) to step and moe too.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from megatron_yuan.config.load import parse
from megatron_yuan.errors import ConfigError, run_command_line

PARTS = ("step", "moe", "router", "inference", "checkpoint", "data", "blend", "plan", "pipeline", "balance")


def main() -> None:
    """Read the command line, measure, print, and write JSON where asked."""
    arguments = sys.argv[1:]
    if "--help" in arguments:
        print(__doc__)
    part, rounds = _take(arguments, "--part", "step"), _take(arguments, "--rounds", "5")
    output = _take(arguments, "--json", "")
    parameters, inputs = _take(arguments, "--parameters", "200e6"), _take_several(arguments, "--input")
    documents = _take(arguments, "--documents", "5e6")
    if part not in PARTS:
        raise ConfigError(f"part is {part!r}, but must be one of {', '.join(PARTS)}.")
    if output and not Path(output).parent.is_dir():
        raise ConfigError(f"json is {output}, but there is no folder {Path(output).parent}; make it, or name another.")
    if not (rounds.isascii() and rounds.isdigit()) or int(rounds) < 1:
        raise ConfigError(f"rounds is {rounds!r}, but must be a whole number, at least 1.")
    flags = [argument for argument in arguments if argument != "--peers"]
    if not {flag.partition("=")[0] for flag in flags} & {"--preset", "--config"}:
        flags += ["--preset", "bench-cpu"]  # by default a run is of M32, which no machine holds by itself
    config = parse(flags).config

    result: dict[str, Any]
    if part == "checkpoint":
        from megatron_yuan.benchmark import checkpoints

        result = checkpoints.report(_count("parameters", parameters, 1e5), int(rounds), config.checkpoint.save)
    elif part == "blend":
        from megatron_yuan.benchmark import blend

        result = blend.report(_count("documents", documents, 1e4), int(rounds), config.checkpoint.save)
    elif part == "plan":
        from megatron_yuan.benchmark import planned

        result = dict(planned.plan(config, int(rounds)))
    elif part == "pipeline":
        from megatron_yuan.benchmark import pipeline

        result = pipeline.report(config, int(rounds))
    elif part == "balance":
        from megatron_yuan.benchmark import balance

        result = balance.report(config, int(rounds))
    elif part == "data":
        from megatron_yuan.benchmark import data

        if not inputs or config.data.tokenizer_model is None:
            raise ConfigError(
                "part is data, which needs text and a tokenizer; give --input FILE ... --tokenizer-model FILE."
            )
        result = data.report(inputs, config.data.tokenizer_model, int(rounds))
    else:
        from megatron_yuan.benchmark import reports

        report = getattr(reports, part)
        result = report(config, int(rounds), "--peers" in arguments)
    if output:
        Path(output).write_text(json.dumps(result, indent=1) + "\n")


def _count(name: str, text: str, least: float) -> int:
    try:
        count = float(text)
    except ValueError:
        count = 0.0
    if not least <= count <= 1e13:
        raise ConfigError(f"{name} is {text!r}, but must be a number from {least:g} up, such as {1e3 * least:g}.")
    return int(count)


def _take(arguments: list[str], flag: str, default: str) -> str:
    if flag not in arguments:
        return default
    at = arguments.index(flag)
    if at + 1 == len(arguments):
        raise ConfigError(f"{flag} needs a value.")
    _, value = arguments.pop(at), arguments.pop(at)
    return value


def _take_several(arguments: list[str], flag: str) -> list[str]:
    if flag not in arguments:
        return []
    at = arguments.index(flag)
    end = next((i for i in range(at + 1, len(arguments)) if arguments[i].startswith("--")), len(arguments))
    values = arguments[at + 1 : end]
    del arguments[at:end]
    return values


if __name__ == "__main__":
    run_command_line(main)

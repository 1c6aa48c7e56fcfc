"""Prove, for any settings, that a run stopped at a step and resumed is the run that was never stopped.

    python tools/verify_resume.py --stop-at 4 --steps 8 --nproc-per-node 2 -- \\
        --preset tiny --pipeline-model-parallel-size 2 --data-path data/en_text_document
    python tools/verify_resume.py --stop-at 4 --steps 8 --nproc-per-node 2 --resume-nproc-per-node 1 \\
        --resume-flags="--pipeline-model-parallel-size 1" -- ...            the resumed half on another layout

Two real runs in a scratch folder, each saving every step (give --save-interval for fewer). Exit code 0: the same run;
1: not, and the first step and tensor that differ; 2: a mistake in what was asked.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path

from megatron_yuan.drill.resume import Session, compare
from megatron_yuan.errors import ConfigError, run_command_line

ENTRY = Path(__file__).resolve().parents[1] / "pretrain_yuan_moe.py"
LAYOUT = {
    "--pipeline-model-parallel-size",
    "--virtual-pipeline-model-parallel-size",
    "--pipeline-model-parallel-layout",
    "--micro-batch-size",
}
"""With others of these the same samples are summed in another order."""


def main() -> int:
    """Train straight, train in two halves, compare."""
    arguments, flags = read_arguments()
    folder = Path(tempfile.mkdtemp(prefix="verify-resume-", dir=arguments.scratch))
    there = tuple(shlex.split(arguments.resume_flags))
    processes, resumed_on = arguments.nproc_per_node, arguments.resume_nproc_per_node or arguments.nproc_per_node
    common = ("--save-interval", "1", *flags, "--train-iters", str(arguments.steps), "--load-optim")
    straight, halves = (("--save", str(folder / name)) for name in ("straight", "halves"))
    sessions = [
        Session("straight", (*common, *straight), processes),
        Session("stopped", (*common, *halves, "--exit-interval", str(arguments.stop_at)), processes),
        Session("resumed", (*common, *there, *halves), resumed_on),
    ]
    try:
        for session in sessions:
            print(f"{session.name}: {session.processes} processes ... ", end="", flush=True)
            began = time.monotonic()
            session.run(ENTRY, folder / f"{session.name}.log")
            print(f"{time.monotonic() - began:.0f} s", flush=True)
        same = resumed_on == processes and not any(flag.partition("=")[0] in LAYOUT for flag in there)
        verdict = compare(folder / "straight", folder / "halves", arguments.stop_at, same)
        print(verdict.text)
    finally:
        if arguments.keep:
            print(f"kept: {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return 0 if verdict.difference is None else 1


def read_arguments() -> tuple[argparse.Namespace, list[str]]:
    """Ours before --, the training program's behind it."""
    own, flags = sys.argv[1:], []
    if "--" in own:
        place = own.index("--")
        own, flags = own[:place], own[place + 1 :]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--stop-at", type=int, required=True, help="step at which the second run stops and resumes")
    parser.add_argument("--steps", type=int, required=True, help="steps of the whole run")
    parser.add_argument("--nproc-per-node", type=int, default=1, help="processes")
    parser.add_argument("--resume-nproc-per-node", type=int, help="processes of the resumed half; unset, the same")
    parser.add_argument(
        "--resume-flags", default="", help='further flags of the resumed half: --resume-flags="--flag value"'
    )
    parser.add_argument("--scratch", help="where the runs' folder is made; unset, the system's temporary folder")
    parser.add_argument("--keep", action="store_true", help="leave the runs' folder")
    arguments = parser.parse_args(own)
    if not 0 < arguments.stop_at < arguments.steps:
        raise ConfigError(f"stop-at is {arguments.stop_at}, but must be from 1 to below the {arguments.steps} steps.")
    for name in ("--save", "--load", "--train-iters", "--exit-interval"):
        if name in flags:
            raise ConfigError(f"{name[2:]} is set by this tool; leave it out behind the --.")
    return arguments, flags


if __name__ == "__main__":
    run_command_line(main)

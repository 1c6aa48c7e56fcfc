"""Turn text into token ids for training: PREFIX_text_document.bin and .idx, with a passport (.json) beside them.

    python tools/preprocess_data.py --input zh.jsonl.gz --output-prefix data/zh --tokenizer-model t.model --append-eod

Input: jsonl (an object a line, its text under "text"), txt (a document a line, <n> for a line break), either one plain,
.gz or .zst, and parquet. Files, folders (all of these kinds in them but hidden ones and lists of rejects, sorted by
path) and globs ("data/**/*.jsonl.gz").
The output is the same for any number of --workers, and in the order of the input. Killed at any moment, the same
command with --resume goes on.
"""

from __future__ import annotations

import argparse
import os

from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from megatron_yuan.data.inputs import REJECTS
from megatron_yuan.data.preprocess import ON_ERROR, Progress, preprocess
from megatron_yuan.data.tokenizer import Tokenizer
from megatron_yuan.errors import run_command_line
from megatron_yuan.log import console


def parse() -> argparse.Namespace:
    """Read the command line."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", nargs="+", required=True, help="files, folders or globs, read in this order")
    parser.add_argument("--output-prefix", required=True, help="PREFIX of the files to write")
    parser.add_argument("--tokenizer-model", required=True, help="SentencePiece model")
    parser.add_argument("--json-keys", nargs="+", default=["text"], help="keys to encode, each into files of its own")
    parser.add_argument("--append-eod", action="store_true", help="end each document with <eod>, as training expects")
    parser.add_argument("--workers", type=int, default=cores, help=f"processes that encode (default: cores, {cores})")
    parser.add_argument("--on-error", choices=ON_ERROR, default="stop", help="at a document that cannot be used")
    parser.add_argument("--resume", action="store_true", help="go on where a run was broken off")
    parser.add_argument("--overwrite", action="store_true", help="replace output that is there already")
    return parser.parse_args()


def main() -> None:
    """Encode, and say what came out."""
    arguments = parse()
    tokenizer = Tokenizer(arguments.tokenizer_model)
    first: Progress | None = None
    last = Progress()
    columns = (BarColumn(), TextColumn("{task.percentage:>3.0f}%  {task.description}"), TimeRemainingColumn())
    # Shown on a terminal alone; a pipe or a log gets the summary.
    # Refreshed by hand: a process without threads may fork its workers.
    shown = console().is_terminal
    with Bar(*columns, console=console(), transient=True, disable=not shown, auto_refresh=False) as bar:
        task = bar.add_task("starting", total=None)

        def show(progress: Progress) -> None:
            nonlocal first, last
            first, last = first or progress, progress
            done, total = last.disk_bytes, last.disk_bytes_total
            bar.update(task, completed=done, total=total, description=rates(first, last), refresh=True)

        passports = preprocess(
            arguments.input,
            arguments.output_prefix,
            tokenizer,
            arguments.append_eod,
            arguments.json_keys,
            arguments.workers,
            arguments.overwrite,
            show,
            arguments.on_error,
            arguments.resume,
        )
    for key, passport in zip(arguments.json_keys, passports, strict=True):
        print(f"{arguments.output_prefix}_{key}_document: {passport.documents:,} documents, {passport.tokens:,} tokens")
    if passports[0].rejects:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(passports[0].rejects.items()))
        total = sum(passports[0].rejects.values())
        print(f"{total:,} documents left out ({reasons}), listed in {arguments.output_prefix}{REJECTS}")
    if first is None:
        print("nothing was left to do")
    else:
        read = last.input_bytes - first.input_bytes  # in this session, as the seconds are
        print(f"{read / 1e6:,.1f} MB in {last.seconds:,.1f} s: {rates(first, last)}")


def rates(first: Progress, last: Progress) -> str:
    """How fast it goes, or went, since `first`."""
    seconds = max(last.seconds - first.seconds, 1e-9)
    return (
        f"{(last.documents - first.documents) / seconds:,.0f} documents/s, "
        f"{(last.input_bytes - first.input_bytes) / 1e6 / seconds:,.2f} MB/s, "
        f"{(last.tokens - first.tokens) / seconds:,.0f} tokens/s"
    )


if __name__ == "__main__":
    run_command_line(main)

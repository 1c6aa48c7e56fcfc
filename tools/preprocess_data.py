"""Turn text into token ids for training: PREFIX_text_document.bin and .idx, with a passport (.json) beside them.

    python tools/preprocess_data.py --input zh.jsonl.gz --output-prefix data/zh --tokenizer-model t.model --append-eod

Input: jsonl (an object a line, its text under "text") or txt (a document a line, <n> for a line break), gzipped or not.
"""

from __future__ import annotations

import argparse

from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from megatron_yuan.data.preprocess import Progress, preprocess
from megatron_yuan.data.tokenizer import Tokenizer
from megatron_yuan.errors import run_command_line
from megatron_yuan.log import console


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", nargs="+", required=True, help="jsonl, jsonl.gz or txt files, read in this order")
    parser.add_argument("--output-prefix", required=True, help="PREFIX of the files to write")
    parser.add_argument("--tokenizer-model", required=True, help="SentencePiece model")
    parser.add_argument("--json-keys", nargs="+", default=["text"], help="keys to encode, each into files of its own")
    parser.add_argument("--append-eod", action="store_true", help="end each document with <eod>, as training expects")
    parser.add_argument("--workers", type=int, default=1, help="processes that encode; the output is the same")
    parser.add_argument("--overwrite", action="store_true", help="replace output that is there already")
    return parser.parse_args()


def main() -> None:
    """Encode, and say what came out."""
    arguments = parse()
    tokenizer = Tokenizer(arguments.tokenizer_model)
    last = Progress()
    columns = (BarColumn(), TextColumn("{task.percentage:>3.0f}%  {task.description}"), TimeRemainingColumn())
    # Shown on a terminal alone; a pipe or a log gets the summary.
    with Bar(*columns, console=console(), transient=True, disable=not console().is_terminal) as bar:
        task = bar.add_task("starting", total=None)

        def show(progress: Progress) -> None:
            nonlocal last
            last = progress
            bar.update(
                task, completed=progress.disk_bytes, total=progress.disk_bytes_total, description=rates(progress)
            )

        passports = preprocess(
            arguments.input,
            arguments.output_prefix,
            tokenizer,
            arguments.append_eod,
            arguments.json_keys,
            arguments.workers,
            arguments.overwrite,
            show,
        )
    for key, passport in zip(arguments.json_keys, passports, strict=True):
        print(f"{arguments.output_prefix}_{key}_document: {passport.documents:,} documents, {passport.tokens:,} tokens")
    if last.left_out:
        print(f"{last.left_out:,} documents without text left out")
    print(f"{last.input_bytes / 1e6:,.1f} MB in {last.seconds:,.1f} s: {rates(last)}")


def rates(progress: Progress) -> str:
    """How fast it goes, or went."""
    seconds = max(progress.seconds, 1e-9)
    return (
        f"{progress.documents / seconds:,.0f} documents/s, {progress.input_bytes / 1e6 / seconds:,.2f} MB/s, "
        f"{progress.tokens / seconds:,.0f} tokens/s"
    )


if __name__ == "__main__":
    run_command_line(main)

"""Turn text into token ids for training: PREFIX_text_document.bin and .idx, with a passport (.json) beside them.

python tools/preprocess_data.py --input zh.jsonl.gz --output-prefix data/zh --tokenizer-model tokenizer.model --append-eod
"""

from __future__ import annotations

import argparse
import os

from megatron_yuan.data.preprocess import Progress, preprocess
from megatron_yuan.data.tokenizer import Tokenizer
from megatron_yuan.errors import run_command_line
from megatron_yuan.log import console


def main() -> None:
    """Read the command line, encode, and say what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", nargs="+", required=True, help="jsonl, jsonl.gz or txt files, read in this order")
    parser.add_argument("--output-prefix", required=True, help="PREFIX of the files to write")
    parser.add_argument("--tokenizer-model", required=True, help="SentencePiece model")
    parser.add_argument("--json-keys", nargs="+", default=["text"], help="keys to encode, each into files of its own")
    parser.add_argument("--append-eod", action="store_true", help="end each document with <eod>, as training expects")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="threads that encode")
    parser.add_argument("--overwrite", action="store_true", help="replace output that is there already")
    arguments = parser.parse_args()
    tokenizer = Tokenizer(arguments.tokenizer_model)
    with console().status("reading") as status:
        passports = preprocess(
            arguments.input,
            arguments.output_prefix,
            tokenizer,
            arguments.append_eod,
            arguments.json_keys,
            arguments.workers,
            arguments.overwrite,
            lambda progress: status.update(_line(progress)) or last.append(_line(progress)),
        )
    for key, passport in zip(arguments.json_keys, passports, strict=True):
        print(f"{arguments.output_prefix}_{key}_document: {passport.documents:,} documents, {passport.tokens:,} tokens")
    print(last[-1])


last: list[str] = []


def _line(progress: Progress) -> str:
    seconds = max(progress.seconds, 1e-9)
    return (
        f"{progress.documents:,} documents, {progress.input_bytes / 1e6:.1f} MB, {progress.tokens:,} tokens; "
        f"{progress.input_bytes / 1e6 / seconds:.1f} MB/s, {progress.tokens / seconds:,.0f} tokens/s"
    )


if __name__ == "__main__":
    run_command_line(main)

"""Train a SentencePiece tokenizer of the published kind on your own text.

python tools/train_tokenizer.py --input en.jsonl zh.jsonl.gz --vocab-size 8000 --output tokenizer.model
"""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_yuan.data.tokenizer import Tokenizer
from megatron_yuan.data.train_tokenizer import train_tokenizer
from megatron_yuan.errors import run_command_line


def main() -> None:
    """Read the command line, train, and say what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", nargs="+", required=True, help="jsonl, jsonl.gz or txt files")
    parser.add_argument("--json-keys", nargs="+", default=["text"], help="keys of a jsonl object that hold text")
    parser.add_argument("--vocab-size", type=int, required=True, help="number of pieces")
    parser.add_argument("--output", type=Path, required=True, help="file to write, such as tokenizer.model")
    arguments = parser.parse_args()
    output = train_tokenizer(arguments.input, arguments.output, arguments.vocab_size, arguments.json_keys)
    tokenizer = Tokenizer(output)
    print(f"{output}: {tokenizer.vocab_size} ids, <eod> is {tokenizer.eod_id}")


if __name__ == "__main__":
    run_command_line(main)

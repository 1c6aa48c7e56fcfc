"""Continue a text with a trained model, printing it as it comes.

    python tools/generate.py --load RUN_OR_HF_FOLDER --prompt 'Which number is larger, 27 or 72?<sep>'
    echo '从前有座山' | python tools/generate.py --load RUN --temperature 0.8 --top-p 0.9 --seed 1

Stops at <eod>. The text goes to stdout, the speed to stderr.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_yuan.errors import CheckpointError, DataError, run_command_line

if TYPE_CHECKING:
    from megatron_yuan.data.tokenizer import Tokenizer
    from megatron_yuan.inference.model import LanguageModel


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load", type=Path, required=True, help="run folder, checkpoint or HF folder")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompt", help="text to continue; without it and --prompt-file, stdin is read")
    source.add_argument("--prompt-file", type=Path, help="file with the text to continue (UTF-8)")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (the default) is greedy")
    parser.add_argument("--top-k", type=int, default=0, help="choose among the k best tokens; 0: all")
    parser.add_argument("--top-p", type=float, default=1.0, help="choose among the best tokens of this probability")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--dtype", help="fp32, bf16 or fp16; unset, as the weights were saved")
    parser.add_argument("--no-cache", action="store_true", help="compute every step from the start (slow, to compare)")
    parser.add_argument("--tokenizer-model", type=Path, help="SentencePiece model; unset, the checkpoint's")
    return parser.parse_args()


def read_prompt(arguments: argparse.Namespace) -> str:
    """The text to continue. A file's or stdin's last line break is not part of it."""
    if arguments.prompt is not None:
        return arguments.prompt
    source = "stdin" if arguments.prompt_file is None else f"--prompt-file {arguments.prompt_file}"
    try:
        raw = sys.stdin.buffer.read() if arguments.prompt_file is None else arguments.prompt_file.read_bytes()
        return raw.decode("utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not UTF-8 at byte {error.start}"
        raise DataError(f"{source} cannot be read: {reason}.") from None


def find_tokenizer(arguments: argparse.Namespace, model: LanguageModel) -> Tokenizer:
    """The tokenizer named, or the one that lies with the weights."""
    from megatron_yuan.data.tokenizer import Tokenizer

    if arguments.tokenizer_model is not None:
        tokenizer = Tokenizer(str(arguments.tokenizer_model))
        model.tokenizer, model.eod_id = tokenizer, tokenizer.eod_id
        return tokenizer
    if model.tokenizer is None:
        raise CheckpointError(
            f"{arguments.load} has no tokenizer.model; name the one of its data: --tokenizer-model FILE"
        )
    return model.tokenizer


def main() -> None:
    """Load, generate, print."""
    arguments = parse()
    from megatron_yuan.inference.model import load
    from megatron_yuan.inference.sampling import Sampling
    from megatron_yuan.inference.streaming import stream_text

    sampling = Sampling(arguments.temperature, arguments.top_k, arguments.top_p, arguments.seed)
    text = read_prompt(arguments)
    model = load(arguments.load, arguments.dtype, arguments.device)
    tokenizer = find_tokenizer(arguments, model)
    prompt = tokenizer.encode(text)
    if not prompt:
        raise DataError("the prompt is empty; give at least one character with --prompt.")
    new: list[int] = []
    started = time.perf_counter()

    def counted() -> Iterator[int]:
        for token in model.stream(prompt, arguments.max_new_tokens, sampling, use_cache=not arguments.no_cache):
            new.append(token)
            yield token

    for piece in stream_text(counted(), tokenizer.decode, prompt):
        print(piece, end="", flush=True)
    print()
    seconds = time.perf_counter() - started
    print(f"{len(new)} tokens in {seconds:.1f} s, {len(new) / seconds:.1f} tokens/s", file=sys.stderr)


if __name__ == "__main__":
    run_command_line(main)

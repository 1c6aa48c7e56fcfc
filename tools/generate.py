"""Continue a text with a trained model, printing it as it comes.

    python tools/generate.py --load RUN_OR_HF_FOLDER --prompt 'Which number is larger, 27 or 72?<sep>'
    echo '从前有座山' | python tools/generate.py --load RUN --temperature 0.8 --top-p 0.9 --seed 1

    torchrun --nproc-per-node 2 tools/generate.py --load RUN --pipeline-model-parallel-size 2 --prompt A --prompt B

Stops at <eod>, or where the text holds a --stop string. The text goes to stdout, the speed to stderr. Several prompts
are one batch. Under torchrun a model that one device does not hold is spread over pipeline stages.
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
    from megatron_yuan.inference.sampling import Sampling
    from megatron_yuan.parallel.topology import Topology


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load", type=Path, required=True, help="run folder, checkpoint or HF folder")
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--prompt", action="append", help="text to continue; give it again for a batch; without it, stdin is read"
    )
    source.add_argument("--prompt-file", type=Path, help="file with the text to continue (UTF-8)")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (the default) is greedy")
    parser.add_argument("--top-k", type=int, default=0, help="choose among the k best tokens; 0: all")
    parser.add_argument("--top-p", type=float, default=1.0, help="choose among the best tokens of this probability")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--dtype", help="fp32, bf16 or fp16; unset, as the weights were saved")
    parser.add_argument("--stop", action="append", default=[], help="text that ends the answer; may be repeated")
    parser.add_argument("--logprobs", action="store_true", help="print each token with its log-probability")
    parser.add_argument("--show-experts", action="store_true", help="print which experts took which token")
    parser.add_argument("--pipeline-model-parallel-size", type=int, default=1, help="stages, under torchrun")
    parser.add_argument("--no-cache", action="store_true", help="compute every step from the start (slow, to compare)")
    parser.add_argument("--tokenizer-model", type=Path, help="SentencePiece model; unset, the checkpoint's")
    return parser.parse_args()


def read_prompts(arguments: argparse.Namespace) -> list[str]:
    """The texts to continue. A file's or stdin's last line break is not part of it."""
    if arguments.prompt is not None:
        return arguments.prompt
    source = "stdin" if arguments.prompt_file is None else f"--prompt-file {arguments.prompt_file}"
    try:
        raw = sys.stdin.buffer.read() if arguments.prompt_file is None else arguments.prompt_file.read_bytes()
        return [raw.decode("utf-8").removesuffix("\n")]
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
    """Load, generate, print: on one process, or as one of several stages."""
    arguments = parse()
    from megatron_yuan.inference.sampling import Sampling
    from megatron_yuan.parallel.several import joined

    sampling = Sampling(arguments.temperature, arguments.top_k, arguments.top_p, arguments.seed)
    texts = read_prompts(arguments)
    with joined(arguments.pipeline_model_parallel_size, arguments.device) as topology:
        generate(arguments, texts, sampling, topology)


def generate(arguments: argparse.Namespace, texts: list[str], sampling: Sampling, topology: Topology | None) -> None:
    """Continue `texts`; the first rank prints."""
    from megatron_yuan.inference.load import load

    model = load(arguments.load, arguments.dtype, arguments.device, topology)
    tokenizer = find_tokenizer(arguments, model)
    prompts = [tokenizer.encode(text) for text in texts]
    if not all(prompts):
        raise DataError("the prompt is empty; give at least one character with --prompt.")
    speaks = topology is None or topology.is_main
    started = time.perf_counter()
    if len(prompts) == 1 and not (arguments.stop or arguments.logprobs):
        answers = [print_as_it_comes(arguments, model, tokenizer, prompts[0], sampling, speaks)]
    else:
        answers = print_batch(arguments, model, tokenizer, texts, prompts, sampling, speaks)
    seconds = time.perf_counter() - started
    if speaks:
        count = sum(map(len, answers))
        print(f"{count} tokens in {seconds:.1f} s, {count / seconds:.1f} tokens/s", file=sys.stderr)
    if arguments.show_experts:
        for prompt, answer in zip(prompts, answers, strict=True):
            show_experts(model, tokenizer, [*prompt, *answer], speaks)


def print_as_it_comes(
    arguments: argparse.Namespace,
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: list[int],
    sampling: Sampling,
    speaks: bool,
) -> list[int]:
    """Print one answer token by token; returns its ids."""
    from megatron_yuan.inference.streaming import stream_text

    new: list[int] = []

    def counted() -> Iterator[int]:
        for token in model.stream(prompt, arguments.max_new_tokens, sampling, use_cache=not arguments.no_cache):
            new.append(token)
            yield token

    for piece in stream_text(counted(), tokenizer.decode, prompt):
        if speaks:
            print(piece, end="", flush=True)
    if speaks:
        print()
    return new


def print_batch(
    arguments: argparse.Namespace,
    model: LanguageModel,
    tokenizer: Tokenizer,
    texts: list[str],
    prompts: list[list[int]],
    sampling: Sampling,
    speaks: bool,
) -> list[list[int]]:
    """Print the answers to all prompts once they are there; returns their ids."""
    from megatron_yuan.inference.stopping import cut_text
    from megatron_yuan.inference.streaming import text_behind

    found = model.complete(
        prompts, arguments.max_new_tokens, sampling, None, arguments.stop, use_cache=not arguments.no_cache
    )
    for text, prompt, completion in zip(texts, prompts, found, strict=True):
        if not speaks:
            break
        answer = cut_text(text_behind(prompt, completion.ids, tokenizer.decode), arguments.stop)
        print(answer if len(texts) == 1 else f"{text} => {answer}")
        if arguments.logprobs:
            for piece, logprob in zip(pieces_of(completion.ids, tokenizer), completion.logprobs, strict=True):
                print(f"{logprob:9.4f}  {piece!r}")
    return [completion.ids for completion in found]


def pieces_of(ids: list[int], tokenizer: Tokenizer) -> list[str]:
    """What each of `ids` stands for, its leading space included."""
    pieces = tokenizer.piece_bytes()
    return [pieces[each].decode("utf-8", errors="replace") for each in ids]


def show_experts(model: LanguageModel, tokenizer: Tokenizer, ids: list[int], speaks: bool) -> None:
    """Print a line a token with its experts in each layer."""
    from megatron_yuan.inference.expert_choices import as_table, expert_choices
    from megatron_yuan.log import console

    choices_SLK = expert_choices(model, ids)
    if speaks:
        console().print(as_table(pieces_of(ids, tokenizer), choices_SLK, model.config.num_experts))


if __name__ == "__main__":
    run_command_line(main)

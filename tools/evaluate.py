"""Score a model on GSM8K, MATH, MMLU, ARC-C and HumanEval, from local files.

    python tools/evaluate.py --load RUN_OR_HF_FOLDER --tasks gsm8k,math,mmlu,arc_challenge --task-data DIR --output OUT
    python tools/evaluate.py --load RUN --tasks humaneval --task-data DIR --allow-code-execution --published

    torchrun --nproc-per-node 4 tools/evaluate.py --load RUN --tasks mmlu --task-data DIR \\
        --pipeline-model-parallel-size 2

Prints a table; --output keeps results.json, every question's answer, and what a broken start has found so far: the same
command goes on from there. Other tasks of the same model come beside those there; another model begins
results.json anew. Under torchrun, replicas share the questions. --list says which tasks there are.
Needs the extra `eval`: pip install 'lm-eval>=0.4.13,<0.5'
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_yuan.errors import CheckpointError, run_command_line

if TYPE_CHECKING:
    from megatron_yuan.evaluation.run import Settings
    from megatron_yuan.parallel.topology import Topology


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load", type=Path, help="run folder, checkpoint or HF folder")
    parser.add_argument("--tasks", default="", help="names, separated by commas")
    parser.add_argument("--list", action="store_true", help="say which tasks there are")
    parser.add_argument("--task-data", type=Path, default=Path("data/eval"), help="folder of the questions")
    parser.add_argument("--limit", type=int, help="ask only the first so many questions of each task")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--output", type=Path, help="folder for results and answers; goes on where it was left")
    parser.add_argument("--num-fewshot", type=int, help="worked examples instead of each task's own number")
    parser.add_argument("--max-new-tokens", type=int, help="the longest answer, if below the task's own limit")
    parser.add_argument("--allow-code-execution", action="store_true", help="run the programs that the model writes")
    parser.add_argument("--published", action="store_true", help="print the paper's scores beside")
    parser.add_argument("--pipeline-model-parallel-size", type=int, default=1, help="stages, under torchrun")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--dtype", help="fp32, bf16 or fp16; unset, as the weights were saved")
    parser.add_argument("--tokenizer-model", type=Path, help="SentencePiece model; unset, the checkpoint's")
    arguments = parser.parse_args()
    if not arguments.list and arguments.load is None:
        parser.error("the following arguments are required: --load")
    return arguments


def main() -> None:
    """Check what can be checked, then load, ask and tell."""
    arguments = parse()
    from megatron_yuan.evaluation.catalogue import TASKS
    from megatron_yuan.evaluation.run import Settings, check
    from megatron_yuan.parallel.several import joined

    if arguments.list:
        print("\n".join(f"{name:33}{info.what}" for name, info in TASKS.items()))
        return
    names = ("limit", "batch_size", "output", "num_fewshot", "max_new_tokens", "allow_code_execution")
    settings = Settings(arguments.task_data, **{name: getattr(arguments, name) for name in names})
    tasks = check(arguments.tasks.split(","), settings)
    with joined(arguments.pipeline_model_parallel_size, arguments.device) as topology:
        run(arguments, tasks, settings, topology)


def run(arguments: argparse.Namespace, tasks: list[str], settings: Settings, topology: Topology | None) -> None:
    """Load and evaluate; the first rank writes."""
    from megatron_yuan.evaluation import published
    from megatron_yuan.evaluation.run import evaluate
    from megatron_yuan.inference.load import load
    from megatron_yuan.log import configure, console, logger

    if topology is None:
        configure()
    model = load(arguments.load, arguments.dtype, arguments.device, topology)
    if arguments.tokenizer_model is not None:
        from megatron_yuan.data.tokenizer import Tokenizer

        model.tokenizer = Tokenizer(str(arguments.tokenizer_model))
        model.eod_id = model.tokenizer.eod_id
    if model.tokenizer is None:
        raise CheckpointError(
            f"{arguments.load} has no tokenizer.model; name the one of its data: --tokenizer-model FILE"
        )
    speaks = topology is None or topology.is_main
    results = evaluate(model, tasks, settings, speaks)
    if not speaks:
        return
    if settings.output is not None:
        results.write(settings.output, {name: str(value) for name, value in vars(arguments).items()})
    for note in results.notes:
        logger.info("%s", note)
    console().print(results.table())
    if arguments.published:
        console().print(results.published_table())
        console().print(published.NOTE)


if __name__ == "__main__":
    run_command_line(main)

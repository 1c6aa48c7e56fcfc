"""Score a model on held-out questions by exact match of its greedy answer, beside the same model untrained, or another.

    python examples/score_heldout.py --load RUN --questions heldout.jsonl [--before RUN] [--examples 2]

The questions are those of examples/sample_corpus.py or sample_dialogues.py: {"lang", "kind", "question", "answer"} a
line. The model is asked 'question<sep>' and answers up to <eod> or <sep>. Untrained means: initial weights of the same
shape, with the same tokenizer.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from itertools import takewhile
from pathlib import Path

import torch

import megatron_yuan
from megatron_yuan.data.tokenizer import Tokenizer
from megatron_yuan.errors import DataError, run_command_line
from megatron_yuan.model.initialize import initialize
from megatron_yuan.model.model import YuanModel

BATCH = 64
Row = dict[str, str]


def read_questions(path: Path) -> list[Row]:
    """Read the questions; an error names the file, or the line that is not as it should be."""
    if not path.is_file():
        raise DataError(f"--questions {path}: no such file; examples/sample_corpus.py writes one.")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            rows.append({key: row[key] for key in ("lang", "kind", "question", "answer")})
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise DataError(f"--questions {path}, line {number}: not a question ({error!r}).") from error
    return rows


def answer_all(model: torch.nn.Module, tokenizer: Tokenizer, rows: list[Row]) -> list[str]:
    """The greedy answer to each question. Questions of one length share a batch, so that no padding is needed."""
    ends = {tokenizer.eod_id, *tokenizer.encode("<sep>")}  # after <sep>, a model of dialogues asks the next question
    longest = max(len(tokenizer.encode(row["answer"])) for row in rows) + 2  # one for <eod>, one to be seen as too long
    by_length: defaultdict[int, list[int]] = defaultdict(list)
    prompts = [tokenizer.encode(row["question"] + "<sep>") for row in rows]
    for i, prompt in enumerate(prompts):
        by_length[len(prompt)].append(i)
    answers = [""] * len(rows)
    for length, members in by_length.items():
        for start in range(0, len(members), BATCH):
            batch = members[start : start + BATCH]
            output = model.generate(torch.tensor([prompts[i] for i in batch]), max_new_tokens=longest)  # type: ignore[operator]
            for i, ids in zip(batch, output.tolist(), strict=True):
                new = list(takewhile(lambda token: token not in ends, ids[length:]))
                answers[i] = tokenizer.decode(new).strip()
    return answers


def shares(rows: list[Row], answers: list[str]) -> dict[tuple[str, str], tuple[int, int]]:
    """Right answers and questions of each (language, kind), and of each language as a whole under the kind 'all'."""
    counts: defaultdict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for row, answer in zip(rows, answers, strict=True):
        for kind in (row["kind"], "all"):
            counts[row["lang"], kind][0] += answer == row["answer"]
            counts[row["lang"], kind][1] += 1
    return {key: (right, total) for key, (right, total) in counts.items()}


def print_table(rows: list[Row], first: list[str], trained: list[str], names: tuple[str, str]) -> None:
    """Print one line for each language and kind, and the language's total last; `names` head the two columns."""
    before, after = shares(rows, first), shares(rows, trained)
    print(f"{'language':<10}{'kind':<16}{'questions':>9}{names[0]:>11}{names[1]:>9}")
    for lang, kind in sorted(after, key=lambda key: (key[0], key[1] == "all", key[1])):
        (zero, _), (right, total) = before[lang, kind], after[lang, kind]
        print(f"{lang:<10}{kind:<16}{total:>9}{zero / total:>11.0%}{right / total:>9.0%}")


def main() -> None:
    """Read the command line, ask the model twice, print the table."""
    parser = argparse.ArgumentParser(description="Exact match on held-out questions, untrained and trained.")
    parser.add_argument("--load", type=Path, required=True, help="run folder, checkpoint or HF folder")
    parser.add_argument("--questions", type=Path, required=True, help="heldout.jsonl of a sample corpus")
    parser.add_argument("--before", type=Path, help="a model to compare with; unset, the same one untrained")
    parser.add_argument("--tokenizer-model", type=Path, help="SentencePiece model; unset, tokenizer.model in --load")
    parser.add_argument("--examples", type=int, default=2, help="answers to print for each language")
    arguments = parser.parse_args()

    rows = read_questions(arguments.questions)
    tokenizer = Tokenizer(str(arguments.tokenizer_model or arguments.load / "tokenizer.model"))
    model = megatron_yuan.load(str(arguments.load))
    trained = answer_all(model, tokenizer, rows)
    names = "untrained", "trained"
    if arguments.before is not None:
        model, names = megatron_yuan.load(str(arguments.before)), ("before", "after")
    else:
        for part in model.modules():
            if isinstance(part, YuanModel):
                initialize(part, part.config, seed=0)
    first = answer_all(model, tokenizer, rows)
    for lang in sorted({row["lang"] for row in rows}):
        asked = [(row, answer) for row, answer in zip(rows, trained, strict=True) if row["lang"] == lang]
        for row, answer in asked[:: max(1, len(asked) // max(1, arguments.examples))][: arguments.examples]:
            verdict = "right" if answer == row["answer"] else f"wrong: it is {row['answer']}"
            print(f"  {row['question']}\n    {answer}  ({verdict})")
    print_table(rows, first, trained, names)


if __name__ == "__main__":
    run_command_line(main)

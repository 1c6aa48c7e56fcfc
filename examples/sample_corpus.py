"""Write the bilingual sample corpus of the quick start: training text, and held-out questions that it does not contain.

    python examples/sample_corpus.py --output-dir DIR [--documents 32000] [--seed 1]

DIR gets en.jsonl and zh.jsonl ({"text": ...} a line: questions with answers, stories, Python functions, sums) and
heldout.jsonl ({"lang", "kind", "template", "question", "answer"} a line). The same seed writes the same bytes anywhere.

A question is held out by combination: for each template, some combinations of its numbers, names or words (chosen by a
hash) never occur in training. What a held-out question needs is in the text, such as the sum 3 + 4 in another story.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from random import Random

from sample.numbers import NUMBER_TEMPLATES
from sample.prose import function, story, sums
from sample.template import Question, Template
from sample.words import WORD_TEMPLATES
from sample.world import LANGUAGES

TEMPLATES = (*NUMBER_TEMPLATES, *WORD_TEMPLATES)
STORY_SHARE, FUNCTION_SHARE, SUMS_SHARE = 0.06, 0.03, 0.06
HELD_OUT_PER_TEMPLATE = 6
DRAWS_PER_TEMPLATE = 4000


def held_out_questions(rng: Random, lang: str) -> list[Question]:
    """Draw up to HELD_OUT_PER_TEMPLATE held-out questions of each template, no two alike."""
    chosen: dict[str, Question] = {}
    for template in TEMPLATES:
        wanted = len(chosen) + HELD_OUT_PER_TEMPLATE
        for _ in range(DRAWS_PER_TEMPLATE):
            question = template.ask(rng, lang)
            if question.held_out:
                chosen.setdefault(question.question, question)
            if len(chosen) == wanted:
                break
    return list(chosen.values())


def training_question(rng: Random, lang: str, template: Template) -> str:
    """Draw a question that is not held out."""
    while (question := template.ask(rng, lang)).held_out:
        pass
    return question.document


def training_documents(rng: Random, lang: str, count: int) -> list[str]:
    """Write the training text of one language: questions of every template in turn, stories, functions, sums."""
    documents = []
    for i in range(count):
        share = rng.random()
        if share < STORY_SHARE:
            documents.append(story(rng, lang))
        elif share < STORY_SHARE + FUNCTION_SHARE:
            documents.append(function(rng, lang))
        elif share < STORY_SHARE + FUNCTION_SHARE + SUMS_SHARE:
            documents.append(sums(rng))
        else:
            documents.append(training_question(rng, lang, TEMPLATES[i % len(TEMPLATES)]))
    rng.shuffle(documents)
    return documents


def write_lines(path: Path, rows: list[dict[str, str]]) -> None:
    """Write one JSON object a line, Chinese as it is."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_corpus(folder: Path, documents: int, seed: int) -> None:
    """Write the three files; refuse if a held-out question should stand anywhere in the training text."""
    folder.mkdir(parents=True, exist_ok=True)
    held_out, everything = [], []
    for lang in LANGUAGES:
        held_out += held_out_questions(Random(f"{seed} questions {lang}"), lang)
        texts = training_documents(Random(f"{seed} text {lang}"), lang, documents)
        write_lines(folder / f"{lang}.jsonl", [{"text": text} for text in texts])
        everything += texts
    training_text = "\n".join(everything)
    leaked = [question.question for question in held_out if question.question in training_text]
    assert not leaked, f"held-out questions in the training text: {leaked[:3]}"
    rows = [{key: value for key, value in asdict(question).items() if key != "held_out"} for question in held_out]
    write_lines(folder / "heldout.jsonl", rows)
    size = sum((folder / f"{lang}.jsonl").stat().st_size for lang in LANGUAGES)
    print(f"{folder}: {len(everything)} documents, {size / 1e6:.1f} MB, {len(held_out)} held-out questions")


def main() -> None:
    """Read the command line and write the corpus."""
    parser = argparse.ArgumentParser(description="Write the bilingual sample corpus and its held-out questions.")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder to write to; made if missing")
    parser.add_argument("--documents", type=int, default=32_000, help="training documents in each language")
    parser.add_argument("--seed", type=int, default=1, help="seed of the training text and of the questions")
    arguments = parser.parse_args()
    write_corpus(arguments.output_dir, arguments.documents, arguments.seed)


if __name__ == "__main__":
    main()

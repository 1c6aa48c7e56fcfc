"""Write text to pretrain on, and instruction data to fine-tune on: word problems in the manner of GSM8K, in dialogues.

    python examples/sample_dialogues.py --output-dir DIR [--documents 20000] [--dialogues 20000] [--seed 1]

DIR gets text.jsonl (stories, functions and sums without any question), problems.txt (the published form: a dialogue a
line, 'question<sep>answer' or 'question<sep>answer<sep>question<sep>answer' ..., with <n> for a line break) and
heldout.jsonl for examples/score_heldout.py: problems whose numbers never occur together in problems.txt.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from random import Random

from sample.problems import PROBLEM_TEMPLATES, follow_up
from sample.prose import function, story, sums
from sample.template import Question
from sample.world import LANGUAGES

SUMS_SHARE, FUNCTION_SHARE = 0.5, 0.05
HELD_OUT_PER_TEMPLATE = 40


def plain_text(rng: Random) -> str:
    """Draw a document without a question."""
    share, lang = rng.random(), rng.choice(LANGUAGES)
    if share < SUMS_SHARE:
        return sums(rng)
    return function(rng, lang) if share < SUMS_SHARE + FUNCTION_SHARE else story(rng, lang)


def dialogue(rng: Random) -> str:
    """Draw one to three questions with answers; the later ones go on from the answer before."""
    lang, template = rng.choice(LANGUAGES), rng.choice(PROBLEM_TEMPLATES)
    while (first := template.ask(rng, lang)).held_out:
        pass
    turns = [first.question, first.answer]
    for _ in range(rng.choice((0, 0, 1, 2))):
        turns += follow_up(rng, lang, int(turns[-1].rpartition(" ")[2]))
    return "<sep>".join(turns)


def held_out_problems(rng: Random) -> list[Question]:
    """Draw held-out problems of every template in both languages, no two alike."""
    chosen: dict[str, Question] = {}
    for lang in LANGUAGES:
        for template in PROBLEM_TEMPLATES:
            wanted = len(chosen) + HELD_OUT_PER_TEMPLATE
            while len(chosen) < wanted:
                question = template.ask(rng, lang)
                if question.held_out:
                    chosen.setdefault(question.question, question)
    return list(chosen.values())


def write_lines(path: Path, lines: list[str]) -> None:
    """Write one line each."""
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def main() -> None:
    """Read the command line and write the three files."""
    parser = argparse.ArgumentParser(description="Write text, dialogues of word problems, and held-out problems.")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder to write to; made if missing")
    parser.add_argument("--documents", type=int, default=20_000, help="documents to pretrain on")
    parser.add_argument("--dialogues", type=int, default=20_000, help="dialogues to fine-tune on")
    parser.add_argument("--seed", type=int, default=1, help="seed of everything")
    arguments = parser.parse_args()
    folder, seed = arguments.output_dir, arguments.seed
    folder.mkdir(parents=True, exist_ok=True)
    texts, talk = Random(f"{seed} text"), Random(f"{seed} dialogues")
    plain = [plain_text(texts) for _ in range(arguments.documents)]
    dialogues = [dialogue(talk) for _ in range(arguments.dialogues)]
    held_out = held_out_problems(Random(f"{seed} held out"))
    asked = "\n".join(dialogues)
    leaked = [each.question for each in held_out if each.question in asked]
    assert not leaked, f"held-out problems in problems.txt: {leaked[:3]}"
    write_lines(folder / "text.jsonl", [json.dumps({"text": text}, ensure_ascii=False) for text in plain])
    write_lines(folder / "problems.txt", [text.replace("\n", "<n>") for text in dialogues])
    rows = [{key: value for key, value in asdict(each).items() if key != "held_out"} for each in held_out]
    write_lines(folder / "heldout.jsonl", [json.dumps(row, ensure_ascii=False) for row in rows])
    print(f"{folder}: {len(plain)} documents, {len(dialogues)} dialogues, {len(held_out)} held-out problems")


if __name__ == "__main__":
    main()

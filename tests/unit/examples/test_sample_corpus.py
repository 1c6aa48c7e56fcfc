from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "examples" / "sample_corpus.py"
FILES = ("en.jsonl", "zh.jsonl", "heldout.jsonl")


def write_corpus(folder: Path, *flags: str) -> Path:
    subprocess.run([sys.executable, SCRIPT, "--output-dir", folder, *flags], check=True, capture_output=True)
    return folder


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def test_no_held_out_question_stands_in_the_training_text(corpus: Path) -> None:
    text = "\n".join(row["text"] for lang in ("en", "zh") for row in read(corpus / f"{lang}.jsonl"))
    questions = [row["question"] for row in read(corpus / "heldout.jsonl")]
    assert len(questions) == len(set(questions)) > 250
    assert not [question for question in questions if question in text]


def test_held_out_questions_cover_forty_templates_of_several_kinds(corpus: Path) -> None:
    rows = read(corpus / "heldout.jsonl")
    assert len({(row["lang"], row["template"]) for row in rows}) >= 40
    for lang in ("en", "zh"):
        assert len({row["kind"] for row in rows if row["lang"] == lang}) >= 8


def test_every_template_that_is_asked_is_also_taught(corpus: Path) -> None:
    for lang in ("en", "zh"):
        documents = [row["text"] for row in read(corpus / f"{lang}.jsonl")]
        taught = {text.split("<sep>")[1] for text in documents if "<sep>" in text}
        unknown = [row for row in read(corpus / "heldout.jsonl") if row["lang"] == lang and row["answer"] not in taught]
        # A few answers, such as 73000, are themselves new; the rest are known words and numbers.
        assert len(unknown) <= 60


def test_no_answer_can_be_guessed_for_half_of_the_questions(corpus: Path) -> None:
    for lang in ("en", "zh"):
        answers = Counter(row["answer"] for row in read(corpus / "heldout.jsonl") if row["lang"] == lang)
        assert answers.most_common(1)[0][1] < 0.1 * sum(answers.values())


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    one, two, other = (
        write_corpus(tmp_path / name, "--documents", "200", "--seed", seed)
        for name, seed in (("one", "7"), ("two", "7"), ("other", "8"))
    )
    for file in FILES:
        assert (one / file).read_bytes() == (two / file).read_bytes()
        assert (one / file).read_bytes() != (other / file).read_bytes()


def test_the_python_functions_of_the_corpus_run_and_their_examples_hold(corpus: Path) -> None:
    for lang in ("en", "zh"):
        programs = [row["text"] for row in read(corpus / f"{lang}.jsonl") if row["text"].startswith("def ")]
        assert len(programs) > 100
        for program in programs[:100]:
            ast.parse(program)
            exec(program, {})  # each ends with an assertion

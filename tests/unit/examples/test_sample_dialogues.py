from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "examples" / "sample_dialogues.py"
FILES = ("text.jsonl", "problems.txt", "heldout.jsonl")
SUM = re.compile(r"(\d+) ([-+*]) (\d+) = (\d+)")


def write(folder: Path, *flags: str) -> Path:
    command = [sys.executable, SCRIPT, "--output-dir", folder, "--documents", "300", "--dialogues", "600", *flags]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("dialogues"))


def dialogues(folder: Path) -> list[list[str]]:
    return [line.split("<sep>") for line in (folder / "problems.txt").read_text(encoding="utf-8").splitlines()]


def test_every_question_has_an_answer_and_some_dialogues_have_several(folder: Path) -> None:
    turns = [len(each) for each in dialogues(folder)]
    assert set(turns) == {2, 4, 6}


def test_every_sum_is_right_and_the_last_line_is_the_result(folder: Path) -> None:
    held_out = [json.loads(line)["answer"] for line in (folder / "heldout.jsonl").read_text("utf-8").splitlines()]
    answers = [answer.replace("<n>", "\n") for each in dialogues(folder) for answer in each[1::2]] + held_out
    for answer in answers:
        *sums, last = answer.splitlines()
        for line in sums:
            found = SUM.fullmatch(line)
            assert found is not None
            a, sign, b, c = found.groups()
            assert {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign] == int(c) > 0
        assert last == f"#### {sums[-1].rpartition(' ')[2]}"


def test_no_problem_that_is_asked_stands_in_the_dialogues_and_the_text_has_no_question(folder: Path) -> None:
    asked = [json.loads(line)["question"] for line in (folder / "heldout.jsonl").read_text("utf-8").splitlines()]
    taught = (folder / "problems.txt").read_text(encoding="utf-8")
    assert len(asked) == len(set(asked)) == 240 and not [each for each in asked if each in taught]
    assert "<sep>" not in (folder / "text.jsonl").read_text(encoding="utf-8")


def test_the_same_seed_writes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again, other = write(tmp_path / "again"), write(tmp_path / "other", "--seed", "2")
    for name in FILES:
        assert (again / name).read_bytes() == (folder / name).read_bytes() != (other / name).read_bytes()

"""An evaluation on stages and replicas finds what one process finds, question by question."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.evaluation import run, train, write_data, write_questions

pytest.importorskip("lm_eval")
TASKS = ("arc_challenge", "gsm8k")


def evaluated(trained: Path, questions: Path, output: Path, stages: int, processes: int) -> dict[str, list[dict]]:
    command = ["tools/evaluate.py", "--load", trained, "--tasks", ",".join(TASKS), "--task-data", questions]
    limits = ["--limit", 7, "--max-new-tokens", 12, "--batch-size", 3, "--device", "cpu", "--output", output]
    done = run([*command, *limits, "--pipeline-model-parallel-size", stages], processes)
    assert done.returncode == 0, done.stderr
    files = {task: (output / f"samples_{task}.jsonl").read_text().splitlines() for task in TASKS}
    return {task: [json.loads(line) for line in lines] for task, lines in files.items()}


@pytest.mark.slow
def test_stages_and_replicas_answer_every_question_as_one_process_does(tmp_path: Path) -> None:
    write_data(tmp_path)
    assert train(tmp_path, tmp_path / "run", 2).returncode == 0
    questions = write_questions(tmp_path / "questions")
    alone = evaluated(tmp_path / "run", questions, tmp_path / "1", 1, 1)
    for stages, replicas in ((2, 1), (1, 2), (2, 2)):
        output = tmp_path / f"{stages}x{replicas}"
        found = evaluated(tmp_path / "run", questions, output, stages, stages * replicas)
        assert found["gsm8k"] == alone["gsm8k"]
        for mine, theirs in zip(found["arc_challenge"], alone["arc_challenge"], strict=True):
            assert mine["answer"] == pytest.approx(theirs["answer"], abs=1e-4)
            assert mine["right"] == theirs["right"]
        # Each request was put to one replica alone.
        lines = [line for path in output.glob("answers-*.jsonl") for line in path.read_text().splitlines() if line]
        assert len(list(output.glob("answers-*.jsonl"))) == replicas
        assert len(lines) == len(set(lines))

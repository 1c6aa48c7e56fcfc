"""--eval-tasks: a training run's own model on tasks, whatever its layout, and the run is as it would be without."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_yuan.report.metrics import read_metrics
from tests.evaluation import train, write_data, write_questions

pytest.importorskip("lm_eval")
ASKED = ("--eval-tasks", "arc_challenge,gsm8k", "--eval-tasks-interval", "2", "--eval-tasks-limit", "3")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


@pytest.mark.slow
def test_tasks_are_measured_on_the_way_and_change_nothing_of_the_run(data: Path, tmp_path: Path) -> None:
    asked = (*ASKED, "--task-data", str(write_questions(tmp_path / "questions")))
    plain = train(data, tmp_path / "plain", 3)
    alone = train(data, tmp_path / "alone", 3, *asked)
    assert plain.returncode == alone.returncode == 0, plain.stderr + alone.stderr
    measured = read_metrics(tmp_path / "alone" / "metrics.jsonl")
    assert [each["step"] for each in measured.tasks] == [2, 3]
    assert all(each["questions"] == {"arc_challenge": 3, "gsm8k": 3} for each in measured.tasks)
    assert "tasks, accuracy | arc_challenge 0." in alone.stdout
    losses = [each["loss"] for each in read_metrics(tmp_path / "plain" / "metrics.jsonl").steps]
    assert [each["loss"] for each in measured.steps] == losses
    assert digest(tmp_path / "plain") == digest(tmp_path / "alone") != {}

    stages = ("--pipeline-model-parallel-size", "2", "--pipeline-model-parallel-layout", "1,2")
    spread = train(data, tmp_path / "spread", 3, *asked, *stages, processes=4)
    assert spread.returncode == 0, spread.stderr
    found = read_metrics(tmp_path / "spread" / "metrics.jsonl")
    assert [each["accuracy"] for each in found.tasks] == [each["accuracy"] for each in measured.tasks]


def digest(run: Path) -> dict[str, bytes]:
    newest = run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip()
    return {str(path.relative_to(newest)): path.read_bytes() for path in newest.rglob("*.safetensors")}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--eval-tasks", "arc_chalenge"], "perhaps arc_challenge?"),
        (["--eval-tasks", "humaneval"], "runs programs that the model wrote"),
        (["--eval-tasks", "mmlu"], "task-data data/eval is no folder"),
        (["--eval-tasks", "mmlu", "--eval-tasks-limit", "0"], "eval-tasks-limit is 0, but must be at least 1"),
    ],
)
def test_tasks_that_cannot_be_measured_are_refused_before_anything_begins(
    data: Path, tmp_path: Path, flags: list[str], said: str
) -> None:
    refused = train(data, tmp_path / "run", 3, *flags)
    assert refused.returncode == 2
    assert said in refused.stderr and "Traceback" not in refused.stderr
    assert not (tmp_path / "run").exists()

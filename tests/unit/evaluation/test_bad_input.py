"""What cannot be evaluated is refused in a sentence, before a model is loaded."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from megatron_yuan.errors import CheckpointError, ConfigError, DataError
from megatron_yuan.evaluation.run import Settings, check, evaluate
from megatron_yuan.inference.load import load
from tests.evaluation import run


@pytest.mark.parametrize(
    ("tasks", "settings", "said"),
    [
        (["arc_chalenge"], {}, "'arc_chalenge' is not there; perhaps arc_challenge"),
        (["zzz"], {}, "there are gsm8k, math"),
        (["", " "], {}, "no task is named"),
        (["gsm8k"], {"task_data": Path("nowhere")}, "task-data nowhere is no folder"),
        (["humaneval"], {}, "allow that with --allow-code-execution"),
        (["gsm8k"], {"num_fewshot": 9}, "num-fewshot is 9, but worked examples for gsm8k are 0 to 8"),
        (["mmlu"], {"num_fewshot": 1}, "worked examples for mmlu are none"),
        (["gsm8k"], {"limit": 0}, "limit is 0"),
    ],
)
def test_a_mistake_is_named(questions: Path, tasks: list[str], settings: dict[str, Any], said: str) -> None:
    with pytest.raises((ConfigError, DataError), match=said.replace("(", r"\(")):
        check(tasks, Settings(**{"task_data": questions, **settings}))


def test_a_folder_without_a_tasks_questions_is_named_with_the_files_it_may_hold(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds none of gsm8k_test\.jsonl"):
        check(["gsm8k"], Settings(tmp_path))


def test_a_router_that_looks_ahead_is_not_asked_to_generate(questions: Path) -> None:
    from megatron_yuan.config.schema import ModelConfig

    ahead = ModelConfig(moe_router="expert-choice")
    with pytest.raises(ConfigError, match="which task gsm8k needs"):
        check(["gsm8k"], Settings(questions), ahead)
    pytest.importorskip("lm_eval")
    assert check(["mmlu", "mmlu"], Settings(questions), ahead) == ["mmlu"]


def test_a_damaged_file_and_too_few_questions_for_the_examples_are_told_before_anything_is_asked(
    tmp_path: Path,
) -> None:
    pytest.importorskip("lm_eval")
    arc = tmp_path / "arc_challenge.txt"
    arc.write_text("".join(f"Which {i}?<n>A.x<n>B.y[SEP]A\n" for i in range(3)), encoding="utf-8")
    with pytest.raises(DataError, match=r"sets 25 others of its questions before each .* holds 3 in all"):
        check(["arc_challenge_25shot"], Settings(tmp_path))
    with pytest.raises(DataError, match="sets 3 others"):
        check(["arc_challenge"], Settings(tmp_path, num_fewshot=3))
    assert check(["arc_challenge"], Settings(tmp_path, num_fewshot=2)) == ["arc_challenge"]
    arc.write_text("Which?<n>A.x<n>B.y[SEP]F\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 1"):
        check(["arc_challenge"], Settings(tmp_path))


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("gsm8k.jsonl", '{"question": "x", "answer": "no number"}\n', "line 1: not a question of gsm8k"),
        ("gsm8k.jsonl", "{\n", "line 1"),
        ("arc_challenge.txt", "A question<n>A.x<n>B.y", "is the file cut off"),
        ("arc_challenge.txt", "A question<n>A.x<n>B.y[SEP]F\n", "answer 'F' is none of AB"),
        ("math.txt", "", "holds no question"),
        ("gsm8k.jsonl", '{"question": "x", "answer": 5}\n', "answer is 5, no text"),
        ("gsm8k.jsonl", '{"question": null, "answer": "5"}\n', "question is None, no text"),
        ("gsm8k.jsonl", '{"question": "x", "answer": "#### nan"}\n', "answer nan is no number"),
        ("gsm8k.jsonl", '{"question": "\\ud800", "answer": "5"}\n', "surrogates not allowed"),
        ("gsm8k.jsonl", "[1]\n", "a JSON list, no object"),
        ("gsm8k.jsonl", "[" * 100_000 + "\n", "line 1: not a question"),
        ("mmlu.jsonl", '{"line": null}\n', "line is None, no text"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(tmp_path: Path, file: str, text: str, said: str) -> None:
    from megatron_yuan.evaluation import task_data

    (tmp_path / file).write_text(text)
    with pytest.raises(DataError, match=said):
        task_data.read(file.partition(".")[0], tmp_path)


def test_a_byte_order_mark_is_no_part_of_the_first_question(tmp_path: Path) -> None:
    from megatron_yuan.evaluation import task_data

    (tmp_path / "gsm8k.jsonl").write_text('{"question": "x", "answer": "5"}\n', encoding="utf-8-sig")
    (tmp_path / "math.txt").write_text("y[SEP]6\n", encoding="utf-8-sig")
    assert [task_data.read(each, tmp_path)[0]["question"] for each in ("gsm8k", "math")] == ["x", "y"]


def test_the_command_refuses_without_a_traceback(questions: Path, tmp_path: Path) -> None:
    done = run(["tools/evaluate.py", "--load", tmp_path, "--tasks", "gsm9k", "--task-data", questions])
    assert done.returncode == 2
    assert "perhaps gsm8k?" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"max_new_tokens": 0}])
def test_sizes_below_one_are_refused(trained: Path, questions: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must be 1 or more"):
        evaluate(load(trained), ["arc_challenge"], Settings(questions, **settings))


def test_a_checkpoint_without_a_tokenizer_and_an_output_that_is_a_file_are_named(
    trained: Path, questions: Path, tmp_path: Path
) -> None:
    without = shutil.copytree(trained / "checkpoints", tmp_path / "bare" / "checkpoints")
    for file in without.parent.rglob("tokenizer.model"):
        file.unlink()
    model = load(trained)
    model.tokenizer = None
    with pytest.raises(CheckpointError, match="--tokenizer-model"):
        evaluate(model, ["arc_challenge"], Settings(questions))
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be used"):
        evaluate(load(trained), ["arc_challenge"], Settings(questions, output=tmp_path / "file"))


def test_a_prompt_longer_than_the_context_is_cut_at_the_left_and_counted(trained: Path, questions: Path) -> None:
    found = evaluate(load(trained), ["gsm8k"], Settings(questions, limit=2, max_new_tokens=4), speaks=False)
    assert "2 requests were longer than the context of 256 tokens and were cut at the left" in found.notes
    assert found.tasks[0].questions == 2

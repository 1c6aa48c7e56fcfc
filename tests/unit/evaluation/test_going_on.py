"""An evaluation that was killed goes on where it was: nothing is asked twice, and the figures are the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from megatron_yuan.evaluation.answers import fingerprint
from megatron_yuan.evaluation.run import Settings, evaluate
from megatron_yuan.inference.load import load
from tests.evaluation import ROOT, run

pytest.importorskip("lm_eval")
QUESTIONS = 24


def keys(output: Path) -> list[str]:
    found = []
    for path in output.glob("answers-*.jsonl"):
        for line in path.read_text().splitlines():
            if line.endswith("]"):
                found.append(json.loads(line)[0])
    return found


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_and_asks_nothing_twice(trained: Path, questions: Path, tmp_path: Path) -> None:
    flags = ["tools/evaluate.py", "--load", trained, "--tasks", "gsm8k", "--task-data", questions, "--batch-size", "1"]
    flags = [*map(str, flags), "--device", "cpu", "--max-new-tokens", "16"]
    broken = tmp_path / "broken"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / flags[0]), *flags[1:], "--output", str(broken)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as first:
        deadline = time.monotonic() + 120
        while len(keys(broken)) < 3 and first.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        first.kill()
    before = keys(broken)
    assert 3 <= len(before) < QUESTIONS
    again = run([*flags, "--output", broken])
    assert again.returncode == 0, again.stderr
    assert f"{len(before)} answers were known from before" in again.stdout
    assert len(keys(broken)) == len(set(keys(broken))) == QUESTIONS
    whole = evaluate(load(trained), ["gsm8k"], Settings(questions, batch_size=1, max_new_tokens=16), speaks=False)
    found = [json.loads(line) for line in (broken / "samples_gsm8k.jsonl").read_text().splitlines()]
    assert found == whole.samples["gsm8k"]


def test_answers_of_another_model_are_not_taken_for_ones_own(trained: Path, questions: Path, tmp_path: Path) -> None:
    settings = Settings(questions, limit=4, output=tmp_path)
    model = load(trained)
    first = evaluate(model, ["arc_challenge"], settings, speaks=False)
    again = evaluate(model, ["arc_challenge"], settings, speaks=False)
    assert any("16 answers were known" in note for note in again.notes)
    assert again.samples == first.samples
    with torch.no_grad():
        model.final_norm.weight.mul_(-1.0)
    other = evaluate(model, ["arc_challenge"], settings, speaks=False)
    assert not any("known" in note for note in other.notes)
    assert other.samples != first.samples


def test_a_model_is_known_by_every_single_value_of_its_weights(trained: Path) -> None:
    model = load(trained)
    before = fingerprint(model)
    assert fingerprint(load(trained)) == before
    weight = model.embedding.weight
    with torch.no_grad():
        weight[7, 5] += 0.5
    assert fingerprint(model) != before

"""A model that knows the answers gets all points, one that is always wrong or silent none: the scoring is sound."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from typing import Any

import pytest

from megatron_yuan.evaluation.catalogue import TASKS
from megatron_yuan.evaluation.run import Settings, ask
from megatron_yuan.inference.stopping import cut_text
from tests.shared import SHARED

pytest.importorskip("lm_eval")
from lm_eval.api.model import LM

DATA = SHARED / "eval"
pytestmark = pytest.mark.skipif(not DATA.exists(), reason="needs shared/eval")

LIMIT, PROGRAMS = 25, 5

RIGHT = {
    "GSM8K": lambda doc: f"There are 7 of 12, so it is {doc['answer']}. The answer is {doc['answer']}.",
    "MATH": lambda doc: f"As $x=1$, so. Final Answer: The final answer is ${doc['answer']}$. I hope it is correct.",
    "MMLU": lambda doc: f"{doc['answer']}. A reason why Bob said so",
    "ARC-C": lambda doc: f"The answer is {doc['answer']}.",
    "HumanEval": lambda doc: solutions()[doc["task_id"]],
}
WRONG = {
    "GSM8K": lambda doc: f"{doc['answer']} would be a guess. The answer is {float(doc['answer']) + 1}.",
    "MATH": lambda doc: "Final Answer: The final answer is $17.03$. I hope it is correct.",
    "MMLU": lambda doc: f"{wrong_letter(doc)}. Not {doc['answer']}",
    "ARC-C": lambda doc: f"The answer is {wrong_letter(doc)}.",
    "HumanEval": lambda doc: "    return None\n",
}


def solutions() -> dict[str, str]:
    with gzip.open(DATA / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as file:
        return {row["task_id"]: row["canonical_solution"] for row in map(json.loads, file)}


def wrong_letter(doc: dict[str, Any]) -> str:
    return next(each for each in doc["letters"] if each != doc["answer"])


class Planted(LM):
    """Answers as it is told, up to where the task stops it; of choices, prefers the right one or dreads it."""

    def __init__(self, answer: Callable[[dict[str, Any]], str], right: bool) -> None:
        super().__init__()
        self.answer, self.right = answer, right

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        return [cut_text(self.answer(each.doc), each.args[1]["until"]) for each in requests]

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return [(-1.0 if (each.args[1] == each.doc["answer"]) == self.right else -2.0, False) for each in requests]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError


@pytest.mark.parametrize("task", list(TASKS))
def test_the_oracle_has_all_points_and_its_opposite_and_silence_none(task: str) -> None:
    info = TASKS[task]
    settings = Settings(DATA, limit=LIMIT if not info.runs_code else PROGRAMS)
    right, wrong = RIGHT[info.benchmark], WRONG[info.benchmark]
    answers = {"right": right, "wrong": wrong}
    if info.generates:
        # A model of dialogues asks itself the next question behind <sep>, and answers that too.
        answers |= {
            "right, and goes on": lambda doc: f"{right(doc)}<sep>And now?<sep>{wrong(doc)}",
            "silent": lambda doc: "",
        }
    found = {name: ask(Planted(answer, name == "right"), [task], settings).tasks[0] for name, answer in answers.items()}
    assert {name: each.accuracy for name, each in found.items()} == {name: float("right" in name) for name in answers}
    assert found["right"].answered == found["wrong"].answered == found["right"].questions
    if info.generates:
        assert found["silent"].answered == 0

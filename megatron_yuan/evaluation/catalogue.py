"""The tasks that there are, and what each needs. Knows neither torch nor the harness."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_yuan.errors import ConfigError


@dataclass(frozen=True)
class TaskInfo:
    """One task of `tasks/*.yaml`."""

    data: str
    """Which questions it asks: a name of `task_data.FILES`."""
    benchmark: str
    """Its column in the paper's table 6."""
    what: str
    generates: bool = True
    """Whether it takes answers in words; the others compare the probabilities of the choices."""
    runs_code: bool = False
    most_shots: int | None = None
    """The most worked examples that can be set before a question; None where the form has none."""
    own_shots: int | None = None
    """Where examples are others of its own questions: how many, unless another number is asked for."""


TASKS = {
    "gsm8k": TaskInfo("gsm8k", "GSM8K", "8 worked examples, last number of the answer", most_shots=8),
    "math": TaskInfo("math", "MATH", "4 worked examples, final answer normalised", most_shots=4),
    "mmlu": TaskInfo("mmlu", "MMLU", "likeliest letter, no examples", generates=False),
    "mmlu_generative": TaskInfo("mmlu", "MMLU", "first letter of the answer, no examples (the published way)"),
    "arc_challenge": TaskInfo(
        "arc_challenge", "ARC-C", "likeliest letter, no examples", False, most_shots=1000, own_shots=0
    ),
    "arc_challenge_25shot": TaskInfo(
        "arc_challenge", "ARC-C", "likeliest letter, 25 examples", False, most_shots=1000, own_shots=25
    ),
    "arc_challenge_generative": TaskInfo(
        "arc_challenge", "ARC-C", "first letter of the answer, no examples", most_shots=1000, own_shots=0
    ),
    "arc_challenge_25shot_generative": TaskInfo(
        "arc_challenge",
        "ARC-C",
        "first letter of the answer, 25 examples (the published way)",
        most_shots=1000,
        own_shots=25,
    ),
    "humaneval": TaskInfo("humaneval", "HumanEval", "the function is completed", runs_code=True),
    "humaneval_instruct": TaskInfo(
        "humaneval", "HumanEval", "the function is asked for in words (the published way)", runs_code=True
    ),
}


def checked_tasks(names: Sequence[str], allow_code_execution: bool, num_fewshot: int | None = None) -> list[str]:
    """`names`, each once. ConfigError for one that is not there, or that may not or cannot run so."""
    wanted = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    if not wanted:
        raise ConfigError(f"no task is named; there are {', '.join(TASKS)}.")
    for name in wanted:
        if name not in TASKS:
            near = difflib.get_close_matches(name, TASKS, n=1, cutoff=0.4)
            hint = f"perhaps {near[0]}?" if near else f"there are {', '.join(TASKS)}."
            raise ConfigError(f"task {name!r} is not there; {hint}")
        info = TASKS[name]
        if info.runs_code and not allow_code_execution:
            raise ConfigError(
                f"task {name} runs programs that the model wrote; allow that with --allow-code-execution, or leave it "
                "out."
            )
        if num_fewshot is not None and not 0 <= num_fewshot <= (info.most_shots or 0):
            have = f"0 to {info.most_shots}" if info.most_shots else "none"
            raise ConfigError(f"num-fewshot is {num_fewshot}, but worked examples for {name} are {have}.")
    return wanted

"""One evaluation: tasks through the harness over our inference, programs through the sandbox, figures out."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_yuan.config.routing import LOOKS_AHEAD
from megatron_yuan.errors import ConfigError, DataError
from megatron_yuan.evaluation import task_data
from megatron_yuan.evaluation.catalogue import TASKS, checked_tasks
from megatron_yuan.evaluation.harness import open_harness, without_its_bars
from megatron_yuan.evaluation.results import Results, task_result
from megatron_yuan.evaluation.scoring import whole_program
from megatron_yuan.inference.model import LanguageModel

if TYPE_CHECKING:
    from lm_eval.api.model import LM


@dataclass(frozen=True)
class Settings:
    """How to ask."""

    task_data: Path
    """Folder of the questions."""
    limit: int | None = None
    """The first so many questions of each task; None all."""
    batch_size: int = 16
    output: Path | None = None
    """Where answers are kept as they come, so that another start goes on from there."""
    num_fewshot: int | None = None
    """Worked examples instead of the task's own number."""
    max_new_tokens: int | None = None
    """The longest answer, where that is shorter than the task's own limit."""
    allow_code_execution: bool = False


def check(tasks: Sequence[str], settings: Settings, model_config: Any = None) -> list[str]:
    """The tasks' names, once all that can be known before a model is loaded has been looked at."""
    names = checked_tasks(tasks, settings.allow_code_execution, settings.num_fewshot)
    if settings.limit is not None and settings.limit < 1:
        raise ConfigError(f"limit is {settings.limit}, but must be 1 or more.")
    for name in names:
        task_data.find(TASKS[name].data, settings.task_data)
        if model_config is not None and model_config.moe_router == "expert-choice" and TASKS[name].generates:
            raise ConfigError(
                f"{LOOKS_AHEAD}, so it cannot generate, which task {name} needs.\n"
                f"Fix: a task that compares probabilities: {', '.join(n for n in TASKS if not TASKS[n].generates)}."
            )
    open_harness()
    for name in names:
        questions, shots = len(task_data.read(TASKS[name].data, settings.task_data)), TASKS[name].own_shots
        if shots is not None and settings.num_fewshot is not None:
            shots = settings.num_fewshot
        if shots is not None and shots >= questions:
            raise DataError(
                f"task {name} sets {shots} others of its questions before each as examples, but task-data "
                f"{settings.task_data} holds {questions} in all.\nFix: more questions, or fewer examples (num-fewshot)."
            )
    return names


def evaluate(model: LanguageModel, tasks: Sequence[str], settings: Settings, speaks: bool = True) -> Results:
    """Ask `model` the questions of `tasks`. On several processes all call it and get the same, programs aside: these
    run where it `speaks` alone, and their figures are known there alone.
    """
    names = check(tasks, settings, model.config)
    from megatron_yuan.evaluation.adapter import Adapter

    adapter = Adapter(model, settings.batch_size, settings.output, settings.max_new_tokens, speaks)
    try:
        results = ask(adapter, names, settings, speaks)
    finally:
        adapter.answers.close()
    return dataclasses.replace(results, notes=[*adapter.notes(), *results.notes], model=adapter.model_key)


def ask(lm: LM, names: Sequence[str], settings: Settings, speaks: bool = True) -> Results:
    """Put the questions to anything that the harness takes for a model, run its programs, and count."""
    open_harness()
    from lm_eval.evaluator import evaluate as ask_all

    started = time.perf_counter()
    loaded = _load(names, settings)
    with without_its_bars():
        found: Any = ask_all(lm, loaded, limit=settings.limit, bootstrap_iters=0, confirm_run_unsafe_code=True)
    assert found is not None
    samples = {name: [_sample(each) for each in found["samples"][name]] for name in names}
    shots = {name: int(loaded["tasks"][name].get_config("num_fewshot") or 0) for name in names}
    notes = _notes(any(shots.values()), settings)
    coded = [name for name in names if TASKS[name].runs_code]
    if coded and speaks:
        notes.append(run_programs({name: samples[name] for name in coded}))
    results = [task_result(name, shots[name], samples[name]) for name in names]
    return Results(results, notes, time.perf_counter() - started, samples)


def _load(names: Sequence[str], settings: Settings) -> Any:
    from lm_eval.tasks import TaskManager

    folder = Path(__file__).parent / "tasks"
    # Only ours: to look through all of the harness's own tasks takes a quarter of a minute.
    manager = TaskManager(
        include_path=str(folder), include_defaults=False, metadata={"folder": str(settings.task_data)}
    )
    loaded = manager.load(list(names))
    for task in loaded["tasks"].values():
        if settings.num_fewshot is not None:
            task.set_config("num_fewshot", settings.num_fewshot)
        task.set_fewshot_seed(0)
    return loaded


def _sample(found: dict[str, Any]) -> dict[str, Any]:
    question, answers = found["doc"], [each[0] for each in found["resps"]]
    return {
        "number": found["doc_id"],
        "subject": question.get("subject", ""),
        "prompt": found["arguments"][0][0],
        "gold": question.get("answer", ""),
        "answer": answers[0] if len(answers) == 1 else [logprob for logprob, _ in answers],
        "right": bool(found["acc"]),
        "answered": bool(found["answered"]),
        **({"question": question} if "entry_point" in question else {}),
    }


def run_programs(samples: dict[str, list[dict[str, Any]]]) -> str:
    """Run the programs of all tasks and write the verdicts into the samples; how they were shut in, in words."""
    from megatron_yuan.evaluation.sandbox.pool import Program, run_all

    programs, owners = [], []
    for name, those in samples.items():
        for each in those:
            question = each.pop("question")
            text = whole_program(question, each["answer"], fenced="instruct" in name)
            programs.append(Program(question["prompt"], text, question["test"], question["entry_point"]))
            owners.append(each)
    verdicts, isolation = run_all(programs)
    for sample, verdict in zip(owners, verdicts, strict=True):
        sample["right"], sample["verdict"] = verdict.passed, verdict.reason
    return f"programs ran {isolation}"


def _notes(with_examples: bool, settings: Settings) -> list[str]:
    notes = []
    if settings.limit is not None:
        notes.append(f"only the first {settings.limit} questions of each task were asked")
    if with_examples:
        notes.append(
            "worked examples are the harness's own (of ARC-C, the first of its questions other than the one asked); "
            "those of the paper are not published"
        )
    return notes

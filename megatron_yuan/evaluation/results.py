"""What an evaluation found: as a table, as JSON, and question by question."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from megatron_yuan.errors import DataError
from megatron_yuan.evaluation import published
from megatron_yuan.evaluation.catalogue import TASKS
from megatron_yuan.log import logger


@dataclass(frozen=True)
class TaskResult:
    """Of one task. Every question that was asked counts once, an unanswered one as wrong."""

    task: str
    shots: int
    questions: int
    right: int
    answered: int
    """Questions in whose answer something was found that could be right."""
    by_subject: dict[str, list[int]] = field(default_factory=dict)
    """Right ones and questions of each subject, where there are subjects."""

    @property
    def accuracy(self) -> float:
        """Right ones among all questions."""
        return self.right / self.questions

    @property
    def error(self) -> float:
        """Standard error of the accuracy."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.questions)


@dataclass(frozen=True)
class Results:
    """Of all tasks, with what was noted on the way."""

    tasks: list[TaskResult]
    notes: list[str]
    seconds: float
    samples: dict[str, list[dict[str, Any]]] = field(default_factory=dict, repr=False)
    model: str = ""
    """Fingerprint of the model that was asked."""

    def figures(self) -> dict[str, float]:
        """Accuracy of each task."""
        return {each.task: each.accuracy for each in self.tasks}

    def as_json(self) -> dict[str, Any]:
        """Figures and notes, without the samples."""
        tasks = {
            each.task: {
                "accuracy": each.accuracy,
                "standard_error": each.error,
                **{name: value for name, value in asdict(each).items() if name != "task"},
                "published_yuan2_m32": _published(each.task),
            }
            for each in self.tasks
        }
        return {"tasks": tasks, "notes": self.notes, "seconds": round(self.seconds, 1), "model": self.model}

    def write(self, folder: Path, settings: dict[str, Any]) -> None:
        """results.json, and samples_TASK.jsonl with every question's answer. DataError where they cannot be written.

        Other tasks of an earlier call stay, if it asked the same model in the same way; else they go.
        """
        path, found = folder / "results.json", {**self.as_json(), "settings": settings}
        before = _read(path)
        if before and _asked(before) == _asked(found):
            found["tasks"] = {**before["tasks"], **found["tasks"]}
            found["notes"] = list(dict.fromkeys([*before["notes"], *self.notes]))
        elif before:
            logger.warning("%s was of another model or asked otherwise; it is begun anew.", path)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for task in TASKS.keys() - found["tasks"].keys():
                (folder / f"samples_{task}.jsonl").unlink(missing_ok=True)
            path.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            for task, samples in self.samples.items():
                lines = [json.dumps(each, ensure_ascii=False) for each in samples]
                (folder / f"samples_{task}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        except OSError as error:
            raise DataError(f"output {folder} cannot be written: {error}.") from None

    def table(self) -> Table:
        """A line a task."""
        table = Table(box=None, padding=(0, 2, 0, 0))
        table.add_column("task", no_wrap=True)
        for name in ("shots", "questions", "answered", "accuracy"):
            table.add_column(name, justify="right", no_wrap=True)
        for each in self.tasks:
            accuracy = f"{100 * each.accuracy:.1f} ± {100 * each.error:.1f}"
            table.add_row(each.task, str(each.shots), str(each.questions), str(each.answered), accuracy)
        return table

    def published_table(self) -> Table:
        """The paper's tables 6 and 7 below our own figures."""
        table = Table(box=None, padding=(0, 2, 0, 0), title="beside the paper's tables 6 and 7", title_justify="left")
        table.add_column("", no_wrap=True)
        for name in published.BENCHMARKS:
            table.add_column(name, justify="right", no_wrap=True)
        rows = {
            each.task: [
                100 * each.accuracy if TASKS[each.task].benchmark == name else None for name in published.BENCHMARKS
            ]
            for each in self.tasks
        }
        for name, figures in {**rows, **published.SCORES}.items():
            table.add_row(name, *("-" if figure is None else f"{figure:.1f}" for figure in figures))
        return table


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("settings"), dict) else {}


def _asked(results: dict[str, Any]) -> list[Any]:
    """What figures of one results.json have in common."""
    names = ("task_data", "limit", "num_fewshot", "max_new_tokens")
    return [results.get("model"), *(results["settings"].get(name) for name in names)]


def _published(task: str) -> float | None:
    return published.score_of("Yuan2.0-M32", TASKS[task].benchmark)


def task_result(task: str, shots: int, samples: Sequence[dict[str, Any]]) -> TaskResult:
    """From what was found question by question."""
    by_subject: dict[str, list[int]] = {}
    for sample in samples:
        subject = sample.get("subject")
        if subject:
            tally = by_subject.setdefault(subject, [0, 0])
            tally[0] += int(sample["right"])
            tally[1] += 1
    return TaskResult(
        task,
        shots,
        len(samples),
        sum(int(sample["right"]) for sample in samples),
        sum(int(sample["answered"]) for sample in samples),
        by_subject,
    )

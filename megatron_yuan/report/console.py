"""What a run looks like while it goes on: one aligned line a step, and a progress bar on a terminal."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from megatron_yuan.log import console, logger
from megatron_yuan.report.result import EvalResult, StepResult, TaskScores
from megatron_yuan.report.throughput import Arithmetic

LEGEND = "load: busiest expert over the mean expert, in the worst layer (1.00 is balanced); GiB: peak memory"


class ConsoleReport:
    """A line each `interval` steps: loss, gradient norm and load are that step's, speed is the mean since the last."""

    def __init__(self, arithmetic: Arithmetic, total_steps: int, start_step: int = 0, interval: int = 1) -> None:
        self._arithmetic = arithmetic
        self._total = total_steps
        self._interval = max(1, interval)
        self._since_line = [0, 0.0]  # tokens, seconds
        self._recent: deque[float] = deque(maxlen=50)
        self._bar: Progress | None = None
        logger.info("%s", arithmetic.convention)
        logger.info("%s", LEGEND)
        if console().is_terminal:
            self._bar = _progress_bar()
            self._task = self._bar.add_task("", total=total_steps, completed=start_step, eta="")
            self._bar.start()

    def step(self, result: StepResult) -> None:
        """Move the bar, and write a line where it is time for one; a step that was left out has no figures to show."""
        left_out = result.skipped is not None and result.computed_tokens == 0
        self._since_line[0] += result.computed_tokens
        self._since_line[1] += result.seconds
        if not left_out:
            self._recent.append(result.seconds)
        # The median forgets a slow first step and a pause for a checkpoint.
        eta = duration(statistics.median(self._recent or [0.0]) * max(0, self._total - result.step))
        if (result.step % self._interval == 0 or result.step == self._total) and not left_out:
            tokens, seconds = self._since_line
            rate = tokens / seconds if seconds > 0 else float("nan")
            logger.info("%s", step_line(result, self._total, self._arithmetic, rate, eta))
            self._since_line = [0, 0.0]
        if self._bar is not None:
            self._bar.update(self._task, completed=result.step, eta=eta)

    def evaluation(self, result: EvalResult) -> None:
        """One line for all sets, and one for all languages."""
        begin = f"{counted(result.step, self._total)} | {result.kind} loss"
        logger.info("%s | %s | %s tokens", begin, _losses(result.losses), f"{result.tokens:,}")
        if result.languages:
            logger.info("%s by language | %s", begin, _losses(result.languages))

    def tasks(self, step: int, scores: TaskScores) -> None:
        """One line for all tasks."""
        cells = [
            f"{name} {accuracy:.3f} of {scores.questions[name]:,} questions"
            for name, accuracy in scores.accuracy.items()
        ]
        begin = f"{counted(step, self._total)} | tasks, accuracy"
        logger.info("%s | %s | %.0f s", begin, " | ".join(cells), scores.seconds)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def step_line(result: StepResult, total: int, arithmetic: Arithmetic, tokens_per_second: float, eta: str) -> str:
    """The line of one step, at most 160 characters; columns of successive lines stand under each other."""
    tflops = arithmetic.tflops(tokens_per_second)
    cells = [
        counted(result.step, total),
        f"loss {number(result.loss, 7, 4)}",
        f"grad {number(result.grad_norm, 6, 3)}",
        f"lr {result.lr:.2e}",
        f"{number(tokens_per_second, 7, 0)} tok/s",
        f"{number(tflops, 6, 4 if tflops < 1 else 2)} TFLOP/s",
        f"{arithmetic.mfu_label} {100 * arithmetic.mfu(tokens_per_second):4.1f}%",
    ]
    worst = result.worst_imbalance
    if worst is not None:
        digits = len(str(len(result.expert_load or ()) - 1))
        cells.append(f"load {worst[0]:5.2f} L{worst[1]:0{digits}d}")
    cells += [f"{result.memory_bytes / 2**30:5.1f} GiB", f"ETA {eta}"]
    return " | ".join(cells)


def counted(step: int, total: int) -> str:
    """`step` of `total`, as wide for every step."""
    return f"step {step:>{len(str(total))}}/{total}"


def _losses(by_name: Mapping[str, float]) -> str:
    return " | ".join(f"{name} {number(loss, 7, 4)}" for name, loss in by_name.items())


def number(value: float, width: int, decimals: int) -> str:
    """`value` with `decimals` places in `width` characters, with fewer digits where it is too large for them."""
    forms = (f"{width}.{decimals}f", f"{width}.1f", f"{width}.1e", f"{width}.0e")
    for text in (f"{value:{form}}" for form in forms):
        if len(text) <= width:
            return text
    return text


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, or days and hours."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days:4d}d {hour:02d}h" if days else f"{hour:02d}:{minute:02d}:{second:02d}"


def _progress_bar() -> Progress:
    columns = (
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left {task.fields[eta]}"),
    )
    return Progress(*columns, console=console(), transient=True, refresh_per_second=2, expand=True)

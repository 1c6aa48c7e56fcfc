"""Scores of the Yuan 2.0-M32 paper, tables 6 and 7, in percent as printed there. None where it has none."""

from __future__ import annotations

BENCHMARKS = ("HumanEval", "GSM8K", "MATH", "MMLU", "ARC-C")

SCORES: dict[str, tuple[float | None, ...]] = {
    "Yuan2.0-M32": (74.4, 92.7, 55.9, 72.2, 95.8),
    "Llama3-70B": (81.7, 93.0, 50.4, 80.3, 93.3),
    "Llama3-8B": (62.2, 79.6, 30.0, 68.4, 78.6),
    "Phi-3-medium": (62.2, 91.0, None, 78.0, 91.6),
    "Phi-3-small": (61.0, 89.6, None, 75.7, 90.7),
    "Phi-3-mini": (58.5, 82.5, None, 68.8, 84.9),
    "Qwen1.5-72B": (68.9, 81.9, 40.6, 76.2, 91.7),
    "DeepSeek-V2": (81.1, 92.2, 53.9, 77.8, 92.3),
    "Mixtral-8x22B": (45.1, 78.6, 41.8, 77.8, 91.3),
    "Mixtral-8x7B": (40.2, 58.4, 28.4, 70.6, 85.9),
}

NOTE = (
    "Yuan2.0-M32's HumanEval is without worked examples (78.1 with 14). Its MATH was measured on 458 of the 5,000 "
    "questions, and its worked examples and scorer are not these: read the columns as a scale, not as a contest."
)


def score_of(model: str, benchmark: str) -> float | None:
    """One figure."""
    return SCORES[model][BENCHMARKS.index(benchmark)]

"""What an output folder holds after several calls."""

from __future__ import annotations

import json
from pathlib import Path

from megatron_yuan.evaluation.results import Results, task_result


def write(folder: Path, task: str, model: str = "m", limit: str = "None") -> dict[str, list[str]]:
    """Figures and samples in `folder` after one more call, by name."""
    samples = [{"right": True, "answered": True}]
    results = Results([task_result(task, 0, samples)], [f"of {task}"], 1.0, {task: samples}, model)
    results.write(folder, {"limit": limit, "tasks": task})
    found = json.loads((folder / "results.json").read_text())
    kept = sorted(each.stem.removeprefix("samples_") for each in folder.glob("samples_*.jsonl"))
    assert sorted(found["tasks"]) == kept
    return {"tasks": kept, "notes": found["notes"]}


def test_other_tasks_of_the_same_model_stay_in_the_output_and_those_of_another_go(tmp_path: Path) -> None:
    write(tmp_path, "gsm8k")
    assert write(tmp_path, "mmlu") == {"tasks": ["gsm8k", "mmlu"], "notes": ["of gsm8k", "of mmlu"]}
    assert write(tmp_path, "mmlu")["tasks"] == ["gsm8k", "mmlu"]
    assert write(tmp_path, "math", model="other") == {"tasks": ["math"], "notes": ["of math"]}
    assert write(tmp_path, "mmlu", model="other", limit="3") == {"tasks": ["mmlu"], "notes": ["of mmlu"]}
    for damaged in ("{half", "[]", "{}"):
        (tmp_path / "results.json").write_text(damaged)
        assert write(tmp_path, "math", model="other")["tasks"] == ["math"]

"""The command line of a study: it trains, goes on, and refuses what does not compare."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.indexed_data import EOD, counting_documents, write_indexed

ROOT = Path(__file__).resolve().parents[3]


def compare(tmp_path: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    base = (
        "--preset tiny --num-layers 1 --hidden-size 32 --num-attention-heads 2 --kv-channels 16 --ffn-hidden-size 256 "
        "--seq-length 16 --micro-batch-size 2 --global-batch-size 2 --train-iters 2 --lr-warmup-iters 0 "
        f"--split 50,50,0 --eval-iters 1 --no-bf16 --peak-tflops 1 --eod-id {EOD} --vocab-size 256 --save-interval 1"
    ).split()
    command = [sys.executable, str(ROOT / "tools" / "compare_routers.py"), "--output", str(tmp_path / "study"), *base]
    return subprocess.run(
        [*command, *flags], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> tuple[Path, list[str]]:
    """Two routers, two seeds; and the data's flags."""
    folder = tmp_path_factory.mktemp("study")
    data = ["--data-path", write_indexed(folder / "en", counting_documents(1))]
    run = compare(
        folder, "--routers", "softmax,softmax+2shared", "--experts", "8", "--seeds", "2", "--jobs", "2", *data
    )
    assert run.returncode == 0, run.stderr + run.stdout
    return folder, data


def test_it_writes_a_table_a_picture_and_every_figure(study) -> None:
    folder = study[0] / "study"
    assert "softmax+2shared" in (folder / "table.md").read_text()
    assert (folder / "losses.png").read_bytes().startswith(b"\x89PNG")
    rows = json.loads((folder / "results.json").read_text())["findings"]
    assert [row["arrangement"] for row in rows] == ["softmax", "softmax+2shared"]
    assert all(len(row["losses"]) == 2 and row["train_tokens"] == 2 * 2 * 16 for row in rows)


def test_what_is_done_is_not_done_again(study) -> None:
    folder, data = study
    metrics = sorted((folder / "study" / "cells").glob("*/metrics.jsonl"))
    before = [path.stat().st_mtime_ns for path in metrics]
    run = compare(folder, "--routers", "softmax,softmax+2shared", "--experts", "8", "--seeds", "2", *data)
    assert run.returncode == 0 and [path.stat().st_mtime_ns for path in metrics] == before


def test_cells_of_other_settings_are_refused_by_name(study) -> None:
    folder, data = study
    run = compare(folder, "--routers", "softmax", "--experts", "8", "--seeds", "1", "--lr", "0.5", *data)
    assert run.returncode == 2 and "lr is 0.5" in run.stderr and "Traceback" not in run.stderr


def test_a_further_cell_of_other_settings_is_refused_too(study) -> None:
    folder, data = study
    run = compare(folder, "--routers", "softmax+bias", "--experts", "8", "--seeds", "1", "--train-iters", "3", *data)
    assert run.returncode == 2 and "train-iters is 3" in run.stderr and "Traceback" not in run.stderr


def test_a_cell_whose_last_measurement_was_lost_is_measured_again(study) -> None:
    folder, data = study
    metrics = folder / "study" / "cells" / "softmax-8experts-seed1234" / "metrics.jsonl"
    metrics.write_text(metrics.read_text()[:-20])
    run = compare(folder, "--routers", "softmax", "--experts", "8", "--seeds", "1", *data)
    assert run.returncode == 0, run.stderr


def test_the_base_seed_is_the_training_programs_own_flag(tmp_path) -> None:
    data = write_indexed(tmp_path / "en", counting_documents(1))
    run = compare(tmp_path, "--routers", "softmax", "--seeds", "1", "--seed", "3", "--data-path", data)
    assert run.returncode == 0, run.stderr
    assert [path.name for path in (tmp_path / "study" / "cells").glob("*.yaml")] == ["softmax-8experts-seed3.yaml"]


def test_a_cell_that_fails_is_named_with_its_last_word(tmp_path) -> None:
    data = ["--data-path", write_indexed(tmp_path / "en", counting_documents(1))]
    run = compare(tmp_path, "--routers", "softmax", "--seeds", "1", "--lr", "1e30", *data)
    assert run.returncode == 2 and "softmax-8experts-seed1234" in run.stderr and "finite" in run.stderr


def test_data_without_a_validation_part_are_refused_before_the_first_cell(tmp_path) -> None:
    data = ["--data-path", write_indexed(tmp_path / "en", counting_documents(1)), "--split", "100,0,0"]
    run = compare(tmp_path, "--routers", "softmax", "--seeds", "1", *data)
    assert run.returncode == 2 and "--split such as 95,5,0" in run.stderr
    assert not (tmp_path / "study").exists()

from __future__ import annotations

import json
import math

import pytest

from megatron_yuan.errors import DataError
from megatron_yuan.report.metrics import MetricsWriter, read_metrics


def write_steps(path, start: int, last: int, session: str) -> None:
    writer = MetricsWriter(path, {"step": start, "session": session})
    for step in range(start + 1, last + 1):
        writer.write("step", {"step": step, "session": session})
        if step % 2 == 0:
            writer.write("evaluation", {"step": step, "losses": {"en": 1.0}})
    writer.close()


def test_a_resumed_run_is_read_once_and_nothing_is_lost_from_the_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_steps(path, 0, 7, "first")
    write_steps(path, 4, 6, "second")
    metrics = read_metrics(path)
    assert [(r["step"], r["session"]) for r in metrics.steps] == [
        *((step, "first") for step in (1, 2, 3, 4)),
        *((step, "second") for step in (5, 6)),
    ]
    assert [r["step"] for r in metrics.evaluations] == [2, 4, 6]
    assert [r["step"] for r in metrics.starts] == [0, 4]
    assert sum('"kind":"step"' in line for line in path.read_text().splitlines()) == 7 + 2


def test_a_run_begun_anew_in_the_same_folder_replaces_the_former(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_steps(path, 0, 5, "first")
    write_steps(path, 0, 2, "second")
    assert {r["session"] for r in read_metrics(path).steps} == {"second"}


def test_a_half_written_last_line_is_skipped_counted_and_said(tmp_path, said):
    path = tmp_path / "metrics.jsonl"
    write_steps(path, 0, 3, "first")
    path.write_bytes(path.read_bytes()[:-20])
    metrics = read_metrics(path)
    assert [r["step"] for r in metrics.steps] == [1, 2]
    assert metrics.skipped == 1
    assert "1 line(s) skipped" in said()


def test_what_follows_a_half_written_line_is_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_steps(path, 0, 3, "first")
    path.write_bytes(path.read_bytes()[:-20])
    write_steps(path, 2, 4, "second")
    metrics = read_metrics(path)
    assert [r["step"] for r in metrics.steps] == [1, 2, 3, 4]
    assert metrics.skipped == 1


@pytest.mark.parametrize(
    "line", ["nonsense", "[1]", '{"kind":"step"}', '{"step":1}', '{"kind":"other","step":1}', "\x80"]
)
def test_damaged_lines_are_skipped(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line.encode("latin-1") + b'\n{"kind":"step","step":2}\n')
    metrics = read_metrics(path)
    assert [r["step"] for r in metrics.steps] == [2]
    assert metrics.skipped == 1


def test_numbers_that_are_not_finite_are_strict_json_and_come_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(path, {"step": 0})
    writer.write("step", {"step": 1, "loss": math.nan, "list": [math.inf, -math.inf, 1.0], "map": {"en": math.nan}})
    writer.close()

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    (record,) = read_metrics(path).steps
    assert math.isnan(record["loss"])
    assert math.isnan(record["map"]["en"])
    assert record["list"] == [math.inf, -math.inf, 1.0]


def test_every_line_can_be_read_while_the_run_goes_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(path, {"step": 0})
    writer.write("step", {"step": 1})
    assert len(read_metrics(path).steps) == 1


def test_a_full_disk_is_warned_of_once_and_does_not_end_the_run(tmp_path, said):
    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(path, {"step": 0})
    file, writer._file = writer._file, open("/dev/full", "ab", buffering=0)  # noqa: SIM115
    writer.write("step", {"step": 1})
    writer.write("step", {"step": 2})
    assert said().count("cannot be written (") == 1
    writer._file.close()
    writer._file = file
    writer.write("step", {"step": 3})
    assert [r["step"] for r in read_metrics(path).steps] == [3]


def test_a_folder_without_metrics_is_refused_in_words(tmp_path):
    with pytest.raises(DataError, match=r"metrics\.jsonl does not exist: name a run folder"):
        read_metrics(tmp_path / "metrics.jsonl")

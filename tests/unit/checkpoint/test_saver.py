from __future__ import annotations

import errno
import itertools
import logging
import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_yuan.checkpoint import commit, store
from megatron_yuan.checkpoint import saver as saver_module
from megatron_yuan.checkpoint.agreement import ALONE, Ranks
from megatron_yuan.checkpoint.commit import Retention
from megatron_yuan.checkpoint.load import open_checkpoint
from megatron_yuan.checkpoint.saver import CheckpointSaver
from megatron_yuan.checkpoint.state import RunState
from megatron_yuan.errors import CheckpointError

from .conftest import make_tensors, run_ranks, save_from


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Writing waits for the event; leaving sets it, so that no thread is left behind."""
    go, genuine = threading.Event(), store.write_tensors

    def write(*args: Any, **options: Any) -> Any:
        assert go.wait(20)
        return genuine(*args, **options)

    monkeypatch.setattr(store, "write_tensors", write)
    try:
        yield go
    finally:
        go.set()


def make_saver(folder: Path | None, ranks: Ranks = ALONE, background: bool = True, **options: Any) -> CheckpointSaver:
    return CheckpointSaver(folder, ranks, "model: {}\n", background=background, **options)


@pytest.mark.parametrize(("stages", "replicas"), [(1, 1), (2, 1), (2, 2)])
def test_what_is_written_behind_is_to_the_bit_what_is_saved_at_once_though_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stages: int, replicas: int
) -> None:
    save_from(tmp_path / "at-once", stages, replicas)
    with slow_disk(monkeypatch) as disk:

        def train(ranks: Any) -> list[bool]:
            held = make_tensors(ranks.pp_rank, stages)
            there = []
            with make_saver(tmp_path / "behind", ranks) as saver:
                state = RunState(100, 800, 100, 6400, extra={"note": "tiny"})
                saver.save(state, held.weights, held.optimizer)
                for tensor in held.weights.values():
                    tensor.zero_()
                for slots in held.optimizer.values():
                    for tensor in slots.values():
                        tensor.zero_()
                saver.poll()
                there.append((tmp_path / "behind/checkpoints/iter_0000100").exists())
                ranks.gather(None)
                disk.set()
            there.append((tmp_path / "behind/checkpoints/iter_0000100").exists())
            return there

        assert run_ranks(stages, replicas, train) == [[False, True]] * (stages * replicas)
    files = [path for path in (tmp_path / "at-once").rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        assert path.read_bytes() == (tmp_path / "behind" / path.relative_to(tmp_path / "at-once")).read_bytes(), path
    assert names_in(tmp_path / "behind/checkpoints/iter_0000100") == names_in(
        tmp_path / "at-once/checkpoints/iter_0000100"
    )


def test_staged_and_durable_are_said_apart_and_a_second_save_waits_for_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    held = make_tensors()
    with slow_disk(monkeypatch) as disk, make_saver(tmp_path) as saver:
        saver.save(RunState(100, 0), held.weights, held.optimizer)
        saver.poll()
        assert "staged iter_0000100 in" in caplog.text and "durable" not in caplog.text
        threading.Timer(0.2, disk.set).start()
        saver.save(RunState(200, 0), held.weights, held.optimizer)
    lines = [record.getMessage() for record in caplog.records]
    order = ["staged iter_0000100", "the save of step 200 waits", "durable iter_0000100", "staged iter_0000200"]
    places = [next(at for at, line in enumerate(lines) if words in line) for words in [*order, "durable iter_0000200"]]
    assert places == sorted(places)
    assert names_in(tmp_path / "checkpoints") == ["iter_0000100", "iter_0000200", "latest"]


def test_host_memory_is_taken_once_and_reused(tmp_path: Path) -> None:
    held = make_tensors()
    saver = make_saver(tmp_path)
    places = []
    for step in (1, 2):
        saver.save(RunState(step, 0), held.weights, held.optimizer)
        saver.close()
        places.append(sorted(buffer.data_ptr() for buffer in saver._buffers._buffers.values()))
    assert places[0] == places[1]
    weights = sum(tensor.nbytes for tensor in held.weights.values())
    assert saver._buffers.nbytes == weights + sum(t.nbytes for slots in held.optimizer.values() for t in slots.values())


def test_a_failed_write_behind_is_the_same_error_on_all_ranks_at_the_next_poll(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine, failed = store.write_tensors, threading.Event()

    def write(path: Path, *args: Any, **options: Any) -> Any:
        if path.match("optimizer/layers.0003.safetensors"):
            failed.set()
            raise OSError(errno.EIO, "the disk is on fire")
        return genuine(path, *args, **options)

    monkeypatch.setattr(store, "write_tensors", write)

    def train(ranks: Any) -> None:
        held = make_tensors(ranks.pp_rank, 2)
        with make_saver(saved, ranks) as saver:
            saver.save(RunState(200, 0), held.weights, held.optimizer)
            for _ in range(100):
                failed.wait(10)
                saver.poll()

    results = run_ranks(2, 2, train)
    assert all(isinstance(result, CheckpointError) for result in results), results
    assert len({str(result) for result in results}) == 1 and "the disk is on fire" in str(results[0])
    assert names_in(saved / "checkpoints") == ["iter_0000100", "latest"]
    open_checkpoint(saved).verify_files()


@pytest.mark.parametrize("background", [False, True])
def test_a_disk_that_takes_no_more_is_told_in_words(saved: Path, background: bool) -> None:
    """The limit on a file's size is the one refusal of a real write that needs neither root nor a full disk."""
    held = make_tensors()
    held.weights["head.weight"] = torch.zeros(20_000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    try:
        with (
            pytest.raises(CheckpointError, match=r"cannot write the checkpoint of step 200 .*File too large"),
            make_saver(saved, background=background) as saver,
        ):
            saver.save(RunState(200, 0), held.weights, held.optimizer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names_in(saved / "checkpoints") == ["iter_0000100", "latest"]


def test_a_rank_that_dies_before_its_part_is_written_leaves_the_checkpoint_before(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saver_module, "PATIENCE", 0.3)
    monkeypatch.setattr(commit, "leave_record", lambda *_: None)

    def train(ranks: Any) -> None:
        held = make_tensors(ranks.pp_rank, 2)
        with make_saver(saved, ranks) as saver:
            saver.save(RunState(200, 0), held.weights, held.optimizer)
            raise RuntimeError("connection closed by peer")

    assert all(isinstance(result, RuntimeError) for result in run_ranks(2, 1, train))
    assert names_in(saved / "checkpoints") == ["iter_0000100", "latest"]


def test_an_error_of_the_run_leaves_a_write_under_way_the_time_to_end(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with slow_disk(monkeypatch) as disk:

        def train(ranks: Any) -> None:
            held = make_tensors(ranks.pp_rank, 2)
            with make_saver(saved, ranks) as saver:
                saver.save(RunState(200, 0), held.weights, held.optimizer)
                threading.Timer(0.3, disk.set).start()
                raise ValueError("a loss that is not finite")

        assert all(isinstance(result, ValueError) for result in run_ranks(2, 1, train))
    assert open_checkpoint(saved).run_state.step == 200


def test_a_write_is_broken_off_where_nobody_waits_for_it(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saver_module, "PATIENCE", 0.0)
    held = make_tensors()
    with slow_disk(monkeypatch) as disk, pytest.raises(ValueError, match="enough"), make_saver(saved) as saver:
        saver.save(RunState(200, 0), held.weights, held.optimizer)
        saver._under_way.progress.stop()
        disk.set()
        raise ValueError("enough")
    assert names_in(saved / "checkpoints") == ["iter_0000100", "latest"]


def test_without_a_run_folder_nothing_is_saved() -> None:
    with make_saver(None) as saver:
        saver.save(RunState(1, 0), {}, {})
        saver.poll()


def test_the_newest_and_every_so_many_steps_are_kept(tmp_path: Path) -> None:
    held = make_tensors()
    with make_saver(tmp_path, retention=Retention(2, 300)) as saver:
        for step in range(100, 900, 100):
            saver.save(RunState(step, 0), held.weights, held.optimizer)
    kept = ["iter_0000300", "iter_0000600", "iter_0000700", "iter_0000800", "latest"]
    assert names_in(tmp_path / "checkpoints") == kept


def test_a_run_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    held = make_tensors()
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(CheckpointError, match=f"{folder}.*Not a directory.*--save"):
            make_saver(folder).save(RunState(1, 0), held.weights, held.optimizer)
    if os.geteuid():
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(CheckpointError, match="Permission denied"):
            make_saver(tmp_path / "locked").save(RunState(1, 0), held.weights, held.optimizer)


@pytest.mark.parametrize("hangs", [True, False])
def test_a_disk_that_hangs_gives_no_beat_and_a_slow_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    monkeypatch.setattr("megatron_yuan.checkpoint.behind._ROUND", 0.02)
    genuine = store.write_tensors

    def write(path: Path, *args: Any, count: store.Count | None = None, **options: Any) -> Any:
        if path.parts[-2:] == ("model", "layers.0003.safetensors"):  # of the second stage
            assert count is not None
            for _ in range(20):
                time.sleep(0.05)
                if not hangs:
                    count(1)
        return genuine(path, *args, count=count, **options)

    monkeypatch.setattr(store, "write_tensors", write)
    beats: list[list[tuple[float, bool]]] = [[], []]

    def save(ranks: Any) -> None:
        def beat(phase: str, *, waits: bool) -> None:
            assert phase == "save"
            beats[ranks.rank].append((time.monotonic(), waits))

        held = make_tensors(ranks.pp_rank, 2)
        with make_saver(tmp_path, ranks, background=False, beat=beat) as saver:
            saver.save(RunState(100, 0), held.weights, held.optimizer)

    assert run_ranks(2, 1, save) == [None, None]
    waiting, writing = beats
    pauses = [later - earlier for (earlier, _), (later, _) in itertools.pairwise(writing)]
    assert (max(pauses) > 0.8) == hangs
    assert waiting[-1][1], "the one that is done waits for the other"
    assert not any(waits for _, waits in writing[:-1])

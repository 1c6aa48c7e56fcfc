"""Broken off at any moment, preprocessing goes on to the bytes of an unbroken run; what is left out is listed."""

from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from megatron_yuan.data import preprocess as module
from megatron_yuan.data import readers, tasks
from megatron_yuan.data.digest import sha256_of
from megatron_yuan.data.preprocess import preprocess
from megatron_yuan.data.tokenizer import Tokenizer
from megatron_yuan.errors import DataError
from tests.unit.data.conftest import make_texts, write_jsonl

TOOL = Path(__file__).resolve().parents[3] / "tools" / "preprocess_data.py"
BAD = [
    b'{"text": "\xff"}',
    b'{"text": "x"',
    b'{"body": "x"}',
    b'{"text": 5}',
    b'{"text": "\\ud83d"}',
    b'{"text": ""}',
    b'{"text": "a\\u0000b"}',
]
REASONS = ["utf-8", "json", "key", "type", "surrogate", "empty", "nul"]


def outputs(folder: Path, name: str) -> dict[str, bytes]:
    return {each.name.removeprefix(name): each.read_bytes() for each in sorted(folder.glob(f"{name}_*"))}


@pytest.fixture
def mixed(tmp_path: Path) -> list[Path]:
    """Two files of good lines, with each kind of bad one in between."""
    lines = [json.dumps({"text": text}, ensure_ascii=False).encode() for text in make_texts(1, 60)]
    for place, bad in zip(range(5, 60, 7), BAD, strict=False):
        lines.insert(place, bad)
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return [tmp_path / "a.jsonl", write_jsonl(tmp_path / "b.jsonl", make_texts(2, 40))]


def test_what_cannot_be_used_is_left_out_counted_and_listed(
    tokenizer: Tokenizer, mixed: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "BATCH_BYTES", 1000)
    for workers in (1, 3):
        (passport,) = preprocess(mixed, tmp_path / f"out{workers}", tokenizer, True, workers=workers, on_error="skip")
        assert passport.rejects == dict.fromkeys(REASONS, 1) and passport.documents == 100
    listed = [json.loads(line) for line in (tmp_path / "out1_rejects.jsonl").read_text().splitlines()]
    assert [(each["reason"], each["line"]) for each in listed] == list(zip(REASONS, range(6, 60, 7), strict=False))
    assert {each["file"] for each in listed} == {str(mixed[0])}
    assert outputs(tmp_path, "out1") == outputs(tmp_path, "out3")


def test_it_stops_at_the_first_of_them_unless_told_otherwise(
    tokenizer: Tokenizer, mixed: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl, line 6: not UTF-8"):
        preprocess(mixed, tmp_path / "out", tokenizer, True)
    assert sorted(tmp_path.iterdir()) == mixed


@pytest.mark.parametrize("workers", [1, 2])
def test_broken_off_anywhere_and_resumed_the_bytes_are_those_of_an_unbroken_run(
    tokenizer: Tokenizer, mixed: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(readers, "BATCH_BYTES", 500)
    monkeypatch.setattr(module, "JOURNAL_SECONDS", 0.0)
    preprocess(mixed, tmp_path / "whole", tokenizer, True, on_error="skip")
    draw = random.Random(3)

    class BrokenOff(Exception):
        pass

    for turn in range(4 if workers == 1 else 1):  # processes are slow to start
        left = draw.randint(1, 12)
        for _ in range(40):

            def count_down(_: object) -> None:
                nonlocal left
                left -= 1
                if left == 0:
                    raise BrokenOff

            try:
                preprocess(
                    mixed, tmp_path / f"part{turn}", tokenizer, True, workers=workers, on_error="skip", resume=True,
                    report=count_down,
                )  # fmt: skip
                break
            except BrokenOff:
                assert not list(tmp_path.glob(f"part{turn}_*"))
                left = draw.randint(2, 12)
        assert outputs(tmp_path, f"part{turn}") == outputs(tmp_path, "whole")
        assert not list(tmp_path.glob(f".part{turn}*"))


def test_killed_outright_and_resumed_the_bytes_are_those_of_an_unbroken_run(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", make_texts(5, 100) * 500)
    preprocess([path], tmp_path / "whole", tokenizer, True)
    program = (
        "import runpy, sys; from megatron_yuan.data import preprocess; preprocess.JOURNAL_SECONDS = 0.05; "
        f"sys.argv[0] = {str(TOOL)!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    flags = ["--output-prefix", tmp_path / "part", "--tokenizer-model", tokenizer.path, "--append-eod", "--resume"]
    command = [sys.executable, "-c", program, "--input", path, *flags, "--workers", "2"]
    killed = 0
    draw = random.Random(6)
    for _ in range(12):
        tool = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            if killed < 3:
                deadline, journal = time.monotonic() + 60, tmp_path / ".part.journal.part"
                before = journal.stat().st_mtime_ns if journal.exists() else 0
                while tool.poll() is None and time.monotonic() < deadline:
                    if journal.exists() and journal.stat().st_mtime_ns != before:
                        break
                    time.sleep(0.01)
                time.sleep(draw.uniform(0, 0.2))
            else:
                tool.wait(120)
        finally:
            if tool.poll() is None:
                os.killpg(tool.pid, signal.SIGKILL)
                killed += 1
        if tool.wait() == 0:
            break
    assert killed >= 1, "it ended before it could be killed"
    assert outputs(tmp_path, "part") == outputs(tmp_path, "whole")


def interrupted(mixed: list[Path], output: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "BATCH_BYTES", 500)
    monkeypatch.setattr(module, "JOURNAL_SECONDS", 0.0)
    seen = 0

    def stop(_: object) -> None:
        nonlocal seen
        seen += 1
        if seen == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        preprocess(mixed, output, tokenizer, True, on_error="skip", report=stop)


def test_what_changed_meanwhile_is_named(
    tokenizer: Tokenizer, mixed: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(mixed, tmp_path / "out", tokenizer, monkeypatch)
    again = {"on_error": "skip", "resume": True}
    with pytest.raises(DataError, match="append_eod is False now, and was True"):
        preprocess(mixed, tmp_path / "out", tokenizer, False, **again)
    with pytest.raises(DataError, match="inputs are 1 files"):
        preprocess(mixed[:1], tmp_path / "out", tokenizer, True, **again)
    with pytest.raises(DataError, match=r"was begun and broken off.*--resume"):
        preprocess(mixed, tmp_path / "out", tokenizer, True, on_error="skip")
    text = mixed[0].read_bytes()
    mixed[0].write_bytes(b"{" + text[1:50].replace(b"the", b"eht") + b"#" + text[51:])
    with pytest.raises(DataError, match=r"a\.jsonl has changed since the run"):
        preprocess(mixed, tmp_path / "out", tokenizer, True, **again)


def test_a_damaged_journal_is_named_and_one_may_begin_anew(
    tokenizer: Tokenizer, mixed: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(mixed, tmp_path / "out", tokenizer, monkeypatch)
    (tmp_path / ".out.journal.part").write_text("{")
    with pytest.raises(DataError, match=r"journal .* cannot be used .*--overwrite"):
        preprocess(mixed, tmp_path / "out", tokenizer, True, on_error="skip", resume=True)
    (passport,) = preprocess(mixed, tmp_path / "out", tokenizer, True, on_error="skip", overwrite=True)
    assert passport.documents == 100 and not list(tmp_path.glob(".out*"))


def test_resuming_what_is_done_does_nothing(tokenizer: Tokenizer, mixed: list[Path], tmp_path: Path) -> None:
    preprocess(mixed, tmp_path / "out", tokenizer, True, on_error="skip")
    before = outputs(tmp_path, "out")
    reports: list[object] = []
    preprocess(mixed, tmp_path / "out", tokenizer, True, on_error="skip", resume=True, report=reports.append)
    assert (outputs(tmp_path, "out"), reports) == (before, [])


def test_what_a_resumed_run_sums_up_is_its_own(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [
        write_jsonl(tmp_path / name, ["long" * 500] * count) for name, count in (("a.jsonl", 200), ("b.jsonl", 100))
    ]
    monkeypatch.setattr(module, "JOURNAL_SECONDS", 0.0)

    def stop(progress: module.Progress) -> None:
        if progress.documents == 300:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        preprocess(paths, tmp_path / "out", tokenizer, True, report=stop)
    flags = ["--output-prefix", tmp_path / "out", "--tokenizer-model", tokenizer.path, "--append-eod", "--resume"]
    command = [sys.executable, TOOL, "--input", *paths, *flags, "--workers", "1"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, check=True)
    assert "300 documents" in done.stdout and "\n0.2 MB in " in done.stdout


def test_an_input_changed_after_all_was_done_is_named_though_its_size_is_the_old_one(
    tokenizer: Tokenizer, mixed: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = {"on_error": "skip", "resume": True}
    preprocess(mixed, tmp_path / "out", tokenizer, True, on_error="skip")
    time.sleep(0.1)  # past the clock's tick
    mixed[0].touch()
    read: list[Path] = []
    monkeypatch.setattr(tasks, "sha256_of", lambda path: read.append(path) or sha256_of(path))
    preprocess(mixed, tmp_path / "out", tokenizer, True, **again)
    assert read == mixed[:1]
    mixed[1].write_bytes(mixed[1].read_bytes().swapcase())
    with pytest.raises(DataError, match=r"b\.jsonl has changed since the run"):
        preprocess(mixed, tmp_path / "out", tokenizer, True, **again)


def test_two_at_work_on_one_output_do_not_mix(tokenizer: Tokenizer, mixed: list[Path], tmp_path: Path) -> None:
    def begin_another(_: object) -> None:
        with pytest.raises(DataError, match="is being made by another process"):
            preprocess(mixed, tmp_path / "out", tokenizer, True, on_error="skip")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        preprocess(mixed, tmp_path / "out", tokenizer, True, on_error="skip", report=begin_another)


def test_who_waited_for_another_that_then_finished_leaves_its_output_alone(
    tokenizer: Tokenizer, mixed: list[Path], tmp_path: Path
) -> None:
    part, final = tmp_path / ".out_text_document.bin.part", tmp_path / "out_text_document.bin"

    def finish() -> None:
        time.sleep(0.3)  # the other waits by now
        part.rename(final)
        other.close()

    with open(part, "wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(b"whole")
        other.flush()
        finishing = threading.Thread(target=finish)
        finishing.start()
        with pytest.raises(DataError, match="exists already"):
            preprocess(mixed, tmp_path / "out", tokenizer, True, on_error="skip")
        finishing.join()
    assert final.read_bytes() == b"whole" and not list(tmp_path.glob(".out*"))


def test_what_is_damaged_between_two_runs_is_found(
    tokenizer: Tokenizer, mixed: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(mixed, tmp_path / "out", tokenizer, monkeypatch)
    whole = {path: path.read_bytes() for path in tmp_path.glob(".out*")}
    assert len(whole) == 4
    for path, content in whole.items():
        for damaged in (content[: len(content) // 2], bytes([content[0] ^ 1]) + content[1:]):
            path.write_bytes(damaged)
            with pytest.raises(DataError, match=r"--overwrite and without --resume"):
                preprocess(mixed, tmp_path / "out", tokenizer, True, on_error="skip", resume=True)
            path.write_bytes(content)
    preprocess(mixed, tmp_path / "out", tokenizer, True, on_error="skip", resume=True)


def test_a_finished_file_that_is_gone_before_it_has_its_name_is_missed(
    tokenizer: Tokenizer, mixed: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "commit_pair", stop)
        preprocess(mixed, tmp_path / "out", tokenizer, True, on_error="skip")
    (tmp_path / ".out_text_document.idx.part").unlink()
    with pytest.raises(DataError, match=r"\.idx\.part is gone.*--overwrite"):
        preprocess(mixed, tmp_path / "out", tokenizer, True, on_error="skip", resume=True)
    assert not list(tmp_path.glob("out_*"))


@pytest.mark.parametrize("call", ["replace", "unlink"])
def test_broken_off_while_files_get_their_names_the_folder_of_input_and_output_can_be_resumed(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    write_jsonl(tmp_path / "a.jsonl", make_texts(1, 3))
    preprocess([tmp_path], tmp_path / "out", tokenizer, True)
    unbroken = outputs(tmp_path, "out")
    make = partial(preprocess, [tmp_path], tmp_path / "out", tokenizer, True, overwrite=True)
    real = getattr(os, call)
    for allowed in range(8):
        with monkeypatch.context() as patch:
            left = [allowed]

            def broken(*names: object, left: list[int] = left, **options: object) -> None:
                if not left[0]:
                    raise KeyboardInterrupt
                left[0] -= "journal" not in str(names[0])  # these come first
                real(*names, **options)

            patch.setattr(os, call, broken)
            with suppress(KeyboardInterrupt):
                make()
        make(resume=True)
        assert outputs(tmp_path, "out") == unbroken

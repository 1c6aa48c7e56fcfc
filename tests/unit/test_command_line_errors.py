"""What the program says to bad input: a line or two that name setting, value, rule and fix; nothing is written.

All of it is said before torch is loaded, which takes seconds.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.indexed_data import EOD, counting_documents, write_indexed

PROGRAM = Path(__file__).resolve().parents[2] / "pretrain_yuan_moe.py"

# The program, which here ends with a traceback where it loads torch: what is wrong is said before.
WITHOUT_TORCH = f"""
import runpy, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        assert name not in ("torch", "megatron"), f"{{name}} was loaded"
sys.meta_path.insert(0, Refuse())
sys.argv[0] = {str(PROGRAM)!r}
runpy.run_path({str(PROGRAM)!r}, run_name="__main__")
"""


def refusal(tmp_path: Path, *flags: str) -> str:
    """The message with which the program refuses these flags."""
    save = tmp_path / "run"
    before = sorted(tmp_path.rglob("*"))
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, "--preset", "tiny", "--save", str(save), *flags],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
        check=False,
    )
    assert run.returncode == 2, run.stderr
    assert run.stdout == ""
    assert "Traceback" not in run.stderr
    assert len(run.stderr.splitlines()) <= 2, run.stderr
    assert run.stderr.startswith("error: ")
    assert sorted(tmp_path.rglob("*")) == before, "something was written"
    return run.stderr


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ("--data-pth x", ["--data-pth", "perhaps you meant --data-path"]),
        ("", ["data-path is empty", "--data-path PREFIX"]),
        ("--data-path x --num-layers 5 --pipeline-model-parallel-size 2", ["num-layers 5", "stages", "2"]),
        ("--data-path x --micro-batch-size 3 --global-batch-size 8", ["global-batch-size 8", "micro-batch-size 3"]),
        ("--data-path x --moe-router-topk 9 --num-experts 4", ["moe-router-topk 9", "num-experts 4"]),
        ("--data-path x --fim-rate 0.5", ["fim-rate 0.5", "--tokenizer-model FILE"]),
        ("--data-path x --fim-rate 1.5", ["fim-rate is 1.5", "in [0, 1]"]),
        ("--data-path x --seq-length 100000000", ["seq-length 100000000", "max-position-embeddings"]),
        ("--data-path x --split 1,2", ["split '1,2'", "three shares"]),
        ("--data-path x --num-layers many", ["num-layers", "many"]),
    ],
)
def test_a_mistake_in_the_settings_is_named(tmp_path, flags, names):
    message = refusal(tmp_path, *flags.split())
    for name in names:
        assert name in message


def test_processes_that_the_stages_do_not_divide_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    message = refusal(tmp_path, "--data-path", "x", "--pipeline-model-parallel-size", "2")
    assert "world size 3" in message and "pipeline-model-parallel-size 2" in message


def test_a_global_batch_that_the_replicas_do_not_divide_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    flags = "--data-path x --pipeline-model-parallel-size 1 --micro-batch-size 2 --global-batch-size 12"
    message = refusal(tmp_path, *flags.split())
    assert "global-batch-size 12" in message and "4 replicas" in message


def test_a_missing_set_is_named(tmp_path):
    message = refusal(tmp_path, "--data-path", str(tmp_path / "none"))
    assert f"data_path {tmp_path}/none" in message and "does not exist" in message


def test_data_and_index_of_different_lengths_are_named(tmp_path):
    prefix = write_indexed(tmp_path / "a", counting_documents(0))
    os.truncate(prefix + ".bin", 1000)
    message = refusal(tmp_path, "--data-path", prefix)
    assert f"data_path {prefix}: .bin has 1000 bytes, but .idx describes" in message


def test_an_id_outside_the_vocabulary_is_named(tmp_path):
    prefix = write_indexed(tmp_path / "a", [*counting_documents(0), np.array([65000, EOD])])
    # Read in full, by one process for all, so not before they have met.
    flags = ["--preset", "tiny", "--data-path", prefix, "--eod-id", "1", "--vocab-size", "300"]
    run = subprocess.run([sys.executable, PROGRAM, *flags], capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 2, run.stderr
    message = run.stderr[run.stderr.index("error: ") :]
    assert "Traceback" not in run.stderr and len(message.splitlines()) <= 2
    assert f"data_path {prefix}" in message and "id 65000" in message and "vocabulary has 300" in message


def test_a_sequence_longer_than_the_data_is_named(tmp_path):
    prefix = write_indexed(tmp_path / "a", counting_documents(0, 2))
    message = refusal(tmp_path, "--data-path", prefix, "--eod-id", "1", "--seq-length", "250")
    assert "seq_length 250" in message and prefix in message and "--seq-length" in message


def test_a_tokenizer_that_cannot_be_read_is_named(tmp_path):
    prefix = write_indexed(tmp_path / "a", counting_documents(0))
    message = refusal(tmp_path, "--data-path", prefix, "--tokenizer-model", str(tmp_path / "t.model"))
    assert f"tokenizer_model {tmp_path}/t.model cannot be read" in message


def test_a_reader_that_leaves_ends_it_without_a_traceback():
    """`pretrain_yuan_moe.py --help | head`: the end of a program killed by SIGPIPE, 128 + 13."""
    reading, writing = os.pipe()
    os.close(reading)
    run = subprocess.run(
        [sys.executable, str(PROGRAM), "--help"], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert (run.returncode, run.stderr) == (141, "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_output_on_a_full_disk_ends_it_in_a_sentence(unbuffered: str):
    with open("/dev/full", "w") as full:
        run = subprocess.run(
            [sys.executable, str(PROGRAM), "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            check=False,
        )
    assert run.returncode == 2 and len(run.stderr.splitlines()) == 1, run.stderr
    assert run.stderr.startswith("error: standard output cannot be written (No space left on device)")


def test_letters_that_the_output_cannot_show_are_escaped():
    program = "from megatron_yuan.errors import run_command_line; run_command_line(lambda: print('\u4e2d: 1'))"
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=ascii_only, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "\\u4e2d: 1\n", "")

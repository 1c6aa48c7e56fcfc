"""The script of several machines says which of its variables is wrong, before any process starts."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "examples" / "pretrain_multi_node.sh"


def refusal(flags: list[str], **variables: str) -> str:
    environment = {"PATH": os.environ["PATH"], "NODES": "2", "RENDEZVOUS": "node0:29400", **variables}
    done = subprocess.run(
        ["bash", SCRIPT, *flags], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    return done.stderr


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("NODES=two", "NODES='two' must be"),
        ("GPUS=eight", "GPUS='eight' must be"),
        ("GPUS=0", "GPUS='0' must be"),
        ("STAGES=0", "STAGES='0' must be"),
        ("GPUS=3", "NODES x GPUS = 6 processes are no multiple of STAGES=8"),
    ],
)
def test_a_number_that_is_none_is_refused_by_its_name(setting: str, said: str) -> None:
    name, _, value = setting.partition("=")
    assert refusal([], **{name: value}).startswith(f"error: {said}")


@pytest.mark.parametrize("flags", [["--config", "plan.yaml"], ["--bf16", "--config=plan.yaml"]])
def test_the_stages_of_a_plan_are_not_held_to_those_of_the_script(flags: list[str]) -> None:
    assert refusal(flags, GPUS="3").startswith("error: DATA_PATH is not set")  # what is checked after the stages
    assert refusal(flags, GPUS="3", STAGES="4").startswith("error: NODES x GPUS = 6 processes are no multiple")

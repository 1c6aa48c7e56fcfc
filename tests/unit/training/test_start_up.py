from __future__ import annotations

import re
import time

import torch

from megatron_yuan.parallel.topology import Topology
from megatron_yuan.parallel.trace import Recorder
from megatron_yuan.training.start_up import StartUp, process_age


def test_every_part_from_the_launch_to_the_first_step_is_told_and_they_add_up() -> None:
    topology = Topology(0, 1, 0, 0, 1, 1, 0, 1, torch.device("cpu"), meeting_seconds=0.2)
    start_up = StartUp(topology)
    pulse = topology.pulse
    for phase in ("preflight", "checks", "model"):
        pulse.beat(phase)
        time.sleep(0.07)
    pulse.enter_step(0, during="validation ")
    time.sleep(0.07)
    pulse.enter_step(1)
    pulse.beat("forward", 1)
    time.sleep(0.07)
    line = start_up.line()
    found = re.findall(r"([a-z ]+) (\d+\.\d)", line.partition(": ")[2])
    names = [name.strip() for name, _ in found]
    assert names == [
        "imports and settings",
        "processes meet",
        "preflight",
        "checks",
        "model",
        "validation",
        "first step",
    ]
    total = float(re.match(r"start-up (\d+\.\d) s", line)[1])  # type: ignore[index]
    assert abs(total - sum(float(each) for _, each in found)) < 0.5
    assert abs(total - process_age()) < 1.0
    assert not pulse.listeners


def test_a_trace_of_the_first_step_does_not_take_it_out_of_the_start_up() -> None:
    topology = Topology(0, 1, 0, 0, 1, 1, 0, 1, torch.device("cpu"))
    start_up = StartUp(topology)
    topology.pulse.enter_step(0, during="validation ")
    recorder = Recorder(topology)
    topology.pulse.enter_step(1)
    time.sleep(0.07)
    assert start_up.line().endswith("first step 0.1")
    assert [span.phase for span in recorder.spans()] == ["begin"]
    assert not topology.pulse.listeners

"""Where a rank says that it is, it is."""

from __future__ import annotations

import pytest

from megatron_yuan.config.fields import with_values
from megatron_yuan.config.presets import preset
from megatron_yuan.config.schema import Config
from tests.distributed.training import train
from tests.indexed_data import EOD, counting_documents, write_indexed
from tests.processes import run_processes

STEPS, MICROBATCHES = 2, 4


def train_and_record(config: Config) -> tuple[list[tuple], list[tuple]]:
    """What the pulse said whenever a microbatch was read, with the microbatch's own number; and all its phases."""
    from megatron_yuan.parallel.watch.pulse import Position, Pulse
    from megatron_yuan.training import step as step_module

    pulses: dict[int, Pulse] = {}
    read: list[tuple] = []
    phases: list[tuple] = []
    beat, key = Pulse.beat, step_module.key

    def recording(self: Pulse, *args, **kwargs) -> None:
        beat(self, *args, **kwargs)
        pulses[0] = self
        phases.append((self.position.phase, self.position.waits))

    def reading(seed: int, step: int, sample: int) -> object:
        position: Position = pulses[0].position
        read.append((position.step, position.microbatch, step, sample % MICROBATCHES + 1))
        return key(seed, step, sample)

    Pulse.beat, step_module.key = recording, reading
    train(config)
    return read, phases


@pytest.mark.parametrize("virtual", [1, 2])
def test_the_microbatch_that_the_pulse_tells_is_the_one_at_work(tmp_path, virtual):
    tiny = preset("tiny")
    prefix = write_indexed(tmp_path / "set", counting_documents(0))
    values = {"data_path": (prefix,), "split": "1,0,0", "eod_id": EOD, "seq_length": 32, "micro_batch_size": 1}
    values |= {"train_iters": STEPS, "global_batch_size": MICROBATCHES, "pipeline_model_parallel_size": 2}
    config = with_values(tiny, {**values, "peak_tflops": 1.0, "virtual_pipeline_model_parallel_size": virtual})
    for read, phases in run_processes(train_and_record, 2, config):
        assert len(read) == STEPS * MICROBATCHES * virtual
        for told_step, told, step, microbatch in read:
            assert (told_step, told) == (step, microbatch)
        for phase, waits in [("forward", False), ("backward", False), ("optimizer", False), ("all grads sync", True)]:
            assert (phase, waits) in phases, phases
        assert any("recv" in phase and waits for phase, waits in phases)

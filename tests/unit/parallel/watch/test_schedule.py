"""Beats from within the schedules: the microbatch of each pass, and who waits."""

from __future__ import annotations

from megatron_yuan.parallel.watch.pulse import Pulse
from megatron_yuan.parallel.watch.schedule import ScheduleBeats


def passes(beats: ScheduleBeats, name: str, count: int) -> list[int | None]:
    numbers = []
    for _ in range(count):
        beats(name, log_level=2).start()
        numbers.append(beats.pulse.position.microbatch)
        beats(name).stop()
    return numbers


def test_a_plain_schedule_counts_microbatches_one_by_one_and_anew_each_time():
    beats = ScheduleBeats(Pulse(), stages=4, chunks=1)
    for _ in range(2):
        beats("forward-backward", log_level=1).start(barrier=False)
        assert passes(beats, "forward-compute", 3) == [1, 2, 3]
        assert passes(beats, "backward-compute", 3) == [1, 2, 3]


def test_an_interleaved_schedule_sends_a_group_through_each_chunk():
    beats = ScheduleBeats(Pulse(), stages=2, chunks=2)
    assert passes(beats, "forward-compute", 8) == [1, 2, 1, 2, 3, 4, 3, 4]


def test_an_exchange_waits_until_it_is_over_and_a_pass_does_not():
    pulse = Pulse()
    beats = ScheduleBeats(pulse, stages=2, chunks=1)
    pulse.enter_step(12)
    beats("forward-compute").start()
    assert str(pulse.position) == "step 12, forward of microbatch 1" and not pulse.position.waits
    beats("forward-send-backward-recv").start()
    assert pulse.position.waits
    beats("forward-send-backward-recv").stop()
    beats("backward-compute").start()
    assert not pulse.position.waits


def test_between_passes_a_stage_waits_for_what_it_asked_for_before():
    pulse = Pulse()
    beats = ScheduleBeats(pulse, stages=2, chunks=2)
    beats("forward-compute").start()
    beats("forward-compute").stop()
    assert pulse.position.waits and pulse.position.phase == "exchange"


def test_a_stage_alone_exchanges_nothing_and_waits_for_nobody():
    pulse = Pulse()
    beats = ScheduleBeats(pulse, stages=1, chunks=1)
    for name in ("backward-compute", "all-grads-sync"):
        beats(name).start()
        beats(name).stop()
        assert not pulse.position.waits and pulse.position.phase == "schedule"


def test_a_beat_at_the_same_place_is_another_beat():
    pulse = Pulse()
    pulse.beat("save")
    first = pulse.position
    pulse.beat("save")
    assert pulse.position == first and pulse.position is not first


def test_waiting_ends_where_it_began_but_an_error_leaves_the_mark():
    pulse = Pulse()
    pulse.beat("save")
    with pulse.waiting("gather"):
        assert pulse.position.waits and pulse.position.phase == "save (gather)"
    assert pulse.position.phase == "save" and not pulse.position.waits
    try:
        with pulse.waiting("gather"):
            raise RuntimeError
    except RuntimeError:
        assert pulse.position.waits

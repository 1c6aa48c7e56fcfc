"""Who is blamed. Each case is a scene of a job, without processes or clocks."""

from __future__ import annotations

import pytest

from megatron_yuan.parallel.watch.pulse import Position
from megatron_yuan.parallel.watch.verdict import Finding, Standing, judge_life, judge_pace

LIVENESS, HANG, START = 30.0, 60.0, 400.0


def at(step: int | None, phase: str, microbatch: int | None = None, waits: bool = False) -> Position:
    return Position(step, phase, microbatch, waits)


def rank(number: int, position: Position, **values) -> Standing:
    return Standing(number, f"host h{number}, process {number}00", position, **values)


def verdict(*standings: Standing, hang: float = HANG) -> Finding | None:
    return judge_life(standings, LIVENESS, START) or judge_pace(standings, hang)


def text(*standings: Standing) -> str:
    finding = verdict(*standings)
    assert finding is not None
    return finding.text


FORWARD, RECEIVING = at(12, "forward", 2), at(12, "forward recv", 2, waits=True)


def test_who_works_for_too_long_is_blamed_and_who_waits_for_it_is_not():
    victims = [rank(n, RECEIVING, still=62.0 + n) for n in (0, 1, 3)]
    found = text(*victims[:2], rank(2, FORWARD, still=61.0), victims[2])
    assert found == (
        "rank 2 (host h2, process 200) stands still for 61 s in step 12, forward of microbatch 2; 3 others wait for it"
    )


def test_waiting_for_long_is_fine_while_somebody_works_and_moves():
    assert (
        verdict(rank(0, at(12, "save", 40), still=5.0), rank(1, at(12, "save (gather)", waits=True), still=1e4)) is None
    )


def test_in_a_deadlock_who_is_in_the_earlier_step_is_furthest_behind():
    ahead = at(13, "begin (sum over stages)", waits=True)
    found = text(rank(0, ahead, still=61.0), rank(1, at(12, "save (barrier)", waits=True), still=70.0))
    assert "all ranks wait for each other" in found and "Furthest behind: rank 1" in found


def test_in_a_deadlock_in_one_step_who_stopped_first_is_furthest_behind():
    found = text(rank(0, RECEIVING, still=61.0), rank(1, RECEIVING, still=62.0))
    assert "Furthest behind: rank 1" in found


def test_a_deadlock_is_one_only_once_everybody_stands():
    assert verdict(rank(0, RECEIVING, still=1.0), rank(1, RECEIVING, still=1e3)) is None


def test_before_the_first_step_nobody_is_judged_by_its_pace():
    assert (
        verdict(rank(0, at(None, "start"), still=1e5), rank(1, at(None, "start (barrier)", waits=True), still=1e5))
        is None
    )


def test_a_hang_timeout_of_0_judges_nobody_by_its_pace():
    assert judge_pace([rank(0, FORWARD, still=1e5)], 0.0) is None


def test_a_process_alone_that_stands_still_is_named():
    assert text(rank(0, FORWARD, still=61.0)).endswith("stands still for 61 s in step 12, forward of microbatch 2")


def test_who_is_silent_is_frozen_and_to_be_killed():
    finding = verdict(rank(0, RECEIVING, still=31.0), rank(1, FORWARD, silent=31.0, still=31.0))
    assert finding is not None and finding.frozen == (1,)
    assert "rank 1 (host h1, process 100) does not answer for 31 s" in finding.text
    assert "step 12, forward of microbatch 2" in finding.text


def test_before_the_first_step_an_extension_may_be_silent_for_longer():
    building = rank(1, at(None, "start"), silent=300.0, still=300.0)
    assert verdict(rank(0, at(None, "start (barrier)", waits=True)), building) is None
    assert "rank 1" in text(rank(0, at(None, "start (barrier)", waits=True), farewell="lost contact"), building)


def test_who_froze_before_the_first_step_is_found_before_collectives_give_up():
    found = text(rank(0, at(None, "load (gather)", waits=True)), rank(1, at(None, "load"), silent=401.0, still=401.0))
    assert "rank 1 (host h1, process 100) does not answer for 401 s" in found and "its start, load" in found
    assert judge_life([rank(0, at(None, "load"), silent=401.0)], 0, START) is None, "silence is allowed"


def test_who_froze_in_its_first_step_before_it_told_of_it_is_found_by_those_who_are_in_it():
    frozen = rank(0, at(None, "start (gather)"), silent=31.0, still=31.0)
    finding = verdict(frozen, rank(1, at(1, "forward recv", 1, waits=True)))
    assert finding is not None and finding.frozen == (0,)


def test_who_is_gone_without_a_word_is_dead():
    found = text(rank(0, RECEIVING), rank(1, FORWARD, gone=True))
    assert "rank 1 (host h1, process 100) is dead" in found and "step 12, forward of microbatch 2" in found


def test_many_who_are_dead_are_counted_and_the_first_ones_named():
    dead = [rank(n, FORWARD, gone=True) for n in range(1, 20)]
    assert "(of 19 such ranks: 1, 2, 3, 4, 5, 6, 7, 8, ...)" in text(rank(0, RECEIVING), *dead)


def test_who_said_that_its_work_is_done_may_go():
    assert verdict(rank(0, at(12, "end"), still=1.0), rank(1, FORWARD, gone=True, farewell="done", silent=99.0)) is None


def test_a_death_is_blamed_before_the_collectives_that_fail_for_it():
    victim = rank(0, RECEIVING, farewell="lost contact", reason="Connection closed by peer")
    assert "rank 1" in text(victim, rank(1, FORWARD, gone=True))


def test_an_error_of_its_own_is_blamed_once_a_collective_failed_elsewhere():
    culprit = rank(1, FORWARD, farewell="error", reason="ValueError: no", gone=True, parted=0.1)
    assert verdict(rank(0, RECEIVING), culprit) is None, "the others may be about to say the same"
    found = text(rank(0, RECEIVING, farewell="lost contact"), culprit)
    assert found.endswith("ended by an error in step 12, forward of microbatch 2: ValueError: no")


def test_an_error_that_the_others_do_not_meet_ends_them_too():
    culprit = rank(1, FORWARD, farewell="error", reason="ValueError: no", gone=True, parted=7.0)
    assert "rank 1" in text(rank(0, RECEIVING), culprit)


def test_an_error_that_all_meet_needs_no_verdict():
    assert verdict(*(rank(n, FORWARD, farewell="error", reason="no", parted=9.0) for n in range(3))) is None


@pytest.mark.parametrize("position", [RECEIVING, at(12, "forward", 3)])
def test_when_a_collective_gives_up_who_stands_still_is_blamed_at_once(position):
    gave_up = rank(0, position, farewell="lost contact", reason="Timed out waiting 600000ms", still=3.0)
    found = text(gave_up, rank(1, FORWARD, still=3.0), rank(2, RECEIVING, still=3.0))
    assert found.startswith("rank 1")


def test_when_all_lost_contact_nobody_is_blamed():
    assert verdict(*(rank(n, RECEIVING, farewell="lost contact", still=99.0) for n in range(3))) is None


def test_who_waits_for_one_that_left_because_a_collective_failed_is_ended_too():
    left = rank(0, RECEIVING, farewell="lost contact", reason="Timed out waiting", gone=True, parted=7.0)
    found = text(left, rank(1, RECEIVING, still=1.0))
    assert found.startswith("rank 0") and found.endswith("where a collective failed: Timed out waiting")

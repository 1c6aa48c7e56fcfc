"""Some real torchrun runs, broken; the long form is tools/fault_drill.py."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from megatron_yuan.drill.drill import Drill
from megatron_yuan.drill.kills import Point
from megatron_yuan.drill.plan import KINDS, POINT_KIND, Scene
from megatron_yuan.drill.rig import Layout, make_rig
from megatron_yuan.drill.table import failures

STEPS, SEED = 40, 1


@pytest.fixture(scope="module")
def drill(tmp_path_factory) -> Drill:
    folder = tmp_path_factory.mktemp("drill")
    return Drill(folder, make_rig(folder / "rig", STEPS))


def survives(drill: Drill, name: str, tries: int = 1, points: Sequence[Point] = ()) -> bool:
    kind = next(each for each in KINDS if each.name == name)
    played = drill.play(Scene(KINDS.index(kind), kind, Layout(2), 0, SEED), tries, points)
    assert not failures([played]), "\n".join(failures([played]))
    return played.skipped is None and len(played.tries) == tries and all(each.identical for each in played.tries)


def test_killed_in_the_midst_of_a_save_a_run_goes_on_from_the_last_durable_checkpoint_to_the_same_end(drill):
    points = (
        Point(1, "midway", "write iter.tmp/optimizer/head.safetensors"),
        Point(0, "after", "rename iter.tmp -> iter"),
    )
    assert survives(drill, POINT_KIND, len(points), points)


def test_stopped_by_sigterm_a_run_loses_nothing_and_goes_on_to_the_same_end(drill):
    assert survives(drill, "SIGTERM")


def test_a_flipped_byte_in_the_newest_checkpoint_is_named_and_the_run_goes_on_from_the_one_before(drill):
    assert survives(drill, "flipped byte")

"""Which faults a seed means."""

from __future__ import annotations

from collections import Counter
from itertools import islice

from megatron_yuan.drill.plan import KINDS, scenes


def test_a_seed_means_the_same_scenes_and_draws_every_time():
    first, second = ([*islice(scenes(7), 40)] for _ in range(2))
    assert first == second
    assert [each.random().random() for each in first] == [each.random().random() for each in second]
    assert len({each.random().random() for each in first}) == 40


def test_one_round_breaks_runs_in_every_way_at_least_three_times_and_sixty_times_in_all():
    tries = Counter()
    for scene in islice(scenes(1), sum(kind.share for kind in KINDS)):
        tries[scene.kind.name] += scene.kind.tries
    assert set(tries) == {kind.name for kind in KINDS}
    assert min(tries.values()) >= 3 and tries.total() >= 60


def test_in_time_every_kind_meets_every_layout_it_is_for():
    met = {(scene.kind.name, scene.layout) for scene in islice(scenes(1), 100)}
    assert met == {(kind.name, layout) for kind in KINDS for layout in kind.layouts}

"""Numbers and ranges as users write them."""

from __future__ import annotations

from itertools import islice

import pytest

from megatron_yuan.config.spans import parse_spans
from megatron_yuan.errors import ConfigError


def test_spans_are_the_set_of_their_numbers():
    entries, wanted = ["7", "100-120", "3-5", "5-8", "9"], {*range(3, 10), *range(100, 121)}
    spans = parse_spans("skip_samples", entries)
    assert {n for n in range(200) if n in spans} == wanted and len(spans) == len(wanted)
    assert [spans.count_below(n) for n in range(200)] == [sum(w < n for w in wanted) for n in range(200)]
    assert list(islice(spans.outside_from(2), 5)) == [2, 10, 11, 12, 13]


def test_nothing_is_nothing():
    assert 0 not in parse_spans("skip_samples", []) and list(islice(parse_spans("x", []).outside_from(3), 2)) == [3, 4]


@pytest.mark.parametrize("entry", ["", "-1", "5-3", "a", "1-2-3", "1.5", "²"])
def test_what_is_neither_number_nor_range_is_refused_by_its_setting(entry):
    with pytest.raises(ConfigError, match="skip-samples has"):
        parse_spans("skip_samples", ["1", entry])

"""Numbers and ranges as a user writes them, 7 100-120, as sorted spans that neither touch nor overlap."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from megatron_yuan.config.fields import as_flag
from megatron_yuan.errors import ConfigError


@dataclass(frozen=True)
class Spans:
    """A set of whole numbers from 0 up."""

    bounds: tuple[tuple[int, int], ...] = ()
    """(first, one past the last) of each."""

    def __contains__(self, number: int) -> bool:
        return self.next_outside(number) != number

    def __len__(self) -> int:
        """How many numbers are in it."""
        return sum(end - first for first, end in self.bounds)

    def next_outside(self, number: int) -> int:
        """The first number from `number` on that is not in it."""
        place = bisect_right(self.bounds, number, key=lambda span: span[0]) - 1
        return max(number, self.bounds[place][1]) if place >= 0 else number

    def outside_from(self, number: int) -> Iterator[int]:
        """All numbers from `number` on that are not in it."""
        while True:
            number = self.next_outside(number)
            yield number
            number += 1

    def count_below(self, number: int) -> int:
        """How many of its numbers are below `number`."""
        return sum(max(0, min(end, number) - first) for first, end in self.bounds)


NOTHING = Spans()


def parse_spans(setting: str, entries: Sequence[str]) -> Spans:
    """`entries`, each N or FIRST-LAST (both in it). Raises ConfigError naming the entry that is neither."""
    spans: list[tuple[int, int]] = []
    for entry in entries:
        match = re.fullmatch(r"([0-9]{1,15})(?:-([0-9]{1,15}))?", entry)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise ConfigError(
                f"{setting.replace('_', '-')} has {entry!r}, which is neither a number nor a range; "
                f"write {as_flag(setting)} 7 100-120."
            )
        spans.append((first, last + 1))
    merged: list[tuple[int, int]] = []
    for first, end in sorted(spans):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((first, end))
    return Spans(tuple(merged))

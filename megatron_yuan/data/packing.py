"""From documents to samples: of one set, packed; of several, in turn by weight. Each with an index kept on disk."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from megatron_yuan.data.index_cache import Arrays, load_or_build
from megatron_yuan.data.index_file import lengths_of
from megatron_yuan.data.order import document_order, epochs_for, sample_order
from megatron_yuan.data.sample import Sample, SampleSource


class Part(NamedTuple):
    """Documents first ... end - 1 of one .bin/.idx pair."""

    prefix: str
    content: str
    """sha256 of the .idx: all that packing depends on, wherever the files lie."""
    first: int
    end: int
    tokens: int


class Plan(NamedTuple):
    """How samples are made."""

    sequence_length: int
    seed: int
    eod_id: int
    cache: Path
    """Folder for index files."""


OpenSet = Callable[[Part, "int | None", Plan], SampleSource]
"""A set's samples: at least so many of them, or (None) those of one epoch. Knows no ranks: builds what the cache
lacks."""


class PackedSet:
    """Documents shuffled epoch by epoch, strung together and cut into samples of S + 1 tokens."""

    def __init__(self, part: Part, num_samples: int | None, plan: Plan) -> None:
        from megatron_yuan.mcore.datasets import PackedReader, cut_into_samples  # seconds to import; checks come first

        epochs = epochs_for(num_samples or 0, part.tokens, plan.sequence_length)

        def build() -> Arrays:
            documents = document_order(part.first, part.end, epochs, plan.seed)
            lengths = lengths_of(part.prefix)
            return {
                "documents": documents,
                "samples": cut_into_samples(lengths, documents, plan.sequence_length, epochs, part.tokens),
                "shuffle": sample_order(part.tokens, plan.sequence_length, epochs, plan.seed),
            }

        identity = {
            "kind": "packed",
            "content": part.content,
            "documents": [part.first, part.end],
            "epochs": epochs,
            "sequence_length": plan.sequence_length,
            "seed": plan.seed,
        }
        self.reader = PackedReader(part.prefix, plan.sequence_length, load_or_build(plan.cache, identity, build))

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`."""
        return Sample(self.reader.tokens(index))


class Blend:
    """Samples of several sets in turn: always of the one that is furthest behind its weight."""

    def __init__(self, sets: Sequence[SampleSource | None], turns: Arrays) -> None:
        """`sets`: None in the place of one that has no turn."""
        self.sets, self.set_of, self.sample_of = sets, turns["sets"], turns["samples"]
        self.counts: list[int] = turns["counts"].tolist()
        """Samples drawn from each set."""

    def __len__(self) -> int:
        return len(self.set_of)

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`, which says which set it is from."""
        number = int(self.set_of[index])
        drawn = self.sets[number]
        assert drawn is not None, "a set that has no turn has no sample"
        return drawn[int(self.sample_of[index])]._replace(set_id=number)


def sets_of(samples: SampleSource) -> Sequence[SampleSource | None]:
    """The sets of a blend, or the one there is."""
    return samples.sets if isinstance(samples, Blend) else [samples]


def open_blend(
    parts: Sequence[Part], weights: Sequence[float], num_samples: int, plan: Plan, open_set: OpenSet = PackedSet
) -> Blend:
    """`num_samples` samples of `parts` by `weights`, in an order whose beginning does not depend on their number."""
    turns = take_turns(weights, num_samples, plan.cache)
    counts = turns["counts"].tolist()
    sets = [open_set(part, count, plan) if count else None for part, count in zip(parts, counts, strict=True)]
    return Blend(sets, turns)


def take_turns(weights: Sequence[float], num_samples: int, cache: Path) -> Arrays:
    """Whose turn each sample is: its set in `sets` [n] int16 and its number there in `samples` [n] int64; and `counts`,
    the number of turns of each set."""
    whole = math.fsum(weights)  # exact, where Python's versions differ in how sum rounds
    shares = [weight / whole for weight in weights]

    def build() -> Arrays:
        from megatron_yuan.mcore import datasets

        sets, samples = datasets.take_turns(shares, num_samples)
        return {"sets": sets, "samples": samples, "counts": np.bincount(sets, minlength=len(shares))}

    return load_or_build(cache, {"kind": "turns", "shares": shares, "samples": num_samples}, build)

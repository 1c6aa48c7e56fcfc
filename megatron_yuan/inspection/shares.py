"""How much of a run's samples each set has, beside its weight."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from megatron_yuan.config.spans import parse_spans
from megatron_yuan.data.blend import cache_folder
from megatron_yuan.data.datasets import Sources, open_sources
from megatron_yuan.data.packing import take_turns
from megatron_yuan.errors import ConfigError
from megatron_yuan.inspection.session import open_session


class Share(NamedTuple):
    """Of one set, or of all sets of a language."""

    name: str
    language: str
    weight: float
    """Of 1."""
    samples: int
    measured: float
    """Of 1."""

    @property
    def off(self) -> float:
        """Points of a percent between what was measured and the weight."""
        return 100 * (self.measured - self.weight)


def measure_shares(folder: Path, samples: int | None = None) -> tuple[list[Share], list[Share]]:
    """Of the first `samples` that the run in `folder` sees (None: of all), by set and by language."""
    if samples is not None and samples < 1:
        raise ConfigError(f"samples is {samples}, but must be at least 1.")
    config = open_session(folder).config
    sources = open_sources(config.data, config.model.vocab_size)
    skipped = parse_spans("skip_samples", config.guard.skip_samples)
    whole = config.training.train_iters * (config.training.global_batch_size or 1)
    samples = max(1, whole - skipped.count_below(whole)) if samples is None else samples
    drawn = samples  # those left out count for nothing, so the order is looked at further
    while drawn - skipped.count_below(drawn) < samples:
        drawn = samples + skipped.count_below(drawn)
    sets = _turns(sources, max(drawn, whole), config.data.data_cache_path, known=drawn <= whole)[:drawn]
    seen = np.ones(drawn, bool)
    for first, end in skipped.bounds:
        seen[first:end] = False
    counts = np.bincount(sets[seen], minlength=len(sources.train)).tolist()
    weights = sum(source.weight for source in sources.train)
    shares = [
        Share(name, source.entry.language or "-", source.weight / weights, count, count / samples)
        for name, source, count in zip(sources.train_names, sources.train, counts, strict=True)
    ]
    return shares, _by_language(shares)


def _turns(sources: Sources, samples: int, cache: str | None, known: bool) -> np.ndarray:
    """The set of each sample: of the run's own index file, or, further than that reaches, of one made for the while."""
    if len(sources.train) == 1:
        return np.zeros(samples, np.int16)
    weights = [source.weight for source in sources.train]
    if known:
        return np.asarray(take_turns(weights, samples, cache_folder(sources.train[0].prefix, cache))["sets"])
    with tempfile.TemporaryDirectory() as folder:
        return np.array(take_turns(weights, samples, Path(folder))["sets"])


def _by_language(shares: list[Share]) -> list[Share]:
    found: dict[str, Share] = {}
    for share in shares:
        if share.language == "-":
            continue
        so_far = found.get(share.language, Share("all", share.language, 0.0, 0, 0.0))
        found[share.language] = so_far._replace(
            weight=so_far.weight + share.weight,
            samples=so_far.samples + share.samples,
            measured=so_far.measured + share.measured,
        )
    return list(found.values())


def share_lines(shares: list[Share], languages: list[Share]) -> list[str]:
    """A table."""
    rows = [("set", "language", "samples", "weight", "measured", "off by")]
    for each in (*shares, *languages):
        row = each.name, each.language, f"{each.samples:,}", f"{100 * each.weight:.3f}%", f"{100 * each.measured:.3f}%"
        rows.append((*row, f"{each.off:+.4f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    worst = max(shares, key=lambda share: abs(share.off))
    total = sum(share.samples for share in shares)
    return [*lines, f"of {total:,} samples, {worst.name} is furthest off its weight: {worst.off:+.4f} points"]

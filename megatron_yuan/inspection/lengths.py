"""How long the documents of a set are."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from megatron_yuan.errors import ConfigError

QUANTILES = 0, 1, 10, 25, 50, 75, 90, 99, 100
BAR = 40  # characters of the longest


def bins_of(lengths: np.ndarray) -> np.ndarray:
    """Edges of bins by powers of two: [1, 2), [2, 4) ... in tokens; documents of no token have one of their own."""
    top = max(1, int(lengths.max())).bit_length()
    return np.array([0, *(2**power for power in range(top + 1))])


def describe_lengths(name: str, lengths: np.ndarray) -> list[str]:
    """Lines of text: totals, quantiles and a histogram."""
    total = int(lengths.sum(dtype=np.int64))
    values = np.percentile(lengths, QUANTILES, method="nearest")
    lines = [
        f"{name}: {len(lengths):,} documents, {total:,} tokens, {total / len(lengths):,.1f} a document",
        "quantiles: " + "  ".join(f"{q}%: {int(v):,}" for q, v in zip(QUANTILES, values, strict=True)),
    ]
    edges = bins_of(lengths)
    counts = np.histogram(lengths, edges)[0]
    tokens = np.histogram(lengths, edges, weights=lengths.astype(float))[0]
    first = int(np.argmax(counts > 0))
    for low, high, count, held in list(zip(edges[:-1], edges[1:], counts, tokens, strict=True))[first:]:
        bar = "#" * round(BAR * count / counts.max())
        share = f"{100 * count / len(lengths):5.1f}% of documents, {100 * held / max(1, total):5.1f}% of tokens"
        lines.append(f"{low:>9,} to {high - 1:>9,}: {share}  {bar}".rstrip())
    return lines


def draw_lengths(name: str, lengths: np.ndarray, path: Path) -> None:
    """The histogram as a PNG: shares of documents and of tokens by length. Raises ConfigError where it cannot be."""
    from matplotlib.figure import Figure

    if path.suffix.lower() != ".png":
        raise ConfigError(f"png is {path}, but must be a picture: give a name that ends in .png.")
    some = lengths[lengths > 0]
    if not len(some):
        raise ConfigError(f"{name} has no document with a token: there is nothing to draw.")
    low, high = int(some.min()), int(some.max())
    edges = np.unique(np.round(np.geomspace(low, high + 1, 61)))
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    for weights, label, colour in ((None, "documents", "#4477aa"), (some.astype(float), "tokens", "#ee6677")):
        counts = np.histogram(some, edges, weights=weights)[0]
        axes.stairs(100 * counts / counts.sum(), edges, label=f"share of {label}", color=colour, linewidth=1.5)
    axes.axvline(float(np.median(some)), color="#999999", linewidth=1, linestyle=":", label="median document")
    axes.set_xscale("log")
    axes.set_xlabel("tokens in a document")
    axes.set_ylabel("%, in each of equal steps of the logarithm")
    axes.set_title(f"{name}: {len(lengths):,} documents, {int(lengths.sum(dtype=np.int64)):,} tokens")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise ConfigError(f"png is {path}, which cannot be written ({error.strerror}): name another.") from None

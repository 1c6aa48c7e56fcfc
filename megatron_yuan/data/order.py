"""The order of a set's documents and samples: every epoch is shuffled by itself, so an epoch holds each document once.

A set of T tokens an epoch, its epochs strung together and cut every S tokens, gives samples of S + 1 tokens (the last
is the next one's first). Sample i begins at token i * S; it lies within an epoch, or reaches from one into the next.
Those within are shuffled; one that reaches over keeps its place, at the end. So the first epochs are the same, sample
by sample, however many follow: a run made longer sees what it would have seen.
"""

from __future__ import annotations

import numpy as np

DOCUMENTS, SAMPLES = 0, 1  # what a draw is for


def epochs_for(samples: int, tokens: int, sequence_length: int) -> int:
    """Fewest epochs of `tokens` that give as many samples; at least one."""
    return max(1, -(-(samples * sequence_length + 1) // tokens))


def samples_in(epochs: int, tokens: int, sequence_length: int) -> int:
    """Whole samples in so many epochs of `tokens`."""
    return max(0, (epochs * tokens - 1) // sequence_length)


def document_order(first: int, end: int, epochs: int, seed: int) -> np.ndarray:
    """Documents first ... end - 1, shuffled anew in each epoch, [epochs * (end - first)] int32."""
    order = np.empty((epochs, end - first), np.int32)
    for epoch, row in enumerate(order):
        row[:] = np.arange(first, end, dtype=np.int32)
        _generator(seed, DOCUMENTS, epoch).shuffle(row)
    return order.reshape(-1)


def sample_order(tokens: int, sequence_length: int, epochs: int, seed: int) -> np.ndarray:
    """Numbers of the samples of `epochs` epochs of `tokens` each, in the order in which they are seen."""
    whole = samples_in(epochs, tokens, sequence_length)
    order = np.arange(whole, dtype=np.uint32 if whole < 2**32 else np.int64)
    for epoch in range(epochs):
        first = -(-epoch * tokens // sequence_length)
        end = samples_in(epoch + 1, tokens, sequence_length)
        if end > first:
            _generator(seed, SAMPLES, epoch).shuffle(order[first:end])
    return order


def _generator(*numbers: int) -> np.random.RandomState:
    """RandomState and no newer generator: numpy promises that its stream never changes, so nor does an order."""
    return np.random.RandomState(list(numbers))

"""Unigram and bigram losses on a run's validation samples: what a model must beat to know more than counts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class NgramLoss:
    """Mean loss of a token in nats."""

    unigram: float
    bigram: float
    tokens: int


class NgramCounts:
    """Counts of tokens and of pairs over training samples.

    The unigram is add-one: P(w) = (c(w) + 1) / (N + V). The bigram is Witten and Bell's:
    P(w | v) = (c(v, w) + t(v) P(w)) / (c(v) + t(v)), t(v) the number of different followers of v.
    """

    def __init__(self, samples: Iterable[np.ndarray], vocab_size: int) -> None:
        """`samples`: token ids [S + 1] each; a pair is an input and its label."""
        self.vocab_size = vocab_size
        unigrams = np.zeros(vocab_size, np.int64)
        keys = []
        for ids in samples:
            unigrams += np.bincount(ids[1:], minlength=vocab_size)
            keys.append(ids[:-1] * vocab_size + ids[1:])
        self.pairs, self.pair_counts = np.unique(np.concatenate(keys), return_counts=True)
        firsts = self.pairs // vocab_size
        self.followers = np.bincount(firsts, minlength=vocab_size)
        self.contexts = np.bincount(firsts, weights=self.pair_counts, minlength=vocab_size)
        self.unigram = (unigrams + 1) / (unigrams.sum() + vocab_size)

    def loss(self, samples: Iterable[np.ndarray]) -> NgramLoss:
        """Mean losses over every label of `samples`."""
        ids = list(samples)
        first, label = (np.concatenate(parts) for parts in zip(*((s[:-1], s[1:]) for s in ids), strict=True))
        key = first * self.vocab_size + label
        at = np.minimum(np.searchsorted(self.pairs, key), len(self.pairs) - 1)
        count = np.where(self.pairs[at] == key, self.pair_counts[at], 0)
        weight = np.maximum(self.followers[first], 1)
        bigram = (count + weight * self.unigram[label]) / (self.contexts[first] + weight)
        return NgramLoss(float(-np.log(self.unigram[label]).mean()), float(-np.log(bigram).mean()), len(label))

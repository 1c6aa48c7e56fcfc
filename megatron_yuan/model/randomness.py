"""Random draws that depend on what is drawn for, never on where: keyed by seed, step, sample, layer and site.

So the same run draws the same numbers at any layout of processes, with any number of microbatches, under recompute
and after a resume, and no generator state needs saving.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


def key(*parts: object) -> int:
    """A 63-bit seed from any parts that print alike everywhere (numbers, names)."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(device: torch.device, *parts: object) -> torch.Generator:
    """A generator on `device`, seeded by the parts."""
    return torch.Generator(device=device).manual_seed(key(*parts))


@contextmanager
def seeded(device: torch.device, *parts: object) -> Iterator[None]:
    """Seed torch's default generator of `device` by the parts, and put its state back afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(key(*parts))
        yield


def dropout(x: Tensor, p: float, sample_keys: Sequence[int] | None, *site: object) -> Tensor:
    """Drop elements of `x` [B, ...] with probability `p`, each sample b by its own `sample_keys[b]`; None keeps all."""
    if p == 0.0 or sample_keys is None:
        return x
    keep = torch.empty_like(x)
    for row, sample_key in zip(keep, sample_keys, strict=True):
        row.bernoulli_(1 - p, generator=generator(x.device, sample_key, *site))
    return x * keep / (1 - p)

"""Small indexed datasets for tests: ids that a tiny model can learn, in documents of many lengths."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_yuan.data.passport import passport_path, read_passport, write_passport

EOD = 1


def counting_documents(seed: int, documents: int = 300, vocab: int = 256, longest: int = 200) -> list[np.ndarray]:
    """Documents that count up by a stride of their set, each ended by EOD."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(documents):
        first, length = random.integers(vocab), random.integers(5, longest)
        ids = 2 + (first + np.arange(length) * (seed + 1)) % (vocab - 2)
        made.append(np.append(ids, EOD))
    return made


def write_indexed(prefix: Path, documents: Iterable[np.ndarray], dtype: type = np.uint16) -> str:
    """Write PREFIX.bin and PREFIX.idx with megatron-core's own builder; returns the prefix."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    prefix.parent.mkdir(parents=True, exist_ok=True)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for ids in documents:
        builder.add_document(torch.from_numpy(np.asarray(ids, np.int64)), [len(ids)])
    builder.finalize(f"{prefix}.idx")
    return str(prefix)


def alter_passport(prefix: str, **facts: Any) -> None:
    """Write the passport of a pair anew, with other facts."""
    found = read_passport(prefix)
    assert found is not None
    write_passport(passport_path(prefix), replace(found, **facts))

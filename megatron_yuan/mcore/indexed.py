"""megatron-core's indexed dataset on disk: a .bin of token ids and an .idx of document bounds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from megatron_yuan.mcore.compat import quiet
from megatron_yuan.mcore.version import check_version

check_version()
with quiet():
    from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

__all__ = ["IndexedDataset", "IndexedWriter"]


class IndexedWriter:
    """Writes documents one by one; `finish` writes the index."""

    def __init__(self, data: Path, dtype: np.dtype) -> None:
        self._builder = IndexedDatasetBuilder(str(data), dtype=dtype.type)
        self._convert = torch.int32 if dtype.itemsize <= 4 else torch.int64

    def add(self, ids: Sequence[int]) -> None:
        """Append one document of token ids."""
        self._builder.add_document(torch.tensor(ids, dtype=self._convert), [len(ids)])

    def finish(self, index: Path) -> None:
        """Close the data and write the index."""
        self._builder.finalize(str(index))

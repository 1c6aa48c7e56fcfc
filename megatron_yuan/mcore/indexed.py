"""megatron-core's indexed dataset on disk: a .bin of token ids and an .idx of document bounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from megatron_yuan.mcore.compat import importing
from megatron_yuan.mcore.version import check_version

check_version()
with importing():
    from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

__all__ = ["IndexedDataset", "IndexedDatasetBuilder", "IndexedWriter"]


class IndexedWriter:
    """Writes documents, one sequence each; `finish` writes the index."""

    def __init__(self, data: Path, dtype: np.dtype) -> None:
        self._builder = IndexedDatasetBuilder(str(data), dtype=dtype.type)

    def add(self, ids: np.ndarray, lengths: np.ndarray) -> None:
        """Append documents: their ids one after another, and the number of ids of each."""
        for document in np.split(ids, np.cumsum(lengths)[:-1]):
            # Asks for a tensor, but makes an array of it first thing; from an array that is ten times as fast.
            self._builder.add_document(document, [len(document)])  # type: ignore[arg-type]

    def finish(self, index: Path) -> None:
        """Close the data and write the index."""
        self._builder.finalize(str(index))

    def close(self) -> None:
        """Let go of the data without an index."""
        self._builder.data_file.close()

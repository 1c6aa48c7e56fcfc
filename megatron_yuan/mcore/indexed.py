"""megatron-core's indexed dataset on disk: a .bin of token ids and an .idx of document bounds."""

from __future__ import annotations

from megatron_yuan.mcore.compat import importing
from megatron_yuan.mcore.version import check_version

check_version()
with importing():
    from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

__all__ = ["IndexedDataset", "IndexedDatasetBuilder"]

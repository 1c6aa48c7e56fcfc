"""megatron-core's packed GPT dataset and its blending: how documents are cut into samples, how these are read, and how
sets take turns.

What is not taken from there is its builder. It shuffles all epochs of a set at once, so that a document may come twice
before another comes at all, and its index files are known by their data's path and may be half-written.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from megatron_yuan.mcore.compat import importing, quiet
from megatron_yuan.mcore.version import check_version

check_version()
with importing():
    from megatron.core.datasets import helpers
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from megatron.core.datasets.utils import Split


def cut_into_samples(
    lengths: np.ndarray, documents: np.ndarray, sequence_length: int, epochs: int, tokens: int
) -> np.ndarray:
    """Where each sample begins, as place in `documents` and offset, [samples + 1, 2]; the last row is the end.

    `lengths`: of every document of the set. `documents`: those of all epochs in their order, int32. `tokens`: of an
    epoch. A sample is S + 1 tokens, and its last is the next one's first.
    """
    return helpers.build_sample_idx(lengths, documents, sequence_length, epochs, tokens, True, True)


def take_turns(shares: Sequence[float], num_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """The set of each of `num_samples`, [n] int16, and its number within the set, [n] int64.

    It is always the turn of the set that is furthest behind its share, so more samples only add turns at the end.
    """
    sets, samples = np.zeros(num_samples, np.int16), np.zeros(num_samples, np.int64)
    build = helpers.build_blending_indices  # type: ignore[attr-defined]  # compiled
    build(sets, samples, np.array(shares, float), len(shares), num_samples, False)
    return sets, samples


class PackedReader(GPTDataset):
    """megatron's reader of samples, with an index that is ours."""

    def __init__(self, prefix: str, sequence_length: int, index: Mapping[str, np.ndarray]) -> None:
        """`index`: `documents` in their order, `samples` as `cut_into_samples` has them, `shuffle`: their order."""
        self._index = index["documents"], index["samples"], index["shuffle"]
        config = GPTDatasetConfig(
            random_seed=0,
            sequence_length=sequence_length,
            blend=([prefix], None),
            split="1,0,0",
            tokenizer=NO_TOKENIZER,  # type: ignore[arg-type]
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            create_attention_mask=False,
        )
        with quiet():
            super().__init__(IndexedDataset(prefix), prefix, index["documents"], None, Split.train, config)

    def _build_document_sample_shuffle_indices(self) -> Any:
        return self._index

    def tokens(self, index: int) -> np.ndarray:
        """Ids [S + 1] of sample `index`, int64."""
        return self._query_document_sample_shuffle_indices(index)[0]

    def documents(self, index: int) -> np.ndarray:
        """Numbers of the documents that sample `index` has tokens of, in order."""
        return self._query_document_sample_shuffle_indices(index)[1]


class _Identity:
    """What megatron asks of a tokenizer: who it is. Nothing is tokenized here."""

    vocab_size = None
    unique_identifiers: ClassVar[OrderedDict[str, Any]] = OrderedDict()


NO_TOKENIZER = _Identity()

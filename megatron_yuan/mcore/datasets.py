"""megatron-core's packed GPT dataset and blended builder, giving token ids and nothing else."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from megatron_yuan.mcore.compat import quiet
from megatron_yuan.mcore.version import check_version

check_version()
with quiet():
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig


@dataclass
class PackedConfig(GPTDatasetConfig):
    """megatron's config, and what else an index depends on."""

    contents: Mapping[str, str] = field(default_factory=dict)
    """A fingerprint of each prefix's bytes: with it, data made anew in its old place never meets its old index."""


class PackedDataset(GPTDataset):
    """Documents shuffled, strung together and cut into samples of S + 1 tokens."""

    @staticmethod
    def _key_config_attributes() -> list[str]:
        return [*GPTDataset._key_config_attributes(), "contents"]

    def __getitem__(self, idx: int | None) -> dict[str, np.ndarray]:  # type: ignore[override]
        """`tokens`: ids [S + 1], int64. (A mapping, to which a blend adds the number of the set, `dataset_id`.)"""
        tokens, _ = self._query_document_sample_shuffle_indices(0 if idx is None else idx)
        return {"tokens": tokens.astype(np.int64)}


class _Identity:
    """What the builder asks of a tokenizer: who it is. Nothing is tokenized here."""

    def __init__(self, eod: int) -> None:
        self.eod = eod
        self.vocab_size = None
        self.unique_identifiers = OrderedDict({"eod": eod})


def build_split(
    blend: tuple[Sequence[str], Sequence[float] | None],
    split: str,
    which: int,
    num_samples: int | None,
    sequence_length: int,
    seed: int,
    eod_id: int,
    cache: str,
    contents: Mapping[str, str],
) -> Sequence[Mapping[str, np.ndarray]] | None:
    """Samples of one split (0 train, 1 valid, 2 test) of a blend; None where the split has no documents.

    `num_samples` None: each sample once. Called by all ranks of an initialised world: rank 0 builds the index files.
    """
    prefixes, weights = blend
    config = PackedConfig(
        random_seed=seed,
        sequence_length=sequence_length,
        blend=(list(prefixes), list(weights) if weights else None),
        split=split,
        path_to_cache=cache,
        tokenizer=_Identity(eod_id),  # type: ignore[arg-type]
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        contents=dict(contents),
    )
    assert config.split_matrix is not None
    # The other splits' bounds are needed to find this one's, but they are not built.
    config.split_matrix = [bounds if i == which else None for i, bounds in enumerate(config.split_matrix)]
    sizes = [num_samples if i == which else 0 for i in range(3)]
    with quiet():
        return BlendedMegatronDatasetBuilder(PackedDataset, sizes, lambda: True, config).build()[which]  # type: ignore[arg-type]

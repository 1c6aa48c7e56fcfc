"""megatron-core's packed GPT dataset and blended builder, giving token ids and nothing else."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch.distributed as dist

from megatron_yuan.mcore.compat import importing, quiet, world_of_one
from megatron_yuan.mcore.version import check_version

check_version()
with importing():
    from megatron.core.datasets.blended_dataset import BlendedDataset
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

SURPLUS = 0.005  # megatron's: by this share a set gets more samples than its weight asks for
UNREADABLE = (ValueError, EOFError, UnpicklingError)  # what numpy says of a file that is cut off or overwritten


@dataclass
class PackedConfig(GPTDatasetConfig):
    """megatron's config, and what else an index depends on."""

    contents: Mapping[str, str] = field(default_factory=dict)
    """A fingerprint of each prefix's bytes: with it, data made anew in its old place never meets its old index."""


class PackedDataset(GPTDataset):
    """Documents shuffled, strung together and cut into samples of S + 1 tokens."""

    def _build_document_sample_shuffle_indices(self) -> Any:
        return _load_or_rebuild(super()._build_document_sample_shuffle_indices, self)

    @staticmethod
    def _key_config_attributes() -> list[str]:
        return [*GPTDataset._key_config_attributes(), "contents"]

    def __getitem__(self, idx: int | None) -> dict[str, np.ndarray]:  # type: ignore[override]
        """`tokens`: ids [S + 1], int64. (A mapping, to which a blend adds the number of the set, `dataset_id`.)"""
        tokens, _ = self._query_document_sample_shuffle_indices(0 if idx is None else idx)
        return {"tokens": tokens.astype(np.int64)}


class PackedBlend(BlendedDataset):
    """Samples of several sets in turn, by weight."""

    def _build_indices(self) -> Any:
        return _load_or_rebuild(super()._build_indices, self)


class PackedBuilder(BlendedMegatronDatasetBuilder):
    """megatron's builder, making blends of the class above."""

    @staticmethod
    def build_generic_dataset(cls: Any, is_built_on_rank: Callable, synchronize_ranks: bool, *args: Any) -> Any:
        """As megatron's; `cls` is what to build. (A static method there too, so the class comes as an argument.)"""
        wanted = PackedBlend if cls is BlendedDataset else cls
        return BlendedMegatronDatasetBuilder.build_generic_dataset(wanted, is_built_on_rank, synchronize_ranks, *args)


def _load_or_rebuild(load_or_build: Callable[[], Any], dataset: PackedDataset | PackedBlend) -> Any:
    """What `load_or_build` returns. Index files that cannot be read, as after a run killed while it wrote them, are
    made again: by rank 0, for which the others wait."""
    try:
        return load_or_build()
    except UNREADABLE:
        if dist.get_rank() != 0:
            raise
        cache = dataset.config.path_to_cache
        assert cache is not None
        for file in Path(cache).glob(f"{dataset.unique_description_hash}-*"):
            file.unlink()
        return load_or_build()


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

    `num_samples` None: each sample once. Called by all ranks of an initialised world, where rank 0 builds the index
    files, or by a process alone.
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
        mid_level_dataset_surplus=_surplus(len(prefixes), num_samples),
        contents=dict(contents),
    )
    assert config.split_matrix is not None
    # The other splits' bounds are needed to find this one's, but they are not built.
    config.split_matrix = [bounds if i == which else None for i, bounds in enumerate(config.split_matrix)]  # type: ignore[assignment]
    sizes = [num_samples if i == which else 0 for i in range(3)]
    with quiet(), world_of_one():
        return PackedBuilder(PackedDataset, sizes, lambda: True, config).build()[which]  # type: ignore[arg-type]


def _surplus(sets: int, num_samples: int | None) -> float:
    """Share of samples to have at hand beyond a set's own: megatron's, or more where samples are few.

    Each set's number of samples is rounded up, so a blend has up to one more for each set than asked for, and a heavy
    set may be drawn from that often beyond its share.
    """
    return max(SURPLUS, 2 * sets / num_samples) if num_samples else SURPLUS

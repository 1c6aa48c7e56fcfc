"""megatron-core's own builder of index files, which the project does without: to be measured beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megatron_yuan.mcore.compat import importing, quiet, world_of_one
from megatron_yuan.mcore.datasets import NO_TOKENIZER

with importing():
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig


def build_with_megatron(
    prefixes: Sequence[str], weights: Sequence[float], samples: int, sequence_length: int, seed: int, cache: Path
) -> int:
    """Build, or load from `cache`, the index of a blend of whole sets; returns its number of samples."""
    config = GPTDatasetConfig(
        random_seed=seed,
        sequence_length=sequence_length,
        blend=(list(prefixes), list(weights) if len(prefixes) > 1 else None),
        split="1,0,0",
        path_to_cache=str(cache),
        tokenizer=NO_TOKENIZER,  # type: ignore[arg-type]
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    with quiet(), world_of_one():
        built = BlendedMegatronDatasetBuilder(GPTDataset, [samples, 0, 0], lambda: True, config).build()
    return len(built[0])  # type: ignore[arg-type]

"""Layers of each model chunk in pipeline order, from `--pipeline-model-parallel-layout` or even by default."""

from __future__ import annotations

from megatron_yuan.errors import ConfigError

AUTO = "auto"
"""The layout that evens the measured times of the stages."""


def chunk_sizes(num_layers: int, pp_size: int, vp_size: int = 1, layout: str | None = None) -> list[int]:
    """Number of layers of each of the pp_size x vp_size chunks, in the order in which a token meets them.

    `layout` is such as "2,4,4,2", or "auto", which is settled as a run starts
    (training/auto_layout.py); unset, all chunks are equal. Raises ConfigError for what does not add up.
    """
    chunks = pp_size * vp_size
    if layout == AUTO and num_layers >= chunks:
        layout = nearly_equal(num_layers, chunks)  # until the run has measured its stages
    if layout is not None and layout != AUTO:
        return _parse(layout, num_layers, chunks, _described(pp_size, vp_size))
    if num_layers % chunks:
        uneven = nearly_equal(num_layers, chunks)
        fix = (
            f"give the layers of each, for example --pipeline-model-parallel-layout {uneven}"
            if num_layers >= chunks
            else "use fewer stages (--pipeline-model-parallel-size)"
        )
        raise ConfigError(f"num-layers {num_layers} is not divisible by {_described(pp_size, vp_size)};\n{fix}.")
    return [num_layers // chunks] * chunks


def _parse(layout: str, num_layers: int, chunks: int, described: str) -> list[int]:
    name = f"pipeline-model-parallel-layout {layout!r}"
    try:
        sizes = [int(entry) for entry in layout.split(",")]
    except ValueError:
        raise ConfigError(f"{name}: give whole numbers separated by commas, such as 2,4,4,2, or auto.") from None
    if min(sizes) < 1:
        raise ConfigError(f"{name}: every entry must be at least 1 layer; use fewer stages instead of an empty one.")
    if len(sizes) != chunks:
        raise ConfigError(f"{name} has {len(sizes)} entries, but there are {described}; give one entry for each.")
    if sum(sizes) != num_layers:
        raise ConfigError(f"{name} adds up to {sum(sizes)} layers, but num-layers is {num_layers}; change one of them.")
    return sizes


def _described(pp_size: int, vp_size: int) -> str:
    if vp_size == 1:
        return f"{pp_size} pipeline stages"
    return f"{pp_size} pipeline stages x {vp_size} virtual = {pp_size * vp_size} model chunks"


def nearly_equal(num_layers: int, chunks: int) -> str:
    """A layout such as "2,3,3,2": the remainder goes to the middle, as the first and the last chunk also hold the
    embedding and the head."""
    base, extra = divmod(num_layers, chunks)
    first = (chunks - extra) // 2
    return ",".join(str(base + (first <= i < first + extra)) for i in range(chunks))

"""Which layers live on which pipeline stage. Pure arithmetic: neither torch nor the ranks of this process."""

from __future__ import annotations

from megatron_yuan.config.layout import chunk_sizes


def layers_of_chunks(
    num_layers: int, pp_size: int, vp_size: int = 1, layout: str | None = None
) -> list[list[list[int]]]:
    """Global layer numbers by [stage][chunk].

    The model is cut into pp_size x vp_size runs of layers, of the sizes that `layout` gives (unset: equal); run i is
    chunk i // pp_size of stage i % pp_size, so that a microbatch passes each stage once a chunk. Raises ConfigError.
    """
    sizes = chunk_sizes(num_layers, pp_size, vp_size, layout)
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    runs = [list(range(end - size, end)) for end, size in zip(ends, sizes, strict=True)]
    return [[runs[chunk * pp_size + stage] for chunk in range(vp_size)] for stage in range(pp_size)]

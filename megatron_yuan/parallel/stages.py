"""Which layers live on which pipeline stage. Pure arithmetic: neither torch nor ranks of this process."""

from __future__ import annotations

from megatron_yuan.errors import ConfigError


def layers_of_chunks(num_layers: int, pp_size: int, vp_size: int = 1, layout: str | None = None) -> list[list[list[int]]]:
    """Global layer numbers by [stage][chunk].

    The model is cut into pp_size x vp_size runs of layers; run i is chunk i // pp_size of stage i % pp_size, so that a
    microbatch passes each stage once a chunk. `layout` gives the lengths of the runs in that order, such as "2,4,4,2"; without it
    they are equal, which must come out even.
    """
    runs = pp_size * vp_size
    lengths = [num_layers // runs] * runs if layout is None else _parse(layout)
    if layout is None and num_layers % runs:
        raise ConfigError(
            f"num_layers {num_layers} cannot be split evenly over {pp_size} stages x {vp_size} virtual. "
            f"Fix: --pipeline-model-parallel-layout {_suggest(num_layers, runs)}"
        )
    if len(lengths) != runs or sum(lengths) != num_layers:
        raise ConfigError(
            f"pipeline_model_parallel_layout {layout} has {len(lengths)} entries for {sum(lengths)} layers, "
            f"but there are {runs} (stages x virtual) for {num_layers}. Fix: for example {_suggest(num_layers, runs)}"
        )
    if num_layers >= runs and min(lengths) < 1:
        raise ConfigError(
            f"pipeline_model_parallel_layout {layout} leaves a stage without layers; each needs at least one. "
            f"Fix: for example {_suggest(num_layers, runs)}"
        )
    if num_layers < runs:
        raise ConfigError(
            f"num_layers {num_layers} is less than {pp_size} stages x {vp_size} virtual; each needs at least one layer. "
            "Fix: fewer --pipeline-model-parallel-size or --virtual-pipeline-model-parallel-size"
        )
    ends = [sum(lengths[: i + 1]) for i in range(runs)]
    all_runs = [list(range(end - length, end)) for end, length in zip(ends, lengths, strict=True)]
    return [[all_runs[chunk * pp_size + stage] for chunk in range(vp_size)] for stage in range(pp_size)]


def _parse(layout: str) -> list[int]:
    try:
        return [int(entry) for entry in layout.split(",")]
    except ValueError:
        raise ConfigError(
            f"pipeline_model_parallel_layout {layout!r} is not a list of layer counts. Fix: write it like 2,4,4,2"
        ) from None


def _suggest(num_layers: int, runs: int) -> str:
    # The first and the last run are left the shorter: they also hold the embedding and the head.
    base, extra = divmod(num_layers, runs)
    middle_first = sorted(range(runs), key=lambda i: (i in (0, runs - 1), i))
    lengths = [base] * runs
    for i in middle_first[:extra]:
        lengths[i] += 1
    return ",".join(map(str, lengths))

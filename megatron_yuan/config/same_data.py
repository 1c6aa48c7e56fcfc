"""Settings that make the order of samples: with others, a position in the data means other samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import PurePath

from megatron_yuan.config.fields import as_flag
from megatron_yuan.config.schema import Config
from megatron_yuan.errors import ConfigError

BLENDS = ("data_path", "train_data_path")
SETTINGS = ("split", "seq_length", "fim_rate", "fim_spm_rate", "fim_cut", "sft")
NOTHING = "nothing"


def check_same_data(saved: Config, asked: Config, where: str) -> None:
    """ConfigError naming the first difference, unless `asked` trains on the data of the run in `where`.

    Data that only moved are the same: prefixes are compared by the last part of their names, weights by shares.
    """
    if asked.checkpoint.other_data:
        return
    for name, theirs, ours in _differences(saved, asked):
        flag = as_flag(name)
        raise ConfigError(
            f"{flag[2:]} is {ours}, but the run in {where} was trained with {theirs}.\n"
            f"Fix: {_as_given(flag, theirs)}; another --save for a new run; or --other-data to go on with a changed "
            "one."
        )


def _differences(saved: Config, asked: Config) -> Iterator[tuple[str, str, str]]:
    from_a_file = saved.data.data_args_path is not None or asked.data.data_args_path is not None
    for name in () if from_a_file else BLENDS:  # what a file says is compared once it is read, with the data's record
        theirs, ours = getattr(saved.data, name), getattr(asked.data, name)
        if _blend(theirs) != _blend(ours):
            yield name, " ".join(theirs) or NOTHING, " ".join(ours) or NOTHING
    for name in SETTINGS:
        theirs, ours = getattr(saved.data, name), getattr(asked.data, name)
        if theirs != ours:
            yield name, str(theirs), str(ours)
    if saved.training.seed != asked.training.seed:
        yield "seed", str(saved.training.seed), str(asked.training.seed)


def _as_given(flag: str, value: str) -> str:
    """What to write on the command line for this value."""
    if value in ("False", NOTHING):
        return f"leave out {flag}"
    return flag if value == "True" else f"{flag} {value}"


def _blend(entries: Sequence[str]) -> list[tuple[float | str, str]]:
    """Share and name of each set that has a share, as the order of samples is made of them."""
    if len(entries) == 1:
        entries = ("1", *entries)
    try:
        weights = [float(weight) for weight in entries[::2]]
    except ValueError:
        return [("by tokens", PurePath(prefix).name) for prefix in entries]
    whole = math.fsum(weights) or 1.0
    return [
        (weight / whole, PurePath(name).name) for weight, name in zip(weights, entries[1::2], strict=False) if weight
    ]

"""What a run is trained on, as its checkpoints keep it: a run goes on with the same data, wherever they lie by then."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from megatron_yuan.data.index_cache import FORMAT
from megatron_yuan.errors import DataError

FIX = "Fix: put the data back; another --save for a new run; or --other-data to go on with changed ones."


@dataclass(frozen=True)
class Identity:
    """What a set is, wherever it lies; a checkpoint keeps it."""

    name: str
    weight: float
    idx_sha256: str
    bin_sha256: str | None
    """None where nobody knows: no passport, and --no-verify-data."""


def data_record(sets: Sequence[Identity], eod_id: int, fim_sets: Sequence[int], split: str) -> dict[str, Any]:
    """The whole record, as JSON holds it. `fim_sets`: numbers of those that FIM rearranges, none where it is off.
    `split`: which part of each set is trained on, as --split writes it."""
    return {
        "order": FORMAT,
        "sets": [asdict(each) for each in sets],
        "eod_id": eod_id,
        "fim_sets": list(fim_sets),
        "split": split,
    }


def check_same_data(saved: Mapping[str, Any], now: Mapping[str, Any], where: str) -> None:
    """DataError naming the first thing that is not as in the run in `where`. Records of earlier versions tell less."""
    sets = [Identity(**each) for each in now["sets"]]
    check_same_sets(saved.get("sets", []), sets, where)
    if saved.get("eod_id", now["eod_id"]) != now["eod_id"]:
        raise DataError(
            f"a document ends with {now['eod_id']}, but with {saved['eod_id']} in the run in {where}.\n"
            f"Fix: --eod-id {saved['eod_id']}; another --save for a new run; or --other-data to go on with another."
        )
    if saved.get("split", now["split"]) != now["split"]:
        raise DataError(
            f"the sets are trained on by split {now['split']}, but by {saved['split']} in the run in {where}: sets of "
            f"their own to validate or test on leave the others whole.\n{FIX}"
        )
    for number, each in enumerate(sets):
        theirs, ours = number in saved.get("fim_sets", now["fim_sets"]), number in now["fim_sets"]
        if theirs != ours:
            raise DataError(
                f"{each.name} is {'' if ours else 'not '}rearranged by FIM, but in the run in {where} it was"
                f"{'' if theirs else ' not'} (fim: in the blend's file).\n{FIX}"
            )


def check_same_sets(saved: Sequence[Mapping[str, Any]], now: Sequence[Identity], where: str) -> None:
    """DataError naming the first set that is not what the run in `where` was trained on."""
    for old, new in zip(saved, now, strict=False):
        theirs, ours = dict(old), asdict(new)
        for key, what in (("idx_sha256", "documents"), ("bin_sha256", "tokens")):
            if theirs.get(key) and ours[key] and theirs[key] != ours[key]:
                raise DataError(
                    f"the {what} of {new.name} (sha256 {ours[key][:12]}...) are not those that the run in {where} was "
                    f"trained on ({theirs.get('name')}, {theirs[key][:12]}...).\n{FIX}"
                )
    if len(saved) != len(now):
        raise DataError(f"the blend has {len(now)} sets, but the run in {where} was trained on {len(saved)}.\n{FIX}")
    wholes = math.fsum(float(old.get("weight", 0)) for old in saved), math.fsum(new.weight for new in now)
    for old, new in zip(saved, now, strict=True):
        weight = float(old.get("weight", 0))
        theirs, ours = weight / wholes[0], new.weight / wholes[1]
        if theirs == ours:
            continue
        if abs(theirs - ours) < 1e-9:  # where two sets are equally far behind, the last bit says whose turn it is
            raise DataError(
                f"{new.name} has weight {new.weight:.6g} of {wholes[1]:.6g}, but {weight:.6g} of {wholes[0]:.6g} in "
                f"the run in {where}: the same share but for rounding, which makes the order of samples another.\n"
                "Fix: weights as they were written; another --save for a new run; or --other-data to go on with others."
            )
        raise DataError(
            f"{new.name} has a share of {ours:.6g}, but of {theirs:.6g} in the run in {where}, so the order of "
            f"samples is another.\n{FIX}"
        )

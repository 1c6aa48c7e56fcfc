"""What a run that stops over bad steps tells: the step, its samples and their sets, and where numbers go wrong.

The place is looked for twice. In the gradients as the bad step left them: the parameters that are not finite, by name.
Then the same batch is run again with a hook behind every part of every layer: the lowest part whose output is not
finite is where the fault begins, and the microbatch names the samples. A rerun that is finite throughout says that
neither the data nor the weights are to blame.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn

from megatron_yuan.model.model import YuanModel
from megatron_yuan.parallel.topology import Topology
from megatron_yuan.report.run_folder import RunFolder

if TYPE_CHECKING:
    from megatron_yuan.training.run import Run

_SHOWN = 6


class Place(NamedTuple):
    """A part whose output was not finite; places sort in the order of the forward pass."""

    layer: int
    """-1 before the first layer; past the last one behind it."""
    part: str
    microbatch: int | None
    """Of this replica, counted from 1."""
    rank: int
    samples: tuple[int, ...]
    """Those of the microbatch."""

    def __str__(self) -> str:
        where = self.part if self.part in ("embedding", "final norm") else f"layer {self.layer}, {self.part}"
        return f"{where} on rank {self.rank}, samples {spans_of(self.samples)}"


@dataclass(frozen=True)
class Diagnosis:
    """Of the last of several bad steps."""

    step: int
    reason: str
    """Why the step was bad."""
    skipped_in_a_row: int
    samples: dict[str, list[int]]
    """Of the step, by the set that they come from."""
    first_not_finite: Place | None
    """The lowest part whose output was not finite in the rerun, of all ranks."""
    bad_gradients: dict[str, list[int]]
    """Parameters whose gradient was not finite, each with the ranks where that is so: all replicas of a stage, once
    theirs are summed."""

    def text(self) -> str:
        """In words."""
        lines = [
            f"step {self.step}: {self.reason}; {self.skipped_in_a_row} steps in a row were skipped (guard-max-skips)."
        ]
        if self.first_not_finite is not None:
            lines.append(f"Run again, the first output that is not finite is that of {self.first_not_finite}.")
        elif self.bad_gradients:
            name, ranks = next(iter(self.bad_gradients.items()))
            more = f" (and {len(self.bad_gradients) - 1} more)" if len(self.bad_gradients) > 1 else ""
            where = f"on rank {ranks[0]}" if len(ranks) == 1 else f"summed over ranks {', '.join(map(str, ranks))}"
            lines.append(
                f"The gradient of {name}{more} {where} was not finite, though every output of a rerun is: look at "
                f"{'that device' if len(ranks) == 1 else 'those devices, one of which computes wrongly'}."
            )
        else:
            lines.append("Every output of a rerun is finite.")
        sets = "; ".join(f"{name}: {spans_of(ids)}" for name, ids in self.samples.items())
        lines.append(f"Samples of the step by set: {sets}.")
        lines.append(
            "Weights are as before the skipped steps. Fix: look at these samples, and leave them out with "
            "--skip-samples; or resume with a lower --lr."
        )
        return "\n".join(lines)


def diagnose(run: Run, step: int, reason: str) -> str:
    """Find out, and write it into the run folder; returns it in words. Called by all ranks together."""
    topology, microbatches = run.topology, run.microbatches
    gradients = {name: p.main_grad for name, p in run.model.parameters.items()}  # type: ignore[attr-defined]
    bad_gradients: dict[str, list[int]] = {}
    for rank, names in enumerate(topology.gather(not_finite(gradients))):
        for name in names:
            bad_gradients.setdefault(name, []).append(rank)

    ids = list(itertools.islice(microbatches.ids(run.consumed_samples), len(microbatches)))
    models = [cast(YuanModel, chunk.module.part) for chunk in run.model.chunks]
    with outputs_watched(models, topology, lambda m: tuple(ids[m - 1]) if m is not None else ()) as found:
        run.forward_backward(step)
    places = [place for place in topology.gather(min(found, key=_order) if found else None) if place is not None]
    samples: dict[str, list[int]] = {}
    for number in microbatches.batch_ids(run.consumed_samples):
        sample = microbatches.source[number % len(microbatches.source)]
        samples.setdefault(run.set_names[sample.set_id], []).append(number)
    first = min(places, key=_order) if places else None
    diagnosis = Diagnosis(step, reason, run.guard.in_a_row, samples, first, bad_gradients)
    if run.config.checkpoint.save is None:
        return diagnosis.text()
    path = RunFolder(Path(run.config.checkpoint.save)).diagnosis(step)
    if topology.is_main:
        path.write_text(json.dumps(asdict(diagnosis), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return diagnosis.text() + f" All of it: {path}"


def _order(place: Place) -> tuple[int, str]:
    return place.layer, place.part


@contextmanager
def outputs_watched(
    models: Sequence[YuanModel], topology: Topology, samples: Callable[[int | None], tuple[int, ...]]
) -> Iterator[list[Place]]:
    """Collect where outputs are not finite while the models run. `samples`: of a microbatch, counted from 1."""
    found: list[Place] = []

    def hook(layer: int, part: str) -> Callable[..., None]:
        def look(_module: nn.Module, _args: object, output: object) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            if isinstance(tensor, Tensor) and not torch.isfinite(tensor).all():
                microbatch = topology.pulse.position.microbatch
                found.append(Place(layer, part, microbatch, topology.rank, samples(microbatch)))

        return look

    with ExitStack() as hooks:
        for model in models:
            if model.is_first:
                hooks.callback(model.embedding.register_forward_hook(hook(-1, "embedding")).remove)
            for number, layer in zip(model.layer_ids, model.layers.values(), strict=True):
                for part in ("attention", "moe"):
                    module = getattr(layer, part)
                    hooks.callback(module.register_forward_hook(hook(number, part)).remove)
            if model.is_last:
                past = model.config.num_layers
                hooks.callback(model.final_norm.register_forward_hook(hook(past, "final norm")).remove)
        yield found


def not_finite(gradients: dict[str, Tensor]) -> list[str]:
    """Names of the gradients that are not finite, in their order."""
    return [name for name, gradient in gradients.items() if not torch.isfinite(gradient).all()]


def spans_of(numbers: Sequence[int]) -> str:
    """7, 100-120, ... : as --skip-samples takes them."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    words = [f"{first}" if first == last else f"{first}-{last}" for first, last in spans[:_SHOWN]]
    return " ".join(words) + (f" and {len(spans) - _SHOWN} more" if len(spans) > _SHOWN else "")

"""When memory runs out: what this process holds, and the two cheapest changes by which it would fit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from megatron_yuan.config.fields import with_values
from megatron_yuan.config.schema import Config
from megatron_yuan.errors import YuanError
from megatron_yuan.parallel.topology import Topology
from megatron_yuan.planning.memory import StageMemory, plan_memory
from megatron_yuan.planning.remedies import remedies
from megatron_yuan.training.memory import held_bytes
from megatron_yuan.training.setup import TrainingModel

GB = 1e9
SHOWN = 2
CPU_SPREAD = 2.5
"""What a CPU's allocator takes over that of the tensors that live, at the worst seen: freed pieces fit badly."""
CPU_WORDS = "DefaultCPUAllocator: can't allocate memory"


class OutOfMemory(YuanError):
    """The device or the machine has no more memory for this process."""

    found_by_all = False


@contextmanager
def explaining_memory(config: Config, topology: Topology, model: TrainingModel | None = None) -> Iterator[None]:
    """Around what allocates: where memory runs out, OutOfMemory with what `model` holds and what would fit.

    On a CPU this needs a limit on the process or on overcommitment; otherwise Linux ends a process without a word.
    """
    before = held_bytes(topology.device)[0] if model is None else model.held_before
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        asked = _asked_bytes(error)
        if asked is None:
            raise
        raise OutOfMemory(_explained(config, topology, model, asked, before)) from None


def _asked_bytes(error: Exception) -> float | None:
    """How much was asked for, 0 where `error` does not say; None where it is not about memory."""
    if isinstance(error, MemoryError):
        return 0.0
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError):
        found = re.search(r"Tried to allocate ([\d.]+) ([KMG])iB", text)
        return float(found[1]) * 2 ** {"K": 10, "M": 20, "G": 30}[found[2]] if found else 0.0
    if CPU_WORDS not in text:
        return None
    found = re.search(r"allocate (\d+) bytes", text)
    return float(found[1]) if found else 0.0


def _explained(config: Config, topology: Topology, model: TrainingModel | None, asked: float, before: float) -> str:
    """`before`: bytes that were held before the model was built."""
    replicas, device = topology.dp_size, topology.device
    config = with_values(config, {"device": device.type})  # "auto" would be planned for a GPU
    held, limit = held_bytes(device)
    plan = plan_memory(config, replicas)[topology.pp_rank]
    more = f"{asked / GB:.3g} GB more were asked for, " if asked else ""
    where = f"rank {topology.rank} (stage {topology.pp_rank} of {topology.pp_size}, {device})"
    head = (
        f"{where} is out of memory at {topology.pulse.position}: {more}{held / GB:.2f} of {limit / GB:.2f} GB are held"
        f"{_breakdown(model, held, before)}; the plan for this stage: {_planned(plan)}."
    )
    # What the plan does not count (libraries, contexts, fragments) counts for every other layout too.
    spread = CPU_SPREAD if device.type == "cpu" else 1.0
    budget = min((limit - before) / spread, limit - (held + asked - plan.total))
    found = remedies(config, replicas, budget)[:SHOWN]
    if found:
        return f"{head}\nWhat would fit on these processes, the cheapest first: {'; '.join(map(str, found))}."
    wider = remedies(config, replicas, budget, more_gpus=True)[:1]
    if wider:
        return f"{head}\nOn these processes nothing would fit; on {wider[0].gpus} it would: {wider[0]}."
    return (
        f"{head}\nNot even a stage a layer with every layer recomputed would fit: take a smaller model, a smaller "
        "--seq-length, or more memory."
    )


def _breakdown(model: TrainingModel | None, held: float, before: float) -> str:
    if model is None:
        return f" ({before / GB:.2f} before the model), while the model was being built"
    weights = sum(p.nbytes for p in model.parameters.values())
    gradients = 4 * sum(p.numel() for p in model.optimizer.parameters.values())  # DDP's float32 sums
    optimizer = model.optimizer.held_bytes
    rest = max(0.0, held - before - weights - gradients - optimizer)
    parts = {
        "before the model": before,  # the process itself and its libraries, on a CPU
        "weights": weights,
        "gradients": gradients,
        "masters and moments": optimizer,
        "all else": rest,
    }
    return " (" + ", ".join(f"{name} {size / GB:.2f}" for name, size in parts.items()) + ")"


def _planned(plan: StageMemory) -> str:
    passing = plan.buffers + plan.working
    return (
        f"{plan.total / GB:.2f} GB (weights {plan.weights / GB:.2f}, gradients {plan.gradients / GB:.2f}, masters and "
        f"moments {plan.optimizer / GB:.2f}, activations {plan.activations / GB:.2f}, in passing {passing / GB:.2f})"
    )

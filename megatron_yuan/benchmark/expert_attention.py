"""The attention router's arithmetic: as it is computed here, and as the formula says; time and what backward keeps.

Shapes: T tokens, E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_yuan.benchmark.training import timed_in_turn
from megatron_yuan.model.moe.routers.attention import expert_attention


@dataclass(frozen=True)
class Cost:
    """Of one form at one number of tokens."""

    milliseconds: float
    saved_bytes: int
    """What forward keeps for backward, every storage once."""
    peak_bytes: int | None
    """Most memory at once above the inputs', on a GPU; None on a CPU, where torch does not count."""


def naive(q_TE: Tensor, k_TE: Tensor, v_TE: Tensor) -> Tensor:
    """P_i = sum_j softmax_j(q_i k_j) v_j, with the [T, E, E] matrix written out."""
    return torch.softmax(q_TE.unsqueeze(2) * k_TE.unsqueeze(1), dim=2).matmul(v_TE.unsqueeze(2)).squeeze(2)


def measure(tokens: int, experts: int, device: torch.device, rounds: int) -> dict[str, Cost]:
    """Forward and backward of both, in turn."""
    random = torch.Generator().manual_seed(1)
    inputs = [torch.randn(tokens, experts, generator=random).to(device) for _ in range(4)]
    forms = {"fused": expert_attention, "naive": naive}
    actions = {name: _action(form, inputs) for name, form in forms.items()}
    seconds = timed_in_turn(actions, rounds, device)
    return {
        name: Cost(1000 * seconds[name], _saved_bytes(form, inputs), _peak_bytes(actions[name], device))
        for name, form in forms.items()
    }


def _action(form: Callable[..., Tensor], inputs: list[Tensor]) -> Callable[[], None]:
    def action() -> None:
        leaves = [each.detach().requires_grad_() for each in inputs[:3]]
        form(*leaves).backward(inputs[3])

    return action


def _saved_bytes(form: Callable[..., Tensor], inputs: list[Tensor]) -> int:
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kept = form(*(each.detach().requires_grad_() for each in inputs[:3]))
    del kept
    return sum(storages.values())


def _peak_bytes(action: Callable[[], None], device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    action()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before

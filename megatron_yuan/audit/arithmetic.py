"""How a model computes while it is audited: its routed experts the fast way or to the bit, dropout on or off.

Shapes: R rows, H hidden.

"To the bit" needs care. A matrix product may round a row otherwise when it stands among more rows or fewer (on a CPU
products of 1 to 3 rows do), and how many rows an expert has depends on where later tokens went. Nothing has leaked
then, yet bits differ. So for the comparison to the bit the looped experts run under `RowByRow`: the model's own code,
each row of each of its products computed alone. Everything else keeps its shape when a token changes, and needs none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from megatron_yuan.model.moe.experts import Experts, SharedExperts

ExpertsKind = Literal["looped", "grouped"]
AUDIT_DROPOUT = 0.1  # where the model has none of its own: its code is to be seen at work


class RowByRow(TorchFunctionMode):
    """Compute F.linear of R rows as R products of one."""

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        """Take linear apart, let the rest through. Rows are copied: where one lies in memory changes its last bits."""
        if func is F.linear and args[0].dim() == 2 and args[0].shape[0] > 0:
            x_RH, *rest = args
            return torch.cat([F.linear(row_1H.clone(), *rest, **(kwargs or {})) for row_1H in x_RH.split(1)])
        return func(*args, **(kwargs or {}))


@contextmanager
def experts_as(model: nn.Module, kind: ExpertsKind) -> Iterator[None]:
    """All experts of `model` computed so; the looped ones row by row."""
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, Experts):
                stack.enter_context(replaced(module, "looped", kind == "looped"))
                if kind == "looped" and not isinstance(module, SharedExperts):
                    stack.enter_context(replaced(module, "forward", _row_by_row(module.forward)))
        yield


@contextmanager
def as_in_training(model: nn.Module) -> Iterator[None]:
    """Training mode, and every dropout of `model` at work: with its own probability, or a small one where that is 0."""
    with ExitStack() as stack:
        for module in model.modules():
            stack.enter_context(replaced(module, "training", True))
            if getattr(module, "dropout", None) == 0.0:
                stack.enter_context(replaced(module, "dropout", AUDIT_DROPOUT))
        yield


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """`owner.name` is `value` for a while."""
    had, before = name in vars(owner), vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if had:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


def _row_by_row(forward: Any) -> Any:
    def in_mode(*args: Any, **kwargs: Any) -> Tensor:
        with RowByRow():
            return forward(*args, **kwargs)

    return in_mode

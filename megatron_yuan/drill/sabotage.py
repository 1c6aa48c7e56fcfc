"""Faults of arithmetic, planted into a training process from outside of the program: one number, on one rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def before_gradient_norm(step: int, act: Callable[[Any], None]) -> None:
    """Call `act(optimizer)` in training step number `step`, when its gradients are summed and not yet looked at."""
    from megatron_yuan.training.optimizer import MixedPrecisionAdamW
    from megatron_yuan.training.run import Run

    train, norm, now = Run.train_step, MixedPrecisionAdamW.gradient_norm, [0]

    def train_step(self: Run, step: int) -> Any:
        now[0] = step
        return train(self, step)

    def gradient_norm(self: MixedPrecisionAdamW, *args: Any, **kwargs: Any) -> Any:
        if now[0] == step:
            act(self)
        return norm(self, *args, **kwargs)

    Run.train_step, MixedPrecisionAdamW.gradient_norm = train_step, gradient_norm


def spoil_backward(step: int) -> None:
    """Let backward of training step `step` make a gradient that is not a number, before any sum over replicas."""
    from megatron_yuan.training.run import Run

    train = Run.train_step

    def train_step(self: Run, number: int) -> Any:
        if number != step:
            return train(self, number)
        parameters = self.model.parameters
        name = next(name for name in sorted(parameters) if "norm" in name)
        hook = parameters[name].register_hook(lambda gradient: gradient * float("nan"))
        try:
            return train(self, number)
        finally:
            hook.remove()

    Run.train_step = train_step  # pyright: ignore[reportAttributeAccessIssue]


def plant_nan(optimizer: Any) -> None:
    """Make one element of one gradient not a number."""
    name = sorted(optimizer.parameters)[-1]
    optimizer.parameters[name].main_grad.view(-1)[0] = float("nan")


def flip_weight(optimizer: Any) -> str:
    """Turn one bit of one weight, where it is kept in full, so that it stays turned; returns the name."""
    import torch

    name = sorted(optimizer.masters)[0]
    bits = optimizer.masters[name].data.view(-1).view(torch.int32)
    bits[0] ^= 1 << 20
    return name

"""AdamW over fp32 master weights, one code path for CPU and GPU; nothing is sharded.

- With bf16 weights each parameter has a float32 master; gradients are float32 sums (megatron's `main_grad`). With
  float32 weights the masters are the parameters themselves.
- The global norm counts every weight of the model once: the last stage's copy of a tied embedding is left out.
- What arrives is a sum over all tokens. Dividing it by their number, and clipping, ride inside the fused step as its
  gradient scale, so neither costs a pass over memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from megatron_yuan.config.schema import OptimizerConfig
from megatron_yuan.errors import ConfigError
from megatron_yuan.parallel.topology import Topology


class MixedPrecisionAdamW:
    """Owns the masters and moments of this stage's parameters, by global name."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], copies: Iterable[str], config: OptimizerConfig) -> None:
        """`copies` names parameters whose original is on another stage: stepped alike, but not counted in the norm."""
        self.parameters, self.copies, self.config = dict(parameters), frozenset(copies), config
        self.masters = {name: _master(parameter) for name, parameter in self.parameters.items()}
        decayed = [m for m in self.masters.values() if m.ndim > 1]
        plain = [m for m in self.masters.values() if m.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.inner = _adam([group for group in groups if group["params"]], config)

    def step(self, lr: float, gradient_norm: float, tokens: int) -> None:
        """Clip the mean over `tokens` by its global norm, step at rate `lr`, and refresh the weights."""
        for name, parameter in self.parameters.items():
            self.masters[name].grad = _gradient(parameter)
        clip = self.config.clip_grad
        excess = max(1.0, gradient_norm / clip) if clip > 0 else 1.0
        _divide_gradients(self.inner, excess * max(1, tokens))
        for group in self.inner.param_groups:
            group["lr"] = lr
        self.inner.step()
        for master in self.masters.values():
            master.grad = (
                None  # a float32 master is the weight itself: backward would add into the sum that this aliases
            )
        self.refresh_weights()

    @torch.no_grad()
    def gradient_norm(self, topology: Topology, tokens: int) -> float:
        """Euclidean norm of the model's gradient, a mean over `tokens`; in float64, lest it depend on the layout."""
        counted = [_gradient(p) for name, p in self.parameters.items() if name not in self.copies]
        norms = torch._foreach_norm(counted)  # pyright: ignore[reportPrivateImportUsage]
        square = torch.stack(norms).double().square().sum()
        return topology.sum_over_stages(square).sqrt().item() / max(1, tokens)

    @torch.no_grad()
    def refresh_weights(self) -> None:
        """Round the masters into the weights."""
        pairs = [(p, self.masters[n]) for n, p in self.parameters.items() if self.masters[n] is not p]
        for parameter, master in pairs:
            parameter.copy_(master)

    @torch.no_grad()
    def take_weights(self) -> None:
        """Make the masters anew from weights that were put in place from outside."""
        for name, parameter in self.parameters.items():
            if self.masters[name] is not parameter:
                self.masters[name].copy_(parameter)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """By parameter name: exp_avg, exp_avg_sq, and the master where it is not the weight itself. Live tensors."""
        return {name: self._state_of(name) for name in self.parameters}

    def _state_of(self, name: str) -> dict[str, Tensor]:
        master = self.masters[name]
        moments = self.inner.state[master]
        if "exp_avg" not in moments:  # not stepped yet
            moments["step"] = torch.zeros((), dtype=torch.float32, device=master.device)
            moments["exp_avg"], moments["exp_avg_sq"] = torch.zeros_like(master), torch.zeros_like(master)
        state = {"exp_avg": moments["exp_avg"], "exp_avg_sq": moments["exp_avg_sq"]}
        return state if master is self.parameters[name] else {"master": master.data, **state}

    @property
    def held_bytes(self) -> int:
        """Of masters and moments, as far as there are any yet."""
        own = [master for name, master in self.masters.items() if master is not self.parameters[name]]
        moments = [t for slots in self.inner.state.values() for t in slots.values() if isinstance(t, Tensor)]
        return sum(tensor.nbytes for tensor in (*own, *moments))

    @property
    def steps(self) -> int:
        """Steps taken, on which Adam's bias correction depends."""
        for group in self.inner.param_groups:
            for master in group["params"]:
                taken = self.inner.state[master].get("step", group.get("step", 0))
                return int(taken)
        return 0

    @steps.setter
    def steps(self, value: int) -> None:
        self.state()
        for group in self.inner.param_groups:
            group["step"] = value  # where apex keeps it
            for master in group["params"]:
                self.inner.state[master]["step"] = torch.tensor(float(value), device=master.device)


def _master(parameter: nn.Parameter) -> nn.Parameter:
    if parameter.dtype == torch.float32:
        return parameter
    return nn.Parameter(parameter.detach().float())


def _gradient(parameter: nn.Parameter) -> Tensor:
    return parameter.main_grad  # type: ignore[attr-defined]  # megatron's DDP keeps the float32 sum here


def _divide_gradients(optimizer: torch.optim.Optimizer, divisor: float) -> None:
    if isinstance(optimizer, torch.optim.AdamW):
        device = optimizer.param_groups[0]["params"][0].device
        scale = torch.tensor(divisor, device=device) if divisor != 1.0 else None
        # The attribute through which torch's own GradScaler hands a fused optimizer its scale.
        optimizer.grad_scale = scale  # pyright: ignore[reportAttributeAccessIssue]
        return
    if divisor != 1.0:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad.div_(divisor)


def _adam(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    settings = {"lr": config.lr, "betas": (config.adam_beta1, config.adam_beta2), "eps": config.adam_eps}
    if not config.use_apex_adam:
        return torch.optim.AdamW(groups, fused=True, **settings)
    try:
        from apex.optimizers import FusedAdam  # type: ignore[import-not-found]
    except ImportError:
        raise ConfigError(
            "use_apex_adam is set, but NVIDIA apex is not installed (never 'pip install apex', another package). "
            "Fix: drop --use-apex-adam, or use the Dockerfile's image."
        ) from None
    return FusedAdam(groups, adam_w_mode=True, **settings)

"""Yuan 2.0-M32 as slowly and plainly as it can be written: the oracle of the fast model.

Written from the published description alone (paper, shapes and formulas); shares no code with the package but the names
of the parameters. Loops over heads, tokens and experts; a whole S x S score matrix; Conv2d as published. Everything
is differentiable and in the dtype of the weights (use float64 or float32).

Shapes: B batch, S sequence, H hidden, N heads, D head width, E experts, F ffn, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """All that the formulas need to know."""

    layers: int
    hidden: int
    heads: int
    head_dim: int
    ffn: int
    experts: int
    chosen: int
    vocab: int
    rotary_dim: int
    tied: bool = True
    router: str = "attention"
    rotary_base: float = 10_000.0
    ntk_factor: float = 1.0
    rounding: str = "none"
    eps: float = 1e-6


Weights = Mapping[str, Tensor]


def random_weights(shape: Shape, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Leaves of moderate size, such that no nonlinearity is idle and every gradient is worth comparing."""
    random = torch.Generator().manual_seed(seed)

    def leaf(*size: int, scale: float | None = None) -> Tensor:
        scale = 1 / math.sqrt(size[-1]) if scale is None else scale
        return (torch.randn(*size, generator=random, dtype=torch.float64) * scale).to(dtype).requires_grad_()

    def gain(size: int) -> Tensor:
        return (1 + 0.2 * torch.randn(size, generator=random, dtype=torch.float64)).to(dtype).requires_grad_()

    H, A = shape.hidden, shape.heads * shape.head_dim
    weights = {"embedding.weight": leaf(shape.vocab, H, scale=1.0), "final_norm.weight": gain(H)}
    if not shape.tied:
        weights["head.weight"] = leaf(shape.vocab, H)
    for i in range(shape.layers):
        of_layer = {
            "input_norm.weight": gain(H),
            "attention.filter.conv1.weight": leaf(2, H // 2, H),
            "attention.filter.conv1.bias": leaf(H // 2, scale=0.3),
            "attention.filter.conv2.weight": leaf(2, H, H // 2),
            "attention.filter.conv2.bias": leaf(H, scale=0.3),
            "attention.filter.norm.weight": gain(H),
            "attention.query_key.weight": leaf(2 * A, H),
            "attention.value.weight": leaf(A, H),
            "attention.output.weight": leaf(H, A),
            "moe_norm.weight": gain(H),
            "moe.router.weight": leaf((3 if shape.router == "attention" else 1) * shape.experts, H),
            "moe.experts.gate_up": leaf(shape.experts, 2 * shape.ffn, H),
            "moe.experts.down": leaf(shape.experts, H, shape.ffn),
        }
        weights.update({f"layers.{i}.{name}": tensor for name, tensor in of_layer.items()})
    return weights


def logits(weights: Weights, shape: Shape, ids_BS: Tensor, position_ids_BS: Tensor | None = None) -> Tensor:
    """Scores of the next token [B, S, V]. Rows do not see each other; positions count from 0 unless given."""
    rows = []
    for b, ids_S in enumerate(ids_BS):
        positions = torch.arange(len(ids_S)) if position_ids_BS is None else position_ids_BS[b]
        rows.append(_row_logits(weights, shape, ids_S, positions))
    return torch.stack(rows)


def next_token_loss(logits_BSV: Tensor, ids_BS: Tensor) -> Tensor:
    """Mean cross entropy of each token but the first of a row."""
    return F.cross_entropy(logits_BSV[:, :-1].reshape(-1, logits_BSV.shape[-1]), ids_BS[:, 1:].reshape(-1))


def _row_logits(weights: Weights, shape: Shape, ids_S: Tensor, positions_S: Tensor) -> Tensor:
    x_SH = torch.stack([weights["embedding.weight"][i] for i in ids_S.tolist()])
    for layer in range(shape.layers):
        prefix = f"layers.{layer}."
        own = {name.removeprefix(prefix): each for name, each in weights.items() if name.startswith(prefix)}
        x_SH = x_SH + attention(own, shape, rms_norm(x_SH, own["input_norm.weight"], shape.eps), positions_S)
        x_SH = x_SH + experts(own, shape, rms_norm(x_SH, own["moe_norm.weight"], shape.eps))
    x_SH = rms_norm(x_SH, weights["final_norm.weight"], shape.eps)
    return x_SH @ weights["embedding.weight" if shape.tied else "head.weight"].T


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * gain."""
    return x / torch.sqrt((x**2).mean(dim=-1, keepdim=True) + eps) * gain


def localized_filter(own: Weights, shape: Shape, u_SH: Tensor) -> Tensor:
    """RMSNorm(conv2(conv1(u)) + u), the convolutions Conv2d of kernel (2, 1) over [1, C, S, 1].

    Padding of 1 on both sides, cut back to S, makes them causal; between them the padding is zero, not the bias.
    """
    S = u_SH.shape[0]
    image = u_SH.T[None, :, :, None]
    for name in ("conv1", "conv2"):
        kernel = own[f"attention.filter.{name}.weight"].permute(1, 2, 0).unsqueeze(-1)  # [out, in, 2, 1]
        image = F.conv2d(image, kernel, own[f"attention.filter.{name}.bias"], padding=(1, 0))[:, :, :S]
    return rms_norm(image[0, :, :, 0].T + u_SH, own["attention.filter.norm.weight"], shape.eps)


def rotary_angle(shape: Shape, position: int, pair: int) -> tuple[float, float]:
    """Cos and sin of position x base^(-2 pair / R), with the published code's bfloat16 rounding where asked for."""
    R = shape.rotary_dim
    base = shape.rotary_base
    if shape.ntk_factor != 1.0:
        base *= shape.ntk_factor ** (R / (R - 2))
    frequency = torch.tensor(1.0) / torch.tensor(base) ** (torch.tensor(2.0 * pair) / R)
    if shape.rounding == "none":
        angle = position * frequency
    elif shape.rounding == "frequencies":
        angle = position * frequency.bfloat16().float()
    else:
        angle = torch.tensor(position).bfloat16() * frequency.bfloat16()
    return float(torch.cos(angle)), float(torch.sin(angle))


def rotated(x_D: Tensor, shape: Shape, position: int) -> Tensor:
    """One head of one token: channel i < R/2 turns with channel i + R/2, those from R on stay."""
    half = shape.rotary_dim // 2
    parts = list(x_D.unbind())
    for i in range(half):
        cos, sin = rotary_angle(shape, position, i)
        a, b = x_D[i], x_D[i + half]
        parts[i], parts[i + half] = a * cos - b * sin, b * cos + a * sin
    return torch.stack(parts)


def attention(own: Weights, shape: Shape, u_SH: Tensor, positions_S: Tensor) -> Tensor:
    """Queries and keys from the filtered state, values from the unfiltered; softmax(q k / sqrt(D)) over the past."""
    S, D = u_SH.shape[0], shape.head_dim
    f_SH = localized_filter(own, shape, u_SH)
    query_key = f_SH @ own["attention.query_key.weight"].T
    values = u_SH @ own["attention.value.weight"].T
    future = torch.triu(torch.ones(S, S, dtype=torch.bool), diagonal=1)
    heads = []
    for n in range(shape.heads):
        both = query_key[:, 2 * n * D : 2 * (n + 1) * D]
        q_SD = torch.stack([rotated(x, shape, int(p)) for x, p in zip(both[:, :D], positions_S, strict=True)])
        k_SD = torch.stack([rotated(x, shape, int(p)) for x, p in zip(both[:, D:], positions_S, strict=True)])
        scores_SS = (q_SD @ k_SD.T / math.sqrt(D)).masked_fill(future, -math.inf)
        heads.append(scores_SS.softmax(dim=-1) @ values[:, n * D : (n + 1) * D])
    return torch.cat(heads, dim=-1) @ own["attention.output.weight"].T


def expert_scores(own: Weights, shape: Shape, x_H: Tensor) -> Tensor:
    """Scores of the experts for one token, [E]."""
    projected = own["moe.router.weight"] @ x_H
    if shape.router == "softmax":
        return projected
    q, k, v = projected.split(shape.experts)
    scores = []
    for i in range(shape.experts):
        attended = torch.stack([q[i] * k[j] for j in range(shape.experts)]).softmax(dim=0)
        scores.append((attended * v).sum())
    return torch.stack(scores)


def experts(own: Weights, shape: Shape, x_SH: Tensor) -> Tensor:
    """For each token the experts best in the softmax over all, their shares scaled up to 1, as the published code does.

    In exact arithmetic: the best scores, and the softmax over those alone.
    """
    outputs = []
    for x_H in x_SH:
        best = expert_scores(own, shape, x_H).softmax(dim=0).topk(shape.chosen)
        y_H = torch.zeros_like(x_H)
        for weight, e in zip(best.values / best.values.sum(), best.indices.tolist(), strict=True):
            gate, up = (own["moe.experts.gate_up"][e] @ x_H).split(shape.ffn)
            y_H = y_H + weight * (own["moe.experts.down"][e] @ (F.silu(gate) * up))
        outputs.append(y_H)
    return torch.stack(outputs)

"""What is done at the taps: remember a clean pass, hold another against it, or watch gradients.

Shapes: B batch, S sequence; `kept` [B, S] marks the tokens that must not feel the change.

Comparing and watching mend what they find: on goes the clean value, or no gradient. So every part is judged on clean
inputs, one fault does not hide behind another, and rounding does not grow from layer to layer.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from megatron_yuan.audit.parts import EMBEDDING, LOSS, Place
from megatron_yuan.model.randomness import generator


class Difference(NamedTuple):
    """The largest difference at a place where there must be none."""

    place: Place
    relative: float
    """Of values: as a share of the largest there. Of gradients: its size."""
    row: int
    position: int


class Recorder:
    """Remembers a clean pass."""

    def __init__(self) -> None:
        self.seen: dict[Place, Tensor] = {}

    def visit(self, place: Place, tokens: Tensor) -> None:
        """Keep `tokens`."""
        self.seen[place] = tokens.detach()


class Comparer:
    """Holds a pass against a clean one of the same rows, or of `rows` of it, at the tokens that must be the same."""

    def __init__(
        self, clean: Recorder, kept_BS: Tensor, kept_losses_BS: Tensor | None = None, rows: list[int] | None = None
    ) -> None:
        self._clean, self._rows = clean.seen, rows
        self._kept_BS, self._kept_losses_BS = kept_BS, kept_BS if kept_losses_BS is None else kept_losses_BS
        self.differences: list[Difference] = []
        self.compared: list[Place] = []

    def visit(self, place: Place, tokens: Tensor) -> Tensor | None:
        """Compare, and go on with the clean values."""
        clean = self._clean.get(place)
        if clean is None:
            return None
        clean = clean if self._rows is None else clean[self._rows]
        if clean.shape != tokens.shape:
            return None
        self.compared.append(place)
        kept_BS = self._kept_losses_BS if place.path == LOSS and place.side == "out" else self._kept_BS
        kept = kept_BS.to(tokens.device).reshape(kept_BS.shape + (1,) * (tokens.dim() - 2))
        unlike = (tokens != clean) & kept
        if not unlike.any():
            return None
        gap = torch.where(unlike, (tokens.double() - clean.double()).abs().nan_to_num(nan=torch.inf), 0)
        largest = torch.where(kept, clean.double().abs(), 0).nan_to_num(posinf=0).max()
        self.differences.append(_largest(place, gap / torch.where(largest > 0, largest, 1)))
        return torch.where(kept, clean, tokens)


class Decisions:
    """Remembers which experts were chosen."""

    def __init__(self) -> None:
        self._chosen: list[Tensor] = []

    def visit(self, place: Place, tokens: Tensor) -> None:
        """Keep choices."""
        if place.leaf == "experts_TK":
            self._chosen.append(tokens)

    def same_as(self, other: Decisions, kept_BS: Tensor) -> bool:
        """Whether another pass chose alike for the tokens that must not feel the change."""
        return all(torch.equal(a[kept_BS], b[kept_BS]) for a, b in zip(self._chosen, other._chosen, strict=True))


class Embeddings:
    """Makes the embeddings what gradients are taken by."""

    embeddings_BSH: Tensor

    def visit(self, place: Place, tokens: Tensor) -> Tensor | None:
        """Cut what is before them."""
        if not (place.path == EMBEDDING and place.side == "out"):
            return None
        self.embeddings_BSH = tokens.detach().requires_grad_()
        return self.embeddings_BSH


class Gradients:
    """Watches the gradient of outputs at the tokens that must not feel the others, by everything at those others.

    Outputs are what leaves each module, weighted at random, so that no part is masked by a zero behind it.
    """

    def __init__(self, kept_BS: Tensor) -> None:
        self._kept_BS = kept_BS
        self._random = generator(kept_BS.device, "cotangents")
        self.differences: list[Difference] = []
        self.compared: list[Place] = []
        self.outputs: list[Tensor] = []
        self.root: Tensor | None = None
        """The embeddings, by which gradients are taken."""

    def visit(self, place: Place, tokens: Tensor) -> Tensor | None:
        """Go on with the same under another name, whose gradient is this place's alone."""
        if place.path == EMBEDDING and place.side == "out":
            tokens = self.root = tokens.detach().requires_grad_()
        if not tokens.requires_grad:
            return None
        alias = tokens.view_as(tokens)
        alias.register_hook(lambda grad: self._check(place, grad))
        if place.side == "out":
            weight = torch.empty(alias.shape, device=alias.device).normal_(generator=self._random)
            self.outputs.append((alias * self._only(weight.to(alias.dtype), self._kept_BS)).sum())
        return alias

    def take(self) -> None:
        """Run backward."""
        assert self.root is not None, "the model's embedding was not seen"
        torch.autograd.grad(torch.stack([each.float() for each in self.outputs]).sum(), self.root, allow_unused=True)

    def _check(self, place: Place, grad: Tensor) -> Tensor:
        self.compared.append(place)
        stray = self._only(grad, ~self._kept_BS)
        if (stray != 0).any():
            self.differences.append(_largest(place, stray.double().abs().nan_to_num(nan=torch.inf)))
        return self._only(grad, self._kept_BS)

    @staticmethod
    def _only(x: Tensor, where_BS: Tensor) -> Tensor:
        return torch.where(where_BS.reshape(where_BS.shape + (1,) * (x.dim() - 2)), x, 0)


def _largest(place: Place, gap: Tensor) -> Difference:
    flat_BS = gap.flatten(2).amax(dim=2) if gap.dim() > 2 else gap
    row, position = divmod(int(flat_BS.argmax()), flat_BS.shape[1])
    return Difference(place, float(flat_BS[row, position]), row, position)

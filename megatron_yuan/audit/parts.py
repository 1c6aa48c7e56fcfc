"""Where in a model something is seen, and what people call the part to which that points.

What enters or leaves a module is seen at a `Place`. A place where values differ points backwards, to the code that made
them: a module's output to the module, its input to its parent, up to the call. A place where a gradient differs points
forwards, to the code that used the tensor: a module's input to the module, its output to its parent, from there on.
Children are seen, and their faults mended, on their own; so what is left to a module is what it does itself.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Aspect = Literal["values", "gradient"]

POSITIONS, EMBEDDING, LAYER_INPUT = "positions and documents", "embedding", "residual stream between layers"
NORM_1, FILTER, ROTARY, ATTENTION = "norm before attention", "localized filter", "rotary positions", "attention"
RESIDUAL_1, NORM_2 = "residual after attention", "norm before experts"
SCORES, DECISIONS, DISPATCH = "router scores", "router decisions", "dispatch"
EXPERTS, SHARED, COMBINE = "experts", "shared experts", "combine"
RESIDUAL_2, FINAL_NORM, HEAD, LOSS = "residual after experts", "final norm", "head", "loss"
WHOLE_MODEL = "whole model"

PARTS = (
    *(POSITIONS, EMBEDDING, LAYER_INPUT, NORM_1, FILTER, ROTARY, ATTENTION, RESIDUAL_1, NORM_2, SCORES, DECISIONS),
    *(DISPATCH, EXPERTS, SHARED, COMBINE, RESIDUAL_2, FINAL_NORM, HEAD, LOSS, WHOLE_MODEL),
)
"""In the order in which they compute."""


class Place(NamedTuple):
    """A tensor that enters or leaves a module."""

    path: str
    """The module's dotted name, or that of a function called in it."""
    side: Literal["in", "out"]
    leaf: str
    """Which of its tensors."""
    call: int
    """Which of its calls in this forward pass."""

    @property
    def layer(self) -> int | None:
        """The layer's number; None outside of layers."""
        names = self.path.split(".")
        return int(names[1]) if names[0] == "layers" and len(names) > 1 and names[1].isdigit() else None

    @property
    def home(self) -> str:
        """The module around."""
        return self.path.rpartition(".")[0]

    def part(self, aspect: Aspect) -> str:
        """The part that is at fault when something is wrong here."""
        if self.layer is None:
            top = self.path.split(".")[0]
            return {"embedding": EMBEDDING, "final_norm": FINAL_NORM}.get(top, top)
        inside = ".".join(self.path.split(".")[2:])
        table = VALUES if aspect == "values" else GRADIENTS
        for name, (entering, leaving) in table.items():  # the more particular first
            if inside == name or (name.endswith("*") and inside.startswith(name[:-1])):
                part = entering if self.side == "in" else leaving
                return SCORES if inside == "moe.router" and self.leaf == "logits_TE" else part
        return inside

    def __str__(self) -> str:
        which = "what enters" if self.side == "in" else "what leaves"
        return f"{which} {self.path}" + (f" ({self.leaf})" if self.leaf else "")


# Module within a layer -> the part that is at fault when what enters it, or what leaves it, is wrong.
VALUES = {
    "": (LAYER_INPUT, RESIDUAL_2),
    "input_norm": (LAYER_INPUT, NORM_1),
    "input_norm*": (NORM_1, NORM_1),
    "attention": (NORM_1, ATTENTION),
    "attention.filter*": (FILTER, FILTER),
    "attention.rotate": (ATTENTION, ROTARY),
    "attention*": (ATTENTION, ATTENTION),
    "moe_norm": (RESIDUAL_1, NORM_2),
    "moe_norm*": (NORM_2, NORM_2),
    "moe": (NORM_2, COMBINE),
    "moe.router.choose": (SCORES, DECISIONS),
    "moe.router": (SCORES, DECISIONS),
    "moe.router*": (SCORES, SCORES),
    "moe.experts": (DISPATCH, EXPERTS),
    "moe.experts*": (EXPERTS, EXPERTS),
    "moe.shared_experts*": (SHARED, SHARED),
    "moe*": (COMBINE, COMBINE),
}
GRADIENTS = {
    "": (RESIDUAL_1, LAYER_INPUT),
    "input_norm": (NORM_1, NORM_1),
    "input_norm*": (NORM_1, NORM_1),
    "attention": (ATTENTION, RESIDUAL_1),
    "attention.filter": (FILTER, ATTENTION),
    "attention.filter*": (FILTER, FILTER),
    "attention.rotate": (ROTARY, ATTENTION),
    "attention*": (ATTENTION, ATTENTION),
    "moe_norm": (NORM_2, NORM_2),
    "moe_norm*": (NORM_2, NORM_2),
    "moe": (DISPATCH, RESIDUAL_2),
    "moe.router.choose": (DECISIONS, DECISIONS),
    "moe.router": (SCORES, DISPATCH),
    "moe.router*": (SCORES, SCORES),
    "moe.experts": (EXPERTS, COMBINE),
    "moe.experts*": (EXPERTS, EXPERTS),
    "moe.shared_experts": (SHARED, COMBINE),
    "moe.shared_experts*": (SHARED, SHARED),
    "moe*": (COMBINE, COMBINE),
}

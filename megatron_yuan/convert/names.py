"""THE table between our tensors and the published Hugging Face layout's: names, and how one becomes the other.

Shapes: H hidden, A heads x head width, E experts, F ffn, V padded vocabulary.

Every one of our tensors is one or more of theirs laid end to end (only a convolution's two taps have to be taken apart
first), so both directions move bytes and change none: a round trip is identical to the bit, and neither needs more
memory than one of the published tensors.

- q_proj and k_proj are not queries and keys: they are the upper and the lower half of one matrix whose rows alternate
  between them head by head.
- Experts are stacked here and single there; w1 is gate over up, w2 is down.
- A convolution of width 2 is [tap, out, in] here and Conv2d's [out, in, 2, 1] there; tap 0 meets the previous token.
- A model with tied embeddings has `lm_head.weight` there too, a copy of the embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from megatron_yuan.config.schema import ModelConfig
from megatron_yuan.errors import CheckpointError

HEAD = "lm_head.weight"
EMBEDDING = "embedding.weight"
Shape = tuple[int, ...]


class Form(Enum):
    """How one of our tensors is made of theirs."""

    SAME = "equal"
    ROWS = "their rows, one tensor under the other"
    STACK = "theirs along a new first axis"
    TAPS = "[2, out, in] of [out, in, 2, 1]"

    def their_shape(self, ours: Shape, count: int) -> Shape:
        """Shape of each of their `count` tensors."""
        if self is Form.ROWS:
            return (ours[0] // count, *ours[1:])
        if self is Form.STACK:
            return ours[1:]
        return (ours[1], ours[2], 2, 1) if self is Form.TAPS else ours

    def join(self, theirs: Iterable[Tensor]) -> Iterator[Tensor]:
        """Pieces whose elements, laid end to end in row-major order, are ours; made as they are asked for."""
        for tensor in theirs:
            if self is Form.TAPS:
                yield from tensor.squeeze(-1).unbind(-1)
            else:
                yield tensor

    def split(self, ours: Tensor, count: int) -> list[Tensor]:
        """Theirs, as views of ours."""
        if self is Form.ROWS:
            return list(ours.chunk(count))
        if self is Form.STACK:
            return list(ours.unbind())
        return [ours.permute(1, 2, 0).unsqueeze(-1)] if self is Form.TAPS else [ours]


TABLE: tuple[tuple[str, tuple[str, ...], Form], ...] = (
    (EMBEDDING, ("model.embed_tokens.weight",), Form.SAME),
    ("final_norm.weight", ("model.norm.weight",), Form.SAME),
    ("head.weight", (HEAD,), Form.SAME),
)
"""Outside the layers: ours, theirs, form."""

LAYER_TABLE: tuple[tuple[str, tuple[str, ...], Form], ...] = (
    ("input_norm.weight", ("input_layernorm.weight",), Form.SAME),
    ("attention.filter.conv1.weight", ("self_attn.lf_gate.conv1.weight",), Form.TAPS),
    ("attention.filter.conv1.bias", ("self_attn.lf_gate.conv1.bias",), Form.SAME),
    ("attention.filter.conv2.weight", ("self_attn.lf_gate.conv2.weight",), Form.TAPS),
    ("attention.filter.conv2.bias", ("self_attn.lf_gate.conv2.bias",), Form.SAME),
    ("attention.filter.norm.weight", ("self_attn.lf_gate.output_layernorm.weight",), Form.SAME),
    ("attention.query_key.weight", ("self_attn.q_proj.weight", "self_attn.k_proj.weight"), Form.ROWS),
    ("attention.value.weight", ("self_attn.v_proj.weight",), Form.SAME),
    ("attention.output.weight", ("self_attn.o_proj.weight",), Form.SAME),
    ("moe_norm.weight", ("post_attention_layernorm.weight",), Form.SAME),
    ("moe.experts.gate_up", ("mlp.experts.{e}.w1.weight",), Form.STACK),
    ("moe.experts.down", ("mlp.experts.{e}.w2.weight",), Form.STACK),
)
"""Of layer i: behind `layers.{i}.` here, `model.layers.{i}.` there; {e} counts the experts."""

ROUTER_TABLE: dict[str, tuple[str, tuple[str, ...], Form]] = {
    "attention": (
        "moe.router.weight",
        ("mlp.gate.query.weight", "mlp.gate.key.weight", "mlp.gate.value.weight"),
        Form.ROWS,
    ),
    "softmax": ("moe.router.weight", ("mlp.gate.weight",), Form.SAME),  # never published for Yuan; named as Mixtral's
}
"""The router's row of the layer table, by kind."""


@dataclass(frozen=True)
class Match:
    """One of our tensors and those of theirs that it is made of, in order."""

    ours: str
    theirs: tuple[str, ...]
    form: Form

    def join(self, theirs: Iterable[Tensor]) -> Iterator[Tensor]:
        """Ours as pieces, from theirs in order."""
        return self.form.join(theirs)

    def split(self, ours: Tensor) -> dict[str, Tensor]:
        """Theirs by name, as views of ours."""
        return dict(zip(self.theirs, self.form.split(ours, len(self.theirs)), strict=True))

    def their_shape(self, ours: Shape) -> Shape:
        """Shape of each of theirs, from the shape of ours."""
        return self.form.their_shape(ours, len(self.theirs))


def check_publishable(config: ModelConfig) -> None:
    """CheckpointError where the published layout has no place for a tensor of the model."""
    unknown = [f"moe-router {config.moe_router}"] * (config.moe_router not in ROUTER_TABLE)
    unknown += [f"num-shared-experts {config.num_shared_experts}"] * (config.num_shared_experts > 0)
    unknown += ["moe-router-enable-expert-bias"] * config.moe_router_enable_expert_bias
    if unknown:
        raise CheckpointError(
            f"the model has {', '.join(unknown)}, for which the published Hugging Face layout has no tensors; "
            "it can be loaded and trained here, but not exported."
        )


def matches(config: ModelConfig) -> Iterator[Match]:
    """Every tensor of the model once: embedding, layers in order, final norm and untied head."""
    embedding, *rest = TABLE
    yield Match(*embedding)
    for layer in range(config.num_layers):
        yield from layer_matches(config, layer)
    for row in rest:
        if row[0] != "head.weight" or config.untie_embeddings_and_output_weights:
            yield Match(*row)


def layer_matches(config: ModelConfig, layer: int) -> Iterator[Match]:
    """Every tensor of one layer once."""
    for ours, theirs, form in (*LAYER_TABLE, ROUTER_TABLE[config.moe_router]):
        if form is Form.STACK:
            theirs = tuple(theirs[0].format(e=e) for e in range(config.num_experts))
        yield Match(f"layers.{layer}.{ours}", tuple(f"model.layers.{layer}.{name}" for name in theirs), form)


def fill(target: Tensor, pieces: Iterable[Tensor]) -> None:
    """Copy `pieces`, laid end to end, into the contiguous `target` in place, to its type and device."""
    flat, begin = target.detach().view(-1), 0
    with torch.no_grad():
        for piece in pieces:
            flat[begin : begin + piece.numel()].copy_(piece.reshape(-1))
            begin += piece.numel()
    assert begin == flat.numel(), "pieces do not fill the tensor"

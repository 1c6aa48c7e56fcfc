"""How large a model is and what a token costs, from its configuration alone: nothing is built.

Letters: L layers, H hidden, A = heads x head width, F ffn, E experts, K chosen, V padded vocabulary, S sequence.

- A multiply and an add are two FLOPs. Only matrix products count; norms, softmaxes and activations are left out.
- Parameters of the matrices a token meets, times two, are the FLOPs of a forward pass but for attention scores, which
  have no parameters: those are given apart, dense (S x S, what kernels without a mask would do and profilers count) and
  causal (the half that is needed).
- Training is three forward passes: backward is twice the forward. Recomputation is not counted: it is no useful work.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_yuan.config.schema import ModelConfig

TRAINING_PASSES = 3
"""FLOPs of forward and backward over those of forward."""


@dataclass(frozen=True)
class LayerParameters:
    """Parameters of one layer, by part."""

    attention: int
    """Query and key 2AH, value AH, output AH."""
    filter: int
    """Two convolutions of width 2, H -> H/2 -> H: 2 x 2 x H x H/2 weights, H/2 + H biases, H of the norm."""
    norms: int
    """Two RMSNorms: 2H."""
    router: int
    """3EH (attention router), 2EH (noisy top-k) or EH. An expert bias, which is not trained, is not counted."""
    expert: int
    """One expert: 3HF."""
    num_experts: int
    experts_per_token: float
    """K chosen, on average where experts choose."""
    shared: int = 0
    """All shared experts: 3HF each."""

    @property
    def total(self) -> int:
        """All, with every expert."""
        return self.attention + self.filter + self.norms + self.router + self.shared + self.expert * self.num_experts

    @property
    def active(self) -> int:
        """What one token meets: the chosen experts alone."""
        chosen = round(self.expert * self.experts_per_token)
        return self.attention + self.filter + self.norms + self.router + self.shared + chosen


@dataclass(frozen=True)
class Parameters:
    """Parameters of a model, by part."""

    layer: LayerParameters
    num_layers: int
    embedding: int
    """VH."""
    final_norm: int
    """H."""
    head: int
    """VH where untied; 0 where the head is the embedding."""

    @property
    def total(self) -> int:
        """All parameters, a tied embedding counted once."""
        return self.num_layers * self.layer.total + self.embedding + self.final_norm + self.head

    @property
    def active(self) -> int:
        """All but the experts that a token does not visit."""
        return self.num_layers * self.layer.active + self.embedding + self.final_norm + self.head


def count_parameters(model: ModelConfig) -> Parameters:
    """Parameters by part. M32: 39,942,842,368 in all, 3,704,055,808 active."""
    H, A, E = model.hidden_size, model.attention_size, model.num_experts
    half = H // 2
    embedding = model.padded_vocab_size * H
    return Parameters(
        layer=LayerParameters(
            attention=4 * A * H,
            filter=2 * H * half + half + 2 * half * H + H + H,
            norms=2 * H,
            router=router_rows(model) * H,
            expert=3 * H * model.ffn_hidden_size,
            num_experts=E,
            experts_per_token=model.experts_per_token,
            shared=3 * H * model.ffn_hidden_size * model.num_shared_experts,
        ),
        num_layers=model.num_layers,
        embedding=embedding,
        final_norm=H,
        head=embedding if model.untie_embeddings_and_output_weights else 0,
    )


@dataclass(frozen=True)
class ForwardFlops:
    """FLOPs of one token's forward pass through the whole model, by part, in a sequence of S tokens."""

    projections: int
    """Query, key, value, output: 2 x 4AH a layer."""
    filter: int
    """2 x 2H^2 a layer."""
    router: int
    """Two for each of its parameters."""
    experts: int
    """2 x 3HF a layer for each of the K chosen and of the shared."""
    head: int
    """2VH. Looking up the embedding is free."""
    scores_dense: int
    """QK^T and PV over all S keys: 2 x 2SA a layer."""
    scores_causal: int
    """The same over the (S + 1) / 2 keys that a token sees on average: 2(S + 1)A a layer."""

    @property
    def matrices(self) -> int:
        """Without attention scores: two FLOPs for each active parameter of a matrix. M32: 7.4 GFLOP."""
        return self.projections + self.filter + self.router + self.experts + self.head

    @property
    def dense(self) -> int:
        """With attention scores over the whole sequence."""
        return self.matrices + self.scores_dense

    @property
    def causal(self) -> int:
        """With the attention scores that causality needs."""
        return self.matrices + self.scores_causal


def forward_flops(model: ModelConfig, seq_length: int) -> ForwardFlops:
    """FLOPs a token of a forward pass, by part. Times TRAINING_PASSES: of a training step."""
    L, H, A = model.num_layers, model.hidden_size, model.attention_size
    return ForwardFlops(
        projections=L * 2 * 4 * A * H,
        filter=L * 2 * 4 * H * (H // 2),
        router=L * 2 * router_rows(model) * H,
        experts=round(L * 2 * 3 * H * model.ffn_hidden_size * (model.experts_per_token + model.num_shared_experts)),
        head=2 * model.padded_vocab_size * H,
        scores_dense=L * 4 * seq_length * A,
        scores_causal=L * 2 * (seq_length + 1) * A,
    )


def router_rows(model: ModelConfig) -> int:
    """Rows of width H of a layer's router."""
    return {"attention": 3, "noisy-top-k": 2}.get(model.moe_router, 1) * model.num_experts

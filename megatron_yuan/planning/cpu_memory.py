"""What a stage needs besides its state where it computes on a CPU: torch's own kernels keep more than fused ones do.

The passes of a step are walked through in the schedule's order, and at each the live bytes are counted; the fullest
moment is what is needed. Held against the peak of live tensors of real runs by `tools/benchmark.py --part plan`.

Letters: T tokens of a microbatch, H hidden, A = heads x head width, F ffn, E experts, K chosen, V padded vocabulary,
R rotated channels, s bytes of an element.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_yuan.config.schema import Config
from megatron_yuan.planning.order import order_of

LOSS_CHUNK_TOKENS = 512
"""CHUNK_TOKENS of megatron_yuan.model.loss, which imports torch and so is not imported."""
LOSS_PIECE_ELEMENTS = 2**20
"""CACHED_ELEMENTS of the same."""
UNEVEN = 1.5
"""The fullest expert's rows over the mean."""
ROUNDS = 4
"""Times the stages: after so many microbatches memory comes and goes in the same way."""


@dataclass(frozen=True)
class Moment:
    """Live bytes: what passes keep for backward, and what is needed in passing."""

    kept: int = 0
    working: int = 0

    @property
    def total(self) -> int:
        """Both."""
        return self.kept + self.working


def fullest_moment(config: Config, stage: int, chunk_layers: list[int], stages: int, microbatches: int) -> Moment:
    """Of `stage`, whose chunks have so many layers."""
    virtual, needs = len(chunk_layers), _Needs(config, stages)
    order = order_of(stage, stages, virtual, min(microbatches, ROUNDS * stages))
    kept, fullest = 0, Moment()
    for work in order.passes:
        is_first, is_last = stage == 0 and work.chunk == 0, stage == stages - 1 and work.chunk == virtual - 1
        layers = needs.kept_by_layers(chunk_layers[work.chunk], is_first)
        made = needs.head_kept if is_last else needs.wide if virtual > 1 else 0  # what gloo sends must stay
        of_pass = sum(layers) + needs.per_pass(is_first) + made
        if work.forward:
            kept += of_pass
            candidates = [Moment(kept, max(needs.forward, needs.loss if is_last else 0))]
        else:
            candidates = needs.backward(kept, of_pass, layers, is_first, is_last)
            kept -= of_pass
        fullest = max(fullest, *candidates, key=lambda moment: moment.total)
    return fullest


class _Needs:
    """Bytes of the pieces of a pass."""

    def __init__(self, config: Config, stages: int) -> None:
        model, parallel = config.model, config.parallel
        self.size = s = 2 if config.optimizer.bf16 else 4
        self.tokens = T = config.training.micro_batch_size * config.data.seq_length
        H, A, F, E = model.hidden_size, model.attention_size, model.ffn_hidden_size, model.num_experts
        K, V = model.experts_per_token, model.padded_vocab_size
        self.wide = T * H * s  # hidden states
        self.table = V * H
        self.stages = stages
        self.bf16 = s == 2
        self.recomputed = parallel.recompute_num_layers if parallel.recompute_granularity == "full" else 0
        self.tied_here = stages == 1 and not model.untie_embeddings_and_output_weights
        self.rotary = 2 * T * model.rotary_dim * s
        self.batch = T * 4 * 8  # tokens, labels, positions, mask

        # A norm keeps its input and the normalised input in float32: with float32 weights the former is the residual.
        norm = 8 * H
        selective = parallel.recompute_granularity == "selective"
        products = 2 * (K + model.num_shared_experts) * F
        dense = 3 * H + H // 2 + K * H + (0 if selective else products)
        attention = (4 + (model.attention_dropout > 0 or config.data.reset_attention_mask)) * A
        router = {"attention": 5, "noisy-top-k": 7}.get(model.moe_router, 1) * E * 4
        small = K * (20 + s) + 4 * model.num_attention_heads + 16
        self.layer = round(T * ((dense + attention) * s + 3 * norm + router + small))
        self.scores = 0
        if model.attention_dropout > 0:  # torch's fallback keeps three float32 matrices and a mask of S x S
            self.scores = T * config.data.seq_length * model.num_attention_heads * 13
        self.head_kept = T * norm

        expert = 3 * F * H
        rows = round(K * T)
        each = min(rows, round(UNEVEN * rows / E))
        self.forward = 2 * self.wide + rows * H * s + each * 2 * F * s
        shared = 3 * F * H * model.num_shared_experts * s
        self.experts = (
            2 * self.wide
            + 2 * rows * H * s
            + E * expert * s
            + shared
            + each * (11 if selective else 9) * F * s
            + 2 * F * H * (6 if self.bf16 else 4)
        )
        self.attention = 3 * self.wide + 8 * T * A * s
        self.attention_keeps = round(T * (K * H + (0 if selective else 2 * K * F) + H) * s) + T * norm
        self.loss = 2 * self.wide + self._loss_chunks(min(T, LOSS_CHUNK_TOKENS) * V * s, -(-T // LOSS_CHUNK_TOKENS))
        # The head's gradient as it was kept, and scaled; or scaled, and in float32 as it joins DDP's sum.
        self.loss_backward = 2 * self.wide + self.table * (6 if self.bf16 else 8)

    def _loss_chunks(self, logits: int, chunks: int) -> int:
        """Logits of two chunks at once, as one makes way for the other, and the head's gradient being summed.

        In bfloat16 the second chunk is the fullest: its part and the first one's, each also in float32.
        """
        # Losses piece by piece in float32: one piece, the one before it, and with bfloat16 a copy of what goes in.
        pieces = min(logits // self.size, LOSS_PIECE_ELEMENTS) * (12 if self.bf16 else 8)
        if chunks == 1:
            return logits + max(self.table * self.size, pieces)
        one, two = (2, 12) if self.bf16 else (4, 8 if chunks == 2 else 12)
        summed = one if chunks == 2 else one + 4
        return max(2 * logits + self.table * summed, logits + self.table * summed + pieces, logits + self.table * two)

    def kept_by_layers(self, count: int, is_first: bool) -> list[int]:
        """Of one pass, by layer, in a token's order; of what is recomputed its input alone."""
        recomputed = count if self.recomputed is None else min(self.recomputed, count)
        return [self.wide] * recomputed + [self.layer + self.scores] * (count - recomputed)

    def per_pass(self, is_first: bool) -> int:
        """Rotary tables, the batch, and the received hidden states, which a bfloat16 norm does not keep itself."""
        received = self.wide if self.bf16 and not is_first else 0
        return self.rotary + self.batch + received

    def backward(self, kept: int, of_pass: int, layers: list[int], is_first: bool, is_last: bool) -> list[Moment]:
        """The full moments of a backward pass, `kept` before it, of which `of_pass` are its own."""
        messages = 0 if self.stages == 1 else 2 * self.wide
        held = self.table * self.size if self.tied_here else 0  # until the embedding's own gradient joins it
        found = [Moment(kept, self.loss_backward)] if is_last else []
        kept -= self.head_kept if is_last else 0
        recomputed = len(layers) if self.recomputed is None else min(self.recomputed, len(layers))
        for i in reversed(range(len(layers))):
            again = self.layer + self.scores if i < recomputed else 0
            found.append(Moment(kept, messages + held + again + self.experts))
            found.append(Moment(kept, messages + held + again + self.attention - self.attention_keeps))
            kept -= layers[i]
        if is_first:
            gradient = self.table * (6 if self.bf16 else 4) + (2 * self.wide if self.bf16 else 0)
            found.append(Moment(kept, messages + 2 * held + gradient + self.wide))
        return found

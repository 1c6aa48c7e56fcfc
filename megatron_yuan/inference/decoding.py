"""The generation loop: the prompt in one go (or in chunks), then token by token, over keys, values and filter states.

Shapes: B batch, P prompt, S tokens so far, V vocabulary.

Prompts of different lengths are padded at the left. Padding is isolated: true tokens do not attend to it, the filter
starts anew behind it, and positions count from the first true token. So each row gets what it would get alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from megatron_yuan.inference.sampling import Chooser
from megatron_yuan.model.attention import AttentionCache
from megatron_yuan.model.context import TokenContext, token_context
from megatron_yuan.model.model import YuanModel

PREFILL_CHUNK = 4096
"""Prompt tokens that go through the model at once."""


ROOM = 256
"""New tokens that caches have room for at first."""


class Decoder:
    """One batch in generation: what has been seen, and the scores of what comes next."""

    def __init__(
        self, model: YuanModel, ids_BP: Tensor, first_B: Tensor | None, capacity: int, use_cache: bool, vocab_size: int
    ) -> None:
        self.model, self.first_B, self.use_cache = model, first_B, use_cache
        self.device = ids_BP.device
        self.vocab_size = vocab_size
        self._padding = 0 if first_B is None else int(first_B.max())
        self.ids_BS = ids_BP[:, :0]
        self._new = ids_BP
        self._like = model.final_norm.weight
        self._caches = []
        if use_cache:
            batch = ids_BP.shape[0]
            # A generous limit on the answer costs no memory before it is needed.
            capacity = min(capacity, ids_BP.shape[1] + ROOM)
            self._caches = [AttentionCache.empty(model.config, batch, capacity, self._like) for _ in model.layers]

    def feed(self, ids_B: Tensor) -> None:
        """Say which tokens were chosen, [B]."""
        self._new = ids_B.unsqueeze(1)

    def next_logits(self) -> Tensor:
        """Scores of the next token [B, V], V the ids in use."""
        start = self.ids_BS.shape[1]
        self.ids_BS = torch.cat((self.ids_BS, self._new), dim=1)
        if self.use_cache:
            for begin in range(start, self.ids_BS.shape[1], PREFILL_CHUNK):
                ids_BS = self.ids_BS[:, begin : begin + PREFILL_CHUNK]
                hidden_BSH = self._hidden(ids_BS, self._context(begin, ids_BS.shape[1]), self._caches)
        else:
            hidden_BSH = self._hidden(self.ids_BS, self._whole_context(), None)
        return self.model.logits(hidden_BSH[:, -1])[:, : self.vocab_size]

    def _hidden(self, ids_BS: Tensor, context: TokenContext, caches: Sequence[AttentionCache] | None) -> Tensor:
        # By class: a subclass's forward goes on to the scores of all positions, of which the last alone are needed.
        return YuanModel.forward(self.model, ids_BS, context, caches).hidden_BSH

    def _positions(self, begin: int, length: int) -> Tensor:
        index_BS = torch.arange(begin, begin + length, device=self.ids_BS.device).expand(self.ids_BS.shape[0], -1)
        return index_BS if self.first_B is None else index_BS - self.first_B.unsqueeze(1)

    def _context(self, begin: int, length: int) -> TokenContext:
        positions_BS = self._positions(begin, length)
        starts_BS = None if begin > self._padding or self.first_B is None else positions_BS == 0
        return token_context(
            self.model.config,
            positions_BS.clamp(min=0),
            self._like.dtype,
            first_B=self.first_B,
            starts_BS=starts_BS,
        )

    def _whole_context(self) -> TokenContext:
        positions_BS = self._positions(0, self.ids_BS.shape[1])
        start_BS = None if self.first_B is None else (positions_BS >= 0) * self.first_B.unsqueeze(1)
        dtype = self._like.dtype
        return token_context(self.model.config, positions_BS.clamp(min=0), dtype, document_start_BS=start_BS)


def pad_left(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Ids [B, P] and the first true position of each row [B]; None where no row is padded."""
    longest = max(map(len, prompts))
    ids_BP = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    lengths = [len(prompt) for prompt in prompts]
    if min(lengths) == longest:
        return ids_BP, None
    return ids_BP, torch.tensor([longest - length for length in lengths], device=device)


def tokens(decoder: Decoder, choose: Chooser, max_new_tokens: int, stop_ids: Sequence[int]) -> Iterator[Tensor]:
    """The next token of each row, [B], step by step, until every row has met a stop id, or up to the limit.

    A row that has stopped goes on repeating its stop id.
    """
    stops = torch.tensor(sorted(stop_ids), device=decoder.device, dtype=torch.long)
    stopped_B = None
    last_B: Tensor | None = None
    for step in range(max_new_tokens):
        ids_B = choose(decoder.next_logits())
        if stopped_B is not None and last_B is not None:
            ids_B = torch.where(stopped_B, last_B, ids_B)
        yield ids_B
        stopped_B, last_B = torch.isin(ids_B, stops), ids_B
        if stops.numel() and bool(stopped_B.all()):
            return
        if step + 1 < max_new_tokens:
            decoder.feed(ids_B)

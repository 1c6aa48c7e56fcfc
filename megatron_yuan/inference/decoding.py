"""The generation loop: the prompt in one go (or in chunks), then token by token, over keys, values and filter states.

Shapes: B batch, P prompt, S tokens so far, V vocabulary.

Prompts of different lengths are padded at the left. Padding is isolated: true tokens do not attend to it, the filter
starts anew behind it, and positions count from the first true token. So each row gets what it would get alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from megatron_yuan.errors import CheckpointError
from megatron_yuan.inference.relay import Relay
from megatron_yuan.inference.sampling import Chooser
from megatron_yuan.inference.stopping import Stops
from megatron_yuan.model.attention import AttentionCache
from megatron_yuan.model.context import TokenContext, rotary_of, token_context
from megatron_yuan.model.model import YuanModel

PREFILL_CHUNK = 4096
"""Prompt tokens that go through the model at once."""

ROOM = 256
"""New tokens that caches have room for at first."""


class Decoder:
    """One batch in generation: what has been seen, and the scores of what comes next."""

    def __init__(
        self,
        model: YuanModel,
        ids_BP: Tensor,
        first_B: Tensor | None,
        capacity: int,
        use_cache: bool,
        vocab_size: int,
        relay: Relay | None = None,
    ) -> None:
        self.model, self.first_B, self.use_cache = model, first_B, use_cache
        self.relay = relay or Relay()
        self.device = ids_BP.device
        self.vocab_size = vocab_size
        self._padding = 0 if first_B is None else int(first_B.max())
        self.ids_BS = ids_BP[:, :0]
        self._new = ids_BP
        self._like = next(model.parameters())
        self._tables: tuple[Tensor, Tensor] | None = None
        self.caches = []
        if use_cache:
            batch = ids_BP.shape[0]
            # A generous limit on the answer costs no memory before it is needed.
            capacity = min(capacity, ids_BP.shape[1] + ROOM)
            self.caches = [AttentionCache.empty(model.config, batch, capacity, self._like) for _ in model.layers]

    def feed(self, ids_B: Tensor) -> None:
        """Say which tokens were chosen, [B]."""
        self._new = ids_B.unsqueeze(1)

    def branch(self, rows_R: Tensor, ids_RS: Tensor) -> Decoder:
        """Another decoder that goes on from copies of these rows of this one, with `ids` [R, S] as what is new."""
        first_R = None if self.first_B is None else self.first_B[rows_R]
        branch = Decoder(
            self.model, self.ids_BS[rows_R], first_R, 0, False, vocab_size=self.vocab_size, relay=self.relay
        )
        branch.use_cache, branch.caches = True, [cache.rows(rows_R) for cache in self.caches]
        branch.ids_BS, branch._new, branch._tables = self.ids_BS[rows_R], ids_RS, self._tables
        return branch

    def next_logits(self) -> Tensor | None:
        """Scores of the next token [B, V], V the ids in use; None on all stages but the last."""
        hidden_BSH = self.hidden()
        if hidden_BSH is None:
            return None
        return self.model.logits(hidden_BSH[:, -1])[:, : self.vocab_size]

    def hidden(self, every: bool = False) -> Tensor | None:
        """Normed states of what was fed last (of its last chunk alone, or of `every` token); None on all stages but
        the last."""
        start = self.ids_BS.shape[1]
        self.ids_BS = torch.cat((self.ids_BS, self._new), dim=1)
        if not self.use_cache:
            return self._through(self.ids_BS, self._whole_context(), None)
        chunks: list[Tensor | None] = []
        for begin in range(start, self.ids_BS.shape[1], PREFILL_CHUNK):
            ids_BS = self.ids_BS[:, begin : begin + PREFILL_CHUNK]
            found = self._through(ids_BS, self._context(begin, ids_BS.shape[1]), self.caches)
            chunks = [*chunks, found] if every else [found]
        whole = [chunk for chunk in chunks if chunk is not None]
        return torch.cat(whole, dim=1) if whole else None

    def _through(self, ids_BS: Tensor, context: TokenContext, caches: Sequence[AttentionCache] | None) -> Tensor | None:
        shape = (*ids_BS.shape, self.model.config.hidden_size)
        x = ids_BS if self.relay.is_first else self.relay.receive(shape, self._like)
        # By class: a subclass's forward goes on to the scores of all positions, of which the last alone are needed.
        hidden_BSH = YuanModel.forward(self.model, x, context, caches).hidden_BSH
        if self.relay.is_last:
            return hidden_BSH
        self.relay.send(hidden_BSH)
        return None

    def _positions(self, begin: int, length: int) -> Tensor:
        index_BS = torch.arange(begin, begin + length, device=self.ids_BS.device).expand(self.ids_BS.shape[0], -1)
        return index_BS if self.first_B is None else index_BS - self.first_B.unsqueeze(1)

    def _context(self, begin: int, length: int) -> TokenContext:
        positions_BS = self._positions(begin, length)
        starts_BS = None if begin > self._padding or self.first_B is None else positions_BS == 0
        positions_BS = positions_BS.clamp(min=0)
        return token_context(
            self.model.config,
            positions_BS,
            self._like.dtype,
            first_B=self.first_B,
            starts_BS=starts_BS,
            counted=False,
            rotary=self._rotary(positions_BS, begin + length),
        )

    def _rotary(self, positions_BS: Tensor, end: int) -> tuple[Tensor, Tensor]:
        """Looked up: token by token, to make the tables would be a tenth of the small steps around the products."""
        if self._tables is None or end > len(self._tables[0]):
            ahead_1P = torch.arange(2 * self.ids_BS.shape[1] + ROOM, device=self.device).unsqueeze(0)
            cos_1PR, sin_1PR = rotary_of(self.model.config, ahead_1P)
            self._tables = cos_1PR[0], sin_1PR[0]
        cos_PR, sin_PR = self._tables
        return cos_PR[positions_BS], sin_PR[positions_BS]

    def _whole_context(self) -> TokenContext:
        positions_BS = self._positions(0, self.ids_BS.shape[1])
        start_BS = None if self.first_B is None else (positions_BS >= 0) * self.first_B.unsqueeze(1)
        dtype = self._like.dtype
        return token_context(
            self.model.config, positions_BS.clamp(min=0), dtype, document_start_BS=start_BS, counted=False
        )


def pad_left(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Ids [B, P] and the first true position of each row [B]; None where no row is padded."""
    longest = max(map(len, prompts))
    ids_BP = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    lengths = [len(prompt) for prompt in prompts]
    if min(lengths) == longest:
        return ids_BP, None
    return ids_BP, torch.tensor([longest - length for length in lengths], device=device)


def tokens(decoder: Decoder, choose: Chooser, max_new_tokens: int, stops: Stops) -> Iterator[tuple[Tensor, Tensor]]:
    """The next token of each row and its log-probability, [B] each, until all rows have stopped, or up to the limit.

    A row that has stopped goes on repeating its last token. CheckpointError where scores are no numbers.
    """
    last: tuple[Tensor, Tensor] | None = None
    stopped_B = None
    for step in range(max_new_tokens):
        logits_BV = decoder.next_logits()
        found_2B = None if logits_BV is None else torch.stack(_chosen(logits_BV, choose))
        shape = (2, decoder.ids_BS.shape[0])
        found_2B = decoder.relay.share(found_2B, shape, torch.float64, decoder.device)
        ids_B, logprobs_B = found_2B[0].long(), found_2B[1]
        if bool(logprobs_B.isnan().any()):
            raise CheckpointError(
                f"the model's scores are not finite at new token {step + 1}: its weights hold NaN or infinity, or "
                "overflow its type. Fix: load another checkpoint, or give --dtype fp32."
            )
        if stopped_B is not None and last is not None:
            ids_B = torch.where(stopped_B, last[0], ids_B)
            logprobs_B = torch.where(stopped_B, last[1], logprobs_B)
        yield ids_B, logprobs_B
        last = ids_B, logprobs_B
        if stops:
            stopped_B = stops.see(ids_B)
            if stops.all_stopped:
                return
        if step + 1 < max_new_tokens:
            decoder.feed(ids_B)


def _chosen(logits_BV: Tensor, choose: Chooser) -> tuple[Tensor, Tensor]:
    """Token and log-probability of each row, both float64, which holds every id exactly."""
    ids_B = choose(logits_BV)
    chosen_B = logits_BV.gather(1, ids_B.unsqueeze(1)).squeeze(1).double()
    return ids_B.double(), chosen_B - logits_BV.float().logsumexp(dim=-1).double()

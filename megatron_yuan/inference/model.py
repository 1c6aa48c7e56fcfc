"""A model to use: it scores, and it generates. `inference.load` opens one.

Shapes: B batch, S sequence, V padded vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from megatron_yuan.config.layout import nearly_equal
from megatron_yuan.config.routing import LOOKS_AHEAD
from megatron_yuan.config.schema import Config
from megatron_yuan.errors import ConfigError, DataError
from megatron_yuan.inference.decoding import Decoder, pad_left, tokens
from megatron_yuan.inference.relay import Relay
from megatron_yuan.inference.sampling import Chooser, Sampling
from megatron_yuan.inference.stopping import Stops
from megatron_yuan.log import logger
from megatron_yuan.model.context import token_context
from megatron_yuan.model.model import YuanModel
from megatron_yuan.parallel.stages import layers_of_chunks
from megatron_yuan.parallel.topology import Topology

if TYPE_CHECKING:
    from megatron_yuan.data.tokenizer import Tokenizer


class Completion(NamedTuple):
    """What follows one prompt."""

    ids: list[int]
    """New tokens, up to and without a stop id; a stop string's tokens are among them."""
    logprobs: list[float]
    """Natural logarithm of each one's probability, before temperature, top-k and top-p."""


class LanguageModel(YuanModel):
    """The network from token ids to scores, whole on one device, or the layers of this process's pipeline stage.

    Parameters have their global names. On several stages all processes make the same calls and get the same answers.
    """

    def __init__(
        self,
        config: Config,
        tokenizer: Tokenizer | None = None,
        eod_id: int | None = None,
        topology: Topology | None = None,
        layout: str | None = None,
    ) -> None:
        """`layout`: layers of each stage, such as 2,3,3,2; unset, nearly the same number."""
        relay = Relay(topology)
        layout = layout or nearly_equal(config.model.num_layers, relay.stages)
        (layers,) = layers_of_chunks(config.model.num_layers, relay.stages, layout=layout)[relay.stage]
        super().__init__(config.model, layers, relay.is_first, relay.is_last)
        self.relay = relay
        self.run_config = config
        self.tokenizer = tokenizer
        self.eod_id = eod_id
        """The token that ends a text; None where neither the config nor a tokenizer says."""

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def forward(self, input_ids: Tensor) -> Tensor:  # type: ignore[override]
        """Scores of the next token after each of `input_ids` [B, S]: [B, S, V], differentiable. Of a whole model."""
        assert self.relay.stages == 1, "a stage's part has no scores of its own; ask `scoring`"
        ids_BS = self.checked(input_ids)
        positions_BS = torch.arange(ids_BS.shape[1], device=self.device).expand(ids_BS.shape)
        context = token_context(self.config, positions_BS, self.final_norm.weight.dtype)
        return self.logits(super().forward(ids_BS, context).hidden_BSH)

    def generate(
        self,
        input_ids: Tensor,
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        stop_ids: Sequence[int] | None = None,
        use_cache: bool = True,
        on_token: Callable[[Tensor], None] | None = None,
    ) -> Tensor:
        """`input_ids` [B, S] with up to `max_new_tokens` more in each row.

        Ends early once every row has met one of `stop_ids` (unset: <eod>; () never stops), which a row that is done
        repeats. temperature 0 is greedy; the same seed gives the same tokens. Without the cache every step starts over.
        `on_token` is called with the new tokens [B] of each step as they come.
        """
        sampling = Sampling(temperature, top_k, top_p, seed)
        ids_BS = self.checked(input_ids)
        stops = Stops(self._stop_ids(stop_ids), rows=ids_BS.shape[0])
        columns = [ids_BS]
        for ids_B, _ in self._tokens(ids_BS, None, max_new_tokens, sampling, stops, use_cache):
            columns.append(ids_B.unsqueeze(1))
            if on_token is not None:
                on_token(ids_B)
        return torch.cat(columns, dim=1)

    def generate_batch(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        stop_ids: Sequence[int] | None = None,
        use_cache: bool = True,
    ) -> list[list[int]]:
        """The new tokens of each prompt, of whatever length, up to and without the stop id.

        Greedily, each row gets what it would get alone; sampled, row b draws from its own stream of (seed, b).
        """
        sampling = Sampling(temperature, top_k, top_p, seed)
        return [each.ids for each in self.complete(prompts, max_new_tokens, sampling, stop_ids, (), use_cache)]

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        sampling: Sampling | None = None,
        stop_ids: Sequence[int] | None = None,
        stop_strings: Sequence[str] = (),
        use_cache: bool = True,
    ) -> list[Completion]:
        """As `generate_batch`, with log-probabilities; a row also ends once its text holds one of `stop_strings`."""
        if not prompts:
            return []
        for row, prompt in enumerate(prompts):
            if not prompt:
                raise DataError(f"prompt {row} is empty; give at least one token.")
        if stop_strings and self.tokenizer is None:
            raise ConfigError("stop strings are found in text, but the model has no tokenizer; give --tokenizer-model.")
        ids_BP, first_B = pad_left(prompts, self.device)
        decode = None if self.tokenizer is None else self.tokenizer.decode
        stops = Stops(self._stop_ids(stop_ids), stop_strings, decode, len(prompts), prompts)
        ids_BP = self.checked(ids_BP)
        new = list(self._tokens(ids_BP, first_B, max_new_tokens, sampling or Sampling(), stops, use_cache))
        if not new:
            return [Completion([], []) for _ in prompts]
        ids, logprobs = (torch.stack(columns, dim=1).tolist() for columns in zip(*new, strict=True))
        return [
            Completion(row[:length], scores[:length])
            for row, scores, length in zip(ids, logprobs, stops.lengths(ids), strict=True)
        ]

    def stream(
        self,
        prompt: Sequence[int],
        max_new_tokens: int,
        sampling: Sampling | None = None,
        stop_ids: Sequence[int] | None = None,
        use_cache: bool = True,
    ) -> Iterator[int]:
        """The new tokens of one prompt as they come, up to and without the stop id."""
        stops = Stops(self._stop_ids(stop_ids))
        ids_1P = self.checked(torch.tensor([list(prompt)], dtype=torch.long))
        for ids_B, _ in self._tokens(ids_1P, None, max_new_tokens, sampling or Sampling(), stops, use_cache):
            if int(ids_B) in stops.ids:
                return
            yield int(ids_B)

    @torch.inference_mode()
    def _tokens(
        self,
        ids_BP: Tensor,
        first_B: Tensor | None,
        max_new_tokens: int,
        sampling: Sampling,
        stops: Stops,
        use_cache: bool,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        if self.config.moe_router == "expert-choice":
            raise ConfigError(f"{LOOKS_AHEAD}, so it cannot generate.\nIt can be scored; to generate, train another.")
        if max_new_tokens < 0:
            raise ConfigError(f"max-new-tokens is {max_new_tokens}, but must be 0 or more.")
        length = ids_BP.shape[1] + max_new_tokens
        if length > self.config.max_position_embeddings:
            logger.warning(
                "%d tokens of prompt and answer are more than the %d that the model is meant for "
                "(max-position-embeddings)",
                length,
                self.config.max_position_embeddings,
            )
        decoder = Decoder(self, ids_BP, first_B, length, use_cache, self.vocabulary_in_use, self.relay)
        yield from tokens(decoder, Chooser(sampling, ids_BP.shape[0]), max_new_tokens, stops)

    @property
    def vocabulary_in_use(self) -> int:
        """Ids that can be chosen: not rows of padding, nor what the tokenizer could not spell."""
        in_use = self.config.vocab_size
        return in_use if self.tokenizer is None else min(in_use, self.tokenizer.vocab_size)

    def _stop_ids(self, stop_ids: Sequence[int] | None) -> Sequence[int]:
        if stop_ids is not None:
            return stop_ids
        return () if self.eod_id is None else (self.eod_id,)

    def checked(self, input_ids: Tensor) -> Tensor:
        """The ids on the model's device; DataError where they cannot be looked up."""
        whole = not (input_ids.is_floating_point() or input_ids.is_complex() or input_ids.dtype == torch.bool)
        if input_ids.dim() != 2 or 0 in input_ids.shape or not whole:
            raise DataError(
                f"input ids are {input_ids.dtype} of shape {list(input_ids.shape)}; whole numbers [batch, sequence] "
                "with at least one row and a token in it were expected."
            )
        vocabulary = self.config.padded_vocab_size
        if input_ids.numel() and (int(input_ids.min()) < 0 or int(input_ids.max()) >= vocabulary):
            raise DataError(
                f"token ids run from {int(input_ids.min())} to {int(input_ids.max())}, but the model's vocabulary is "
                f"0 to {vocabulary - 1}; is this the tokenizer that the model was trained with?"
            )
        return input_ids.to(self.device, torch.long)

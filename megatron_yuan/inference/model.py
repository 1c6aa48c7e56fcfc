"""A model to use: `load` opens a native checkpoint or a Hugging Face folder; the model scores and generates.

Shapes: B batch, S sequence, V padded vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from megatron_yuan.checkpoint import layout
from megatron_yuan.checkpoint.load import is_checkpoint, open_checkpoint
from megatron_yuan.config.routing import LOOKS_AHEAD
from megatron_yuan.config.schema import Config
from megatron_yuan.config.yaml_file import from_yaml
from megatron_yuan.convert.hf import EMBEDDING, check_folder, load_hf, model_shapes
from megatron_yuan.convert.hf_folder import is_hf_folder, open_hf_folder
from megatron_yuan.errors import CheckpointError, ConfigError, DataError
from megatron_yuan.inference.decoding import Decoder, pad_left, tokens
from megatron_yuan.inference.sampling import Chooser, Sampling
from megatron_yuan.log import logger
from megatron_yuan.model.context import token_context
from megatron_yuan.model.model import YuanModel

if TYPE_CHECKING:
    from megatron_yuan.data.tokenizer import Tokenizer

DTYPES = {
    **dict.fromkeys(("fp32", "float32"), torch.float32),
    **dict.fromkeys(("bf16", "bfloat16"), torch.bfloat16),
    **dict.fromkeys(("fp16", "float16"), torch.float16),
}


class LanguageModel(YuanModel):
    """The whole network, from token ids to scores, on one device. Parameters have their global names."""

    def __init__(self, config: Config, tokenizer: Tokenizer | None = None, eod_id: int | None = None) -> None:
        super().__init__(config.model)
        self.run_config = config
        self.tokenizer = tokenizer
        self.eod_id = eod_id
        """The token that ends a text; None where neither the config nor a tokenizer says."""

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.final_norm.weight.device

    def forward(self, input_ids: Tensor) -> Tensor:  # type: ignore[override]
        """Scores of the next token after each of `input_ids` [B, S]: [B, S, V], differentiable."""
        ids_BS = self._checked(input_ids)
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
        ids_BS = self._checked(input_ids)
        columns = [ids_BS]
        for ids_B in self._tokens(ids_BS, None, max_new_tokens, sampling, stop_ids, use_cache):
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
        if not prompts:
            return []
        for row, prompt in enumerate(prompts):
            if not prompt:
                raise DataError(f"prompt {row} is empty; give at least one token.")
        ids_BP, first_B = pad_left(prompts, self.device)
        stops = self._stops(stop_ids)
        new = list(self._tokens(self._checked(ids_BP), first_B, max_new_tokens, sampling, stops, use_cache))
        rows = torch.stack(new, dim=1).tolist() if new else [[] for _ in prompts]
        return [_until(row, stops) for row in rows]

    def stream(
        self,
        prompt: Sequence[int],
        max_new_tokens: int,
        sampling: Sampling | None = None,
        stop_ids: Sequence[int] | None = None,
        use_cache: bool = True,
    ) -> Iterator[int]:
        """The new tokens of one prompt as they come, up to and without the stop id."""
        stops = self._stops(stop_ids)
        ids_1P = self._checked(torch.tensor([list(prompt)], dtype=torch.long))
        for ids_B in self._tokens(ids_1P, None, max_new_tokens, sampling or Sampling(), stops, use_cache):
            if int(ids_B) in stops:
                return
            yield int(ids_B)

    @torch.inference_mode()
    def _tokens(
        self,
        ids_BP: Tensor,
        first_B: Tensor | None,
        max_new_tokens: int,
        sampling: Sampling,
        stop_ids: Sequence[int] | None,
        use_cache: bool,
    ) -> Iterator[Tensor]:
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
        decoder = Decoder(self, ids_BP, first_B, length, use_cache, self._vocabulary_in_use)
        yield from tokens(decoder, Chooser(sampling, ids_BP.shape[0]), max_new_tokens, self._stops(stop_ids))

    @property
    def _vocabulary_in_use(self) -> int:
        # Rows of padding, and ids that the tokenizer could not spell, are never chosen.
        in_use = self.config.vocab_size
        return in_use if self.tokenizer is None else min(in_use, self.tokenizer.vocab_size)

    def _stops(self, stop_ids: Sequence[int] | None) -> Sequence[int]:
        if stop_ids is not None:
            return stop_ids
        return () if self.eod_id is None else (self.eod_id,)

    def _checked(self, input_ids: Tensor) -> Tensor:
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


def load(
    path: str | Path, dtype: torch.dtype | str | None = None, device: torch.device | str | None = None
) -> LanguageModel:
    """Open a run folder, a checkpoint or a Hugging Face folder as a model in evaluation mode.

    dtype: unset, as saved; float32 takes a checkpoint's master weights where it has them. device: unset, the CPU;
    "auto" takes a GPU where there is one. Memory: the model's own and little more. CheckpointError says what is wrong.
    """
    place, wanted = _device(device), _dtype(dtype)
    if is_checkpoint(path):
        checkpoint = open_checkpoint(path)
        config = from_yaml(checkpoint.config_text, source=str(checkpoint.path / layout.CONFIG))
        checkpoint.check_model(model_shapes(config.model))
        model = _unfilled(config, checkpoint.tokenizer, wanted or checkpoint.dtypes()["embedding.weight"], place)
        checkpoint.load_weights({name: each.data for name, each in model.named_parameters()}, cast=True)
    elif is_hf_folder(path):
        folder = open_hf_folder(path)
        check_folder(folder)
        stored = folder.specs[EMBEDDING].dtype if EMBEDDING in folder.specs else torch.float32
        model = _unfilled(folder.config, folder.tokenizer, wanted or stored, place)
        load_hf(folder, dict(model.named_parameters()))
    else:
        what = "neither a checkpoint nor a Hugging Face folder" if Path(path).exists() else "not there"
        raise CheckpointError(
            f"{path} is {what}; give a run folder with checkpoints/, a checkpoint, or a folder with config.json and "
            "model.safetensors"
        )
    return model.eval()


def _unfilled(config: Config, tokenizer_path: Path | None, dtype: torch.dtype, device: torch.device) -> LanguageModel:
    tokenizer, eod_id = None, config.data.eod_id
    if tokenizer_path is not None:
        from megatron_yuan.data.tokenizer import Tokenizer

        tokenizer = Tokenizer(str(tokenizer_path))
    if eod_id is None and tokenizer is not None:
        eod_id = tokenizer.eod_id
    with torch.device("meta"):
        model = LanguageModel(config, tokenizer, eod_id)
    return model.to(dtype).to_empty(device=device)


def _until(row: list[int], stops: Sequence[int]) -> list[int]:
    ends = [i for i, token in enumerate(row) if token in stops]
    return row[: ends[0]] if ends else row


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise ConfigError(f"dtype is {dtype!r}, but must be one of {', '.join(DTYPES)}.")
        return DTYPES[dtype]
    if dtype is not None and not dtype.is_floating_point:
        raise ConfigError(f"dtype is {dtype}, but must be one of {', '.join(DTYPES)}.")
    return dtype


def _device(device: torch.device | str | None) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device or "cpu")
    except RuntimeError:
        raise ConfigError(f"device is {device!r}, but must be auto, cpu, cuda or cuda:N.") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device is {device!r}, but torch sees no GPU here; give --device cpu.")
    return chosen

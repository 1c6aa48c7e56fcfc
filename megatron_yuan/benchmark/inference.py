"""Prefill and decoding in tokens/s: ours, transformers with our exported code, and its Mixtral of the same shape.

Each goes through the same ids: a prompt at once, then token after token, greedily, over its own cache. All in one
process, in turn, so that a slow spell hits all alike.

Shapes: B rows, P prompt, S tokens, V vocabulary, L layers, T tokens of all rows, E experts, K chosen.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from megatron_yuan.benchmark.peers import mixtral_model, transformers_or_refuse
from megatron_yuan.config.schema import Config
from megatron_yuan.convert.names import check_publishable
from megatron_yuan.errors import CheckpointError, ConfigError
from megatron_yuan.inference.decoding import Decoder
from megatron_yuan.inference.model import LanguageModel
from megatron_yuan.inference.sampling import greedy
from megatron_yuan.model.initialize import initialize
from megatron_yuan.model.moe.routers import Routing
from megatron_yuan.parallel.host_memory import keep_freed_memory
from megatron_yuan.parallel.topology import choose_device

NEW_TOKENS = 32
OURS = "megatron_yuan"

Step = Callable[[Tensor], Tensor]
"""Ids [B, S] in, scores of the next token [B, V] out; remembers what it has seen."""


class Speed(NamedTuple):
    """Tokens a second over all rows, the medians of the rounds."""

    prefill: float
    decode: float
    ours_beside: tuple[float, float]
    """Ours by theirs in prefill and decoding: the medians of the ratios within each round, which slow spells leave."""


class EvenChoice:
    """Experts by an even draw, the same for each model, instead of what its router chose (which it does all the same).

    Trained models are balanced. Random weights send nearly all tokens to a few experts, each model to another number of
    them, and so one would read more weights than the other.
    """

    def __init__(self, config: Config, tokens: int, device: torch.device) -> None:
        model = config.model
        random = torch.Generator().manual_seed(config.training.seed)
        draws_LTE = torch.rand(model.num_layers, tokens, model.num_experts, generator=random)
        self.experts_LTK = draws_LTE.topk(model.moe_router_topk).indices.to(device)
        self.begin()

    def begin(self) -> None:
        """From the first token again."""
        self.seen_L = [0] * len(self.experts_LTK)

    def next(self, layer: int, tokens: int) -> Tensor:
        """Experts [T, K] of the next tokens that a layer sees."""
        begin = self.seen_L[layer]
        self.seen_L[layer] += tokens
        return self.experts_LTK[layer, begin : begin + tokens]


def measure(config: Config, batch: int, rounds: int, peers: bool) -> dict[str, Speed]:
    """Of each model over `rounds`, after a first pass that is not counted.

    ConfigError for `peers` without transformers, and where theirs would be another network than ours.
    """
    if peers:
        _require_exportable(config)
    device = choose_device(config.training.device)
    if device.type == "cpu":
        keep_freed_memory()  # for all alike
    dtype = torch.bfloat16 if config.optimizer.bf16 else torch.float32
    random = torch.Generator().manual_seed(config.training.seed)
    ids_BP = torch.randint(config.model.vocab_size, (batch, config.data.seq_length), generator=random).to(device)
    length = ids_BP.shape[1] + NEW_TOKENS
    choice = EvenChoice(config, batch * length, device)
    fresh = {OURS: _ours(config, device, dtype, length, choice)}
    if peers:
        fresh |= _peers(config, device, dtype, choice)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in fresh}
    with torch.inference_mode():
        for _ in range(rounds + 1):
            for name, start in fresh.items():
                choice.begin()
                seconds[name].append(_timed(start(ids_BP), ids_BP, device))
    return {
        name: speed_of(spent[1:], seconds[OURS][1:], ids_BP.numel(), batch * NEW_TOKENS)
        for name, spent in seconds.items()
    }


def speed_of(
    theirs: list[tuple[float, float]], ours: list[tuple[float, float]], prompt_tokens: int, new_tokens: int
) -> Speed:
    """Of a model's seconds of prefill and decoding in each round, and ours in the same rounds."""
    prefill, decode = (statistics.median(each[part] for each in theirs) for part in (0, 1))
    pairs = list(zip(theirs, ours, strict=True))
    beside = tuple(statistics.median(their[part] / our[part] for their, our in pairs) for part in (0, 1))
    return Speed(prompt_tokens / prefill, new_tokens / decode, (beside[0], beside[1]))


def _require_exportable(config: Config) -> None:
    try:
        check_publishable(config.model)
    except CheckpointError as error:
        raise ConfigError(f"peers: {error}\nFix: leave out --peers, which compares with the exported code.") from None


def _timed(step: Step, ids_BP: Tensor, device: torch.device) -> tuple[float, float]:
    started = _now(device)
    next_B1 = greedy(step(ids_BP)).unsqueeze(1)
    prefilled = _now(device)
    for _ in range(NEW_TOKENS):
        next_B1 = greedy(step(next_B1)).unsqueeze(1)
    return prefilled - started, _now(device) - prefilled


def _ours(
    config: Config, device: torch.device, dtype: torch.dtype, capacity: int, choice: EvenChoice
) -> Callable[[Tensor], Step]:
    model = LanguageModel(config)
    initialize(model, config.model, config.training.seed)
    layers: dict[str, Any] = dict(model.layers.items())
    for number, layer in enumerate(layers.values()):

        def instead(_module: Any, _inputs: Any, out: Routing, number: int = number) -> Routing:
            if out.rows is not None:  # experts that choose their tokens are even by themselves
                return out
            return out._replace(experts_TK=choice.next(number, len(out.experts_TK)))

        layer.moe.router.register_forward_hook(instead)
    model.to(device, dtype).eval()

    def start(ids_BP: Tensor) -> Step:
        decoder = Decoder(model, ids_BP, None, capacity, True, model.vocabulary_in_use)

        def step(ids_BS: Tensor) -> Tensor:
            if decoder.ids_BS.shape[1]:
                decoder.feed(ids_BS[:, 0])
            logits_BV = decoder.next_logits()
            assert logits_BV is not None
            return logits_BV

        return step

    return start


def _peers(
    config: Config, device: torch.device, dtype: torch.dtype, choice: EvenChoice
) -> dict[str, Callable[[Tensor], Step]]:
    transformers = transformers_or_refuse()
    from megatron_yuan.convert.hf_code.configuration_yuan import YuanConfig
    from megatron_yuan.convert.hf_code.modeling_yuan import YuanForCausalLM
    from megatron_yuan.convert.hf_config import write_config

    with device:
        exported: Any = YuanForCausalLM(YuanConfig(**write_config(config, dtype, None)))
    mixtral = mixtral_model(config, device)
    for number in range(config.model.num_layers):

        def scored(_module: Any, _inputs: Any, logits_TE: Tensor, number: int = number) -> Tensor:
            return torch.zeros_like(logits_TE).scatter_(1, choice.next(number, len(logits_TE)), 1.0)

        def chosen(_module: Any, _inputs: Any, out: Any, number: int = number) -> Any:
            return *out[:2], choice.next(number, len(out[2]))

        exported.model.layers[number].mlp.gate.register_forward_hook(scored)
        mixtral.model.layers[number].mlp.gate.register_forward_hook(chosen)
    version = transformers.__version__
    return {
        f"transformers {version}, exported": _of_transformers(exported.to(dtype).eval()),
        f"transformers {version}, Mixtral": _of_transformers(mixtral.to(dtype).eval()),
    }


def _of_transformers(model: Any) -> Callable[[Tensor], Step]:
    def start(_ids_BP: Tensor) -> Step:
        past: list[Any] = [None]

        def step(ids_BS: Tensor) -> Tensor:
            found = model(input_ids=ids_BS, past_key_values=past[0], use_cache=True, logits_to_keep=1)
            past[0] = found.past_key_values
            return found.logits[:, -1]

        return step

    return start


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()

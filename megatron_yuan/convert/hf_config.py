"""config.json of the published layout <-> our model config.

The published keys do not say how positions rotate: its code rotates hidden / heads channels of each head at base 10000
and computes angles, cos and sin in bfloat16. Those are the defaults here; the keys of OWN_KEYS, which our exports add,
override them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

import torch

from megatron_yuan.config.schema import Config, DataConfig, ModelConfig, OptimizerConfig
from megatron_yuan.config.validate import validate
from megatron_yuan.convert.names import ROUTER_TABLE
from megatron_yuan.errors import CheckpointError, ConfigError

OWN_KEYS = ("rotary_base", "rotary_percent", "rotary_ntk_factor", "rotary_rounding", "moe_router")
"""Keys of config.json named as our settings, which the published folders lack."""

_REQUIRED_VALUES: dict[str, Any] = {"hidden_act": "silu", "use_moe": True}
_REQUIRED_MOE_VALUES: dict[str, Any] = {"gated_linear_unit": True, "norm_topk_prob": True}
_ONLY_DEFAULTS: dict[str, Any] = {
    "rope_scaling": None,
    "rope_parameters": None,
    "attention_bias": False,
    "sliding_window": None,
    "quantization_config": None,
}
"""Keys of other families that would change what is computed; not supported."""
_DTYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def read_config(keys: Mapping[str, Any], source: str, has_router_of_attention: bool = True) -> Config:
    """Our config of the model that config.json describes; CheckpointError, beginning with `source`, where it cannot be.

    `has_router_of_attention` decides the router's kind where no key does.
    """
    read = _Reader(keys, source)
    read.require(_REQUIRED_VALUES)
    moe = _Reader(read.mapping("moe_config"), f"{source}, moe_config")
    moe.require(_REQUIRED_MOE_VALUES)
    hidden, heads = read.count("hidden_size"), read.count("num_attention_heads")
    projection = read.count("attention_projection_size", hidden)
    if projection % heads:
        raise CheckpointError(f"{source}: attention_projection_size {projection} is not divisible by {heads} heads")
    read.require({**_ONLY_DEFAULTS, "num_key_value_heads": heads})
    read.require({"rope_theta": read.number("rotary_base", 10_000.0)})
    rows = read.count("vocab_size")
    head_dim = projection // heads
    model = ModelConfig(
        num_layers=read.count("num_hidden_layers"),
        hidden_size=hidden,
        num_attention_heads=heads,
        kv_channels=head_dim,
        ffn_hidden_size=moe.count("ffn_hidden_size", keys.get("intermediate_size")),
        vocab_size=read.count("unpadded_vocab_size", rows),
        make_vocab_size_divisible_by=read.count("make_vocab_size_divisible_by", 1),
        max_position_embeddings=read.count("max_position_embeddings", 4096),
        untie_embeddings_and_output_weights=not read.choice("tie_word_embeddings", True, (True, False)),
        norm_epsilon=read.number("rms_norm_eps", 1e-6),
        rotary_base=read.number("rotary_base", 10_000.0),
        rotary_percent=read.number("rotary_percent", _percent(hidden // heads, head_dim, source, keys)),
        rotary_ntk_factor=read.number("rotary_ntk_factor", 1.0),
        rotary_rounding=read.choice("rotary_rounding", "all", _choices("rotary_rounding")),
        num_experts=moe.count("moe_num_experts"),
        moe_router=read.choice(
            "moe_router", "attention" if has_router_of_attention else "softmax", tuple(ROUTER_TABLE)
        ),
        moe_router_topk=moe.count("moe_top_k"),
        init_method_std=read.number("initializer_range", 0.02),
    )
    if model.padded_vocab_size != rows:
        raise CheckpointError(
            f"{source}: unpadded_vocab_size {model.vocab_size} does not pad to vocab_size {rows}, as after a resize "
            "of the embeddings; remove unpadded_vocab_size and make_vocab_size_divisible_by from it"
        )
    config = Config(
        model=model,
        data=DataConfig(
            seq_length=min(DataConfig.seq_length, model.max_position_embeddings), eod_id=_eod_id(read, model.vocab_size)
        ),
        optimizer=OptimizerConfig(bf16=keys.get("torch_dtype", keys.get("dtype")) != "float32"),
    )
    try:
        validate(config)
    except ConfigError as error:
        raise CheckpointError(f"{source}: {error}") from None
    return config


def write_config(
    config: Config, dtype: torch.dtype, eod_id: int | None, original: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The keys of config.json for `config`; with those of `original`, the folder that the weights came from, kept."""
    model = config.model
    keys: dict[str, Any] = {
        "architectures": ["YuanForCausalLM"],
        "model_type": "yuan",
        "hidden_act": "silu",
        "dropout": 0.0,
        "causal_mask": True,
        "use_cache": True,
        "use_flash_attention": False,
        "use_loss_mask": False,
        "reset_attention_mask": False,
        "reset_position_ids": config.data.reset_position_ids,
        "output_router_logits": False,
        "model_max_length": model.max_position_embeddings,
        **_token_ids(eod_id),
        **(original or {}),
        "vocab_size": model.padded_vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "attention_projection_size": model.attention_size,
        "max_position_embeddings": model.max_position_embeddings,
        "rms_norm_eps": model.norm_epsilon,
        "initializer_range": model.init_method_std,
        "tie_word_embeddings": not model.untie_embeddings_and_output_weights,
        "torch_dtype": _DTYPE_NAMES.get(dtype, "float32"),
        "use_moe": True,
        "moe_config": {
            **((original or {}).get("moe_config") or {}),
            "moe_num_experts": model.num_experts,
            "moe_top_k": model.moe_router_topk,
            "ffn_hidden_size": model.ffn_hidden_size,
            "norm_topk_prob": True,
            "gated_linear_unit": True,
        },
        **{name: getattr(model, name) for name in OWN_KEYS},
    }
    if model.vocab_size != model.padded_vocab_size:
        keys["unpadded_vocab_size"] = model.vocab_size
        keys["make_vocab_size_divisible_by"] = model.make_vocab_size_divisible_by
    return keys


def unlike_published(model: ModelConfig) -> list[str]:
    """What an export says in OWN_KEYS and the published code would not read: it would compute another network."""
    published = {
        "rotary_base": 10_000.0,
        "rotary_ntk_factor": 1.0,
        "rotary_rounding": "all",
        "moe_router": "attention",
    }
    unlike = [f"{name} {getattr(model, name)}" for name, value in published.items() if getattr(model, name) != value]
    if model.rotary_dim != model.hidden_size // model.num_attention_heads:
        unlike.append(f"{model.rotary_dim} rotated channels a head")
    return unlike


def _token_ids(eod_id: int | None) -> dict[str, int]:
    names = ("eod_token", "eod_token_id", "bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id")
    return {} if eod_id is None else dict.fromkeys(names, eod_id)


def _eod_id(read: _Reader, vocab_size: int) -> int | None:
    for name in ("eod_token_id", "eos_token_id", "eod_token"):
        value = read.keys.get(name)
        if type(value) is int and 0 <= value < vocab_size:
            return value
    return None


def _percent(rotary_dim: int, head_dim: int, source: str, keys: Mapping[str, Any]) -> float:
    """The share of a head that is `rotary_dim` channels of `head_dim`, exact under ModelConfig.rotary_dim."""
    if keys.get("rotary_percent") is not None:  # null is what transformers may write for a key that is unset
        return 1.0  # not asked for
    if rotary_dim > head_dim:
        raise CheckpointError(
            f"{source}: hidden_size / num_attention_heads = {rotary_dim} channels should rotate, but a head "
            f"(attention_projection_size / num_attention_heads) has {head_dim}; add rotary_percent to it"
        )
    percent = rotary_dim / head_dim
    while int(head_dim * percent) < rotary_dim:
        percent = math.nextafter(percent, 1.0)
    return percent


def _choices(name: str) -> tuple[Any, ...]:
    return get_args(get_type_hints(ModelConfig)[name])


@dataclass(frozen=True)
class _Reader:
    """Typed access to keys that somebody else wrote."""

    keys: Mapping[str, Any]
    source: str

    def count(self, name: str, default: Any = None) -> int:
        value = self._get(name, default)
        if type(value) is not int or value < 1:
            raise CheckpointError(f"{self.source}: {name} is {value!r}, but must be a whole number from 1 up")
        return value

    def number(self, name: str, default: float) -> float:
        value = self._get(name, default)
        if type(value) not in (int, float):
            raise CheckpointError(f"{self.source}: {name} is {value!r}, but must be a number")
        return float(value)

    def choice(self, name: str, default: Any, allowed: tuple[Any, ...]) -> Any:
        value = self._get(name, default)
        if not any(value is each or (value == each and type(value) is type(each)) for each in allowed):
            raise CheckpointError(f"{self.source}: {name} is {value!r}, but must be one of {allowed}")
        return value

    def mapping(self, name: str) -> Mapping[str, Any]:
        value = self._get(name, None)
        if not isinstance(value, dict):
            raise CheckpointError(f"{self.source}: {name} is {value!r}, but must be an object")
        return value

    def require(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if self.keys.get(name, value) != value:
                raise CheckpointError(
                    f"{self.source}: {name} is {self.keys[name]!r}; only {value!r}, as in this model, is supported"
                )

    def _get(self, name: str, default: Any) -> Any:
        value = self.keys.get(name)
        value = default if value is None else value
        if value is None:
            raise CheckpointError(f"{self.source} has no {name}")
        return value

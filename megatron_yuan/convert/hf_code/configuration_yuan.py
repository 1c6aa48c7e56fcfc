"""Configuration of Yuan 2.0-M32 and its family for transformers: the published keys, and those that say more."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

MOE_DEFAULTS = {
    "moe_num_experts": 32,
    "moe_top_k": 2,
    "ffn_hidden_size": 8192,
    "norm_topk_prob": True,
    "gated_linear_unit": True,
}


class YuanConfig(PretrainedConfig):
    """Keys as in the published config.json; the rotary ones and `moe_router` default to what the published code does.

    `attention_projection_size`: all heads together, which need not be `hidden_size`. `rotary_percent`: the share of a
    head that rotates; unset, hidden_size / num_attention_heads channels do. `rotary_rounding`: "none", "frequencies"
    (inverse frequencies in bfloat16) or "all" (angles, cosines and sines too).
    """

    model_type = "yuan"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]  # noqa: RUF012  (Trainer adds a list to it)

    def __init__(
        self,
        vocab_size: int = 135_040,
        hidden_size: int = 2048,
        intermediate_size: int = 8192,
        num_hidden_layers: int = 24,
        num_attention_heads: int = 16,
        attention_projection_size: int | None = None,
        hidden_act: str = "silu",
        max_position_embeddings: int = 4096,
        initializer_range: float = 0.02,
        rms_norm_eps: float = 1e-6,
        rotary_base: float = 10_000.0,
        rotary_percent: float | None = None,
        rotary_ntk_factor: float = 1.0,
        rotary_rounding: str = "all",
        moe_router: str = "attention",
        moe_config: dict[str, Any] | None = None,
        output_router_logits: bool = False,
        use_cache: bool = True,
        tie_word_embeddings: bool = True,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.attention_projection_size = attention_projection_size or hidden_size
        self.hidden_act = hidden_act
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.rms_norm_eps = rms_norm_eps
        self.rotary_base = rotary_base
        self.rotary_percent = rotary_percent
        self.rotary_ntk_factor = rotary_ntk_factor
        self.rotary_rounding = rotary_rounding
        self.moe_router = moe_router
        self.moe_config = {**MOE_DEFAULTS, "ffn_hidden_size": intermediate_size, **(moe_config or {})}
        self.output_router_logits = output_router_logits
        self.use_cache = use_cache
        # transformers 5 leaves this one to the classes; 4 takes it as a keyword.
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)
        self.tie_word_embeddings = tie_word_embeddings

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.attention_projection_size // self.num_attention_heads

    @property
    def rotary_dim(self) -> int:
        """Channels of a head that rotate."""
        if self.rotary_percent is None:
            return self.hidden_size // self.num_attention_heads
        return int(self.head_dim * self.rotary_percent)


YuanConfig.register_for_auto_class()

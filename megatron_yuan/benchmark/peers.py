"""The same shapes in Hugging Face transformers' Mixtral, in its fastest settings: what ours is measured against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from megatron_yuan.config.schema import Config
from megatron_yuan.errors import ConfigError
from megatron_yuan.model.moe.routers import Routing

EXPERTS_IMPLEMENTATIONS = ("grouped_mm", "eager")
"""Of transformers; its third, batched_mm, copies an expert's weights for every token."""


def mixtral_step(config: Config, device: torch.device) -> tuple[Callable[[], None], str]:
    """A training step of Mixtral of `config`'s shape, and its setting in words.

    Float32 weights under bfloat16 autocast (or plain float32), `grouped_mm` experts, fused AdamW, SDPA. Raises
    ConfigError where transformers is missing.
    """
    transformers = transformers_or_refuse()
    random = torch.Generator().manual_seed(config.training.seed)
    size = (config.training.micro_batch_size, config.data.seq_length)
    tokens = torch.randint(config.model.vocab_size, size, generator=random).to(device)
    with device:
        model = transformers.MixtralForCausalLM(_mixtral_config(transformers, config, "grouped_mm"))
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.optimizer.lr, fused=True)
    bf16 = config.optimizer.bf16

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_grad)
        optimizer.step()

    precision = "bf16 autocast, fp32 weights" if bf16 else "fp32"
    return step, f"transformers {transformers.__version__} Mixtral, grouped_mm experts, {precision}"


def mixtral_layers(
    config: Config, dtype: torch.dtype, autocast: bool, x_1TH: Tensor, upstream_1TH: Tensor, routing: Routing
) -> dict[str, Callable[[], None]]:
    """Forward and backward of Mixtral's experts, and with its router; tokens go where `routing` says.

    Weights are of `dtype`; `autocast` computes in bfloat16. With the router its own runs too: its choice is replaced.
    """
    transformers = transformers_or_refuse()
    block_of = transformers.models.mixtral.modeling_mixtral.MixtralSparseMoeBlock
    actions = {}
    for implementation in EXPERTS_IMPLEMENTATIONS:
        settings = _mixtral_config(transformers, config, implementation)
        settings._experts_implementation = implementation  # a whole model would set it for its parts
        with x_1TH.device:
            block = block_of(settings).to(dtype)
        torch.manual_seed(config.training.seed)
        for parameter in block.parameters():
            torch.nn.init.normal_(parameter, std=config.model.init_method_std)

        def instead(_module: Any, _inputs: Any, out: Any) -> Any:
            return out[0], routing.weights_TK.to(out[1]), routing.experts_TK

        def experts(x_1TH: Tensor, block: Any = block) -> Tensor:
            weights_TK = routing.weights_TK.detach().to(x_1TH.dtype).requires_grad_()
            return block.experts(x_1TH[0], routing.experts_TK, weights_TK).unsqueeze(0)

        block.gate.register_forward_hook(instead)
        actions[f"{implementation}, experts"] = _action(block, experts, autocast, x_1TH.to(dtype), upstream_1TH)
        actions[f"{implementation}, layer"] = _action(block, block, autocast, x_1TH.to(dtype), upstream_1TH)
    return actions


def _action(
    block: torch.nn.Module, forward: Callable[[Tensor], Tensor], autocast: bool, x: Tensor, upstream: Tensor
) -> Callable[[], None]:
    def action() -> None:
        block.zero_grad(set_to_none=True)
        leaf = x.detach().requires_grad_()
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=autocast):
            y = forward(leaf)
        y.backward(upstream.to(y.dtype))

    return action


def mixtral_model(config: Config, device: torch.device) -> Any:
    """Mixtral of `config`'s shape, `grouped_mm` experts, to be used for inference."""
    transformers = transformers_or_refuse()
    settings = _mixtral_config(transformers, config, "grouped_mm")
    settings.max_position_embeddings *= 2  # room for an answer
    with device:
        return transformers.MixtralForCausalLM(settings)


def transformers_or_refuse() -> Any:
    """The module transformers. ConfigError where it is missing."""
    try:
        import transformers
        import transformers.models.mixtral.modeling_mixtral
    except ImportError:
        raise ConfigError("--peers needs transformers 5. Fix: pip install 'transformers>=5,<6'") from None
    return transformers


def _mixtral_config(transformers: Any, config: Config, experts_implementation: str) -> Any:
    model = config.model
    return transformers.MixtralConfig(
        vocab_size=model.padded_vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.ffn_hidden_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_attention_heads,
        num_key_value_heads=model.num_attention_heads,
        head_dim=model.head_dim,
        num_local_experts=model.num_experts,
        num_experts_per_tok=model.moe_router_topk,
        max_position_embeddings=config.data.seq_length,
        tie_word_embeddings=not model.untie_embeddings_and_output_weights,
        output_router_logits=False,
        use_cache=False,
        attn_implementation="sdpa",
        experts_implementation=experts_implementation,
    )

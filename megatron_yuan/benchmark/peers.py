"""The same shape in Hugging Face transformers' Mixtral, in its fastest setting: what ours is measured against."""

from __future__ import annotations

from collections.abc import Callable

import torch

from megatron_yuan.config.schema import Config
from megatron_yuan.errors import ConfigError


def mixtral_step(config: Config, device: torch.device) -> tuple[Callable[[], None], str]:
    """A training step of Mixtral of `config`'s shape, and its setting in words.

    Float32 weights under bfloat16 autocast (or plain float32), `grouped_mm` experts, fused AdamW, SDPA. Raises
    ConfigError where transformers is missing.
    """
    try:
        import transformers
        from transformers import MixtralConfig, MixtralForCausalLM
    except ImportError:
        raise ConfigError("--peers needs transformers 5. Fix: pip install 'transformers>=5,<6'") from None
    model_config = config.model
    random = torch.Generator().manual_seed(config.training.seed)
    size = (config.training.micro_batch_size, config.data.seq_length)
    tokens = torch.randint(model_config.vocab_size, size, generator=random).to(device)
    with device:
        model = MixtralForCausalLM(
            MixtralConfig(
                vocab_size=model_config.padded_vocab_size,
                hidden_size=model_config.hidden_size,
                intermediate_size=model_config.ffn_hidden_size,
                num_hidden_layers=model_config.num_layers,
                num_attention_heads=model_config.num_attention_heads,
                num_key_value_heads=model_config.num_attention_heads,
                head_dim=model_config.head_dim,
                num_local_experts=model_config.num_experts,
                num_experts_per_tok=model_config.moe_router_topk,
                max_position_embeddings=config.data.seq_length,
                tie_word_embeddings=not model_config.untie_embeddings_and_output_weights,
                output_router_logits=False,
                use_cache=False,
                attn_implementation="sdpa",
                experts_implementation="grouped_mm",
            )
        )
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

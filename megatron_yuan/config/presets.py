"""The named starting points: `--preset NAME`, then a file, then flags.

What a preset does not name is the schema's default.
"""

from __future__ import annotations

from typing import Literal, get_args

from megatron_yuan.config.fields import perhaps
from megatron_yuan.config.schema import (
    CheckpointConfig,
    Config,
    DataConfig,
    LoggingConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    TrainingConfig,
)
from megatron_yuan.errors import ConfigError

PresetName = Literal["yuan2-m32", "ablation", "tiny", "bench-cpu"]


def preset(name: str) -> Config:
    """The config called `name`. Raises ConfigError for an unknown one."""
    if name not in PRESETS:
        known = ", ".join(PRESETS)
        raise ConfigError(f"--preset {name}: there is no such preset{perhaps(name, PRESETS)}; known are {known}.")
    return PRESETS[name]


YUAN2_M32 = Config(
    # The shape and every training setting of the published pretraining script (Yuan2.0-M32 repository,
    # examples/pretrain_yuan2.0_moe_2x32B.sh); 318,000 x 1536 x 4096 = 2.0e12 tokens.
    # rotary_rounding stays "none": the published training rounded its inverse frequencies to bfloat16 by an accident of
    # casting, which only weights trained that way need; a pretraining from scratch may keep exact phases in float32.
    model=ModelConfig(
        num_layers=24,
        hidden_size=2048,
        num_attention_heads=16,
        kv_channels=256,
        ffn_hidden_size=8192,
        vocab_size=134_960,
        num_experts=32,
        moe_router_topk=2,
        moe_router="attention",
        attention_dropout=0.1,  # --flash-attn-drop
    ),
    data=DataConfig(
        seq_length=4096, num_workers=2, reset_position_ids=True, fim_rate=0.5, fim_spm_rate=0.5, split="10,0,0"
    ),
    parallel=ParallelConfig(
        pipeline_model_parallel_size=8,
        recompute_granularity="full",
        recompute_num_layers=1,  # --recompute-method block: the first layer of each stage's three
    ),
    optimizer=OptimizerConfig(
        lr=1e-4, min_lr=1e-5, lr_decay_style="cosine", lr_decay_iters=318_000, lr_warmup_iters=6_400, weight_decay=0.1
    ),
    training=TrainingConfig(
        train_iters=318_000, micro_batch_size=2, global_batch_size=1536, eval_interval=1_000_000, eval_iters=10
    ),
    checkpoint=CheckpointConfig(save_interval=10_000),
    logging=LoggingConfig(log_interval=1),
)

ABLATION = Config(
    # The M32 paper's router ablation (Table 1: 826.0M parameters with the attention router, 30e9 training tokens). It
    # does not publish the shape: this one has 825.9M. Batch and learning rate are this project's choice.
    model=ModelConfig(
        num_layers=12, hidden_size=768, num_attention_heads=12, kv_channels=64, ffn_hidden_size=3072, num_experts=8
    ),
    data=DataConfig(seq_length=4096, reset_position_ids=True),
    optimizer=OptimizerConfig(lr=3e-4, min_lr=3e-5, lr_warmup_iters=500),
    training=TrainingConfig(train_iters=28_610, micro_batch_size=2, global_batch_size=256),
    checkpoint=CheckpointConfig(save_interval=1_000),
)

TINY = Config(
    # The quick start: minutes on two CPU cores. In float32, since not every CPU has bfloat16 arithmetic. Its documents
    # are short questions with answers, of which a row holds many: isolated, a tiny model learns them in fewer steps.
    model=ModelConfig(
        num_layers=4,
        hidden_size=128,
        num_attention_heads=4,
        kv_channels=32,
        ffn_hidden_size=256,
        vocab_size=1536,
        max_position_embeddings=256,
        num_experts=8,
        init_method_std=0.08,
    ),
    data=DataConfig(seq_length=256, reset_position_ids=True, reset_attention_mask=True, split="98,2,0"),
    optimizer=OptimizerConfig(lr=4e-3, min_lr=2e-4, lr_warmup_iters=20, bf16=False),
    training=TrainingConfig(train_iters=800, micro_batch_size=2, global_batch_size=8, eval_interval=200),
    checkpoint=CheckpointConfig(save_interval=200),
)

BENCH_CPU = Config(
    # What tools/benchmark.py measures on a CPU, beside other implementations of the same shape.
    model=ModelConfig(
        num_layers=4,
        hidden_size=512,
        num_attention_heads=4,
        kv_channels=256,
        ffn_hidden_size=1024,
        vocab_size=32_000,
        max_position_embeddings=1024,
        untie_embeddings_and_output_weights=True,
        num_experts=32,
        moe_router_topk=2,
    ),
    data=DataConfig(seq_length=1024),
    training=TrainingConfig(train_iters=10, micro_batch_size=2),
)

PRESETS: dict[str, Config] = dict(zip(get_args(PresetName), (YUAN2_M32, ABLATION, TINY, BENCH_CPU), strict=True))

"""Flags of the published Yuan 2.0-M32 scripts and of Megatron-LM that are not settings here: the meaning of each.

One table, one line a flag. Flags that are settings here (--num-layers, --lr ...) need no line. A line says one of:
- Renamed: the value goes to one of our settings, or the flag stands for our settings;
- Accepted: what it asks for is what always happens; with `only`, other values are refused;
- Refused: one sentence with the reason and what to use instead.
The scripts are examples/pretrain_yuan2.0_moe_2x32B.sh and its _sft.sh of the Yuan2.0-M32 repository.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Renamed:
    """Stands for other flags: `to` with the value, or, where the flag has none, the tokens `to` as they are."""

    to: tuple[str, ...]
    values: int = 1
    remark: str = ""


@dataclass(frozen=True)
class Accepted:
    """Needs nothing done. `only` lists the values that are so; None takes any. `why` is the remark or the refusal."""

    why: str
    values: int = 0
    only: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Refused:
    """Cannot be had; `why` says what replaces it. Values that follow are not looked at."""

    why: str


@dataclass(frozen=True)
class Special:
    """Depends on other flags; megatron_yuan.config.translate has a function for it."""

    values: int = 1


Rule = Renamed | Accepted | Refused | Special


def _one(value: str, why: str) -> Accepted:
    """Accepted with one of the values in `value` alone."""
    return Accepted(why, 1, tuple(value.split("|")))


_LAUNCHER = "it is torchrun's own and goes before the script: torchrun --nproc-per-node 8 pretrain_yuan_moe.py"
_NO_SHARDING = (
    "model and batch are spread by pipeline and data parallelism alone, as M32 was published; "
    "use more --pipeline-model-parallel-size"
)
_KERNEL = "torch's own fused kernels are used"
_LOGGED = "TensorBoard gets every figure that metrics.jsonl gets"
_BY_ITERS = "lengths are counted in steps; use --train-iters, --lr-decay-iters, --lr-warmup-iters"
_BPE = "text is tokenized by a SentencePiece model; use --tokenizer-model"

# fmt: off
PUBLISHED: dict[str, Rule] = {
    # The launcher's
    "--nproc-per-node": Refused(_LAUNCHER),
    "--nnodes": Refused(_LAUNCHER),
    "--node-rank": Refused(_LAUNCHER),
    "--master-addr": Refused(_LAUNCHER),
    "--master-port": Refused(_LAUNCHER),
    # Parallelism and memory
    "--tensor-model-parallel-size": _one("1", _NO_SHARDING),
    "--use-distributed-optimizer": Refused(
        "optimizer state is not sharded, as in M32's published pretraining; "
        "use more --pipeline-model-parallel-size, which divides weights and state alike (--dry-run shows the memory)"),
    "--recompute-method": Special(),
    # The network
    "--use-lf-gate": Accepted("attention always has the localized filter"),
    "--lf-conv2d-group": _one("1", "the filter mixes all channels"),
    "--lf-conv2d-num-pad": _one("1", "padding follows from training or inference by itself; drop the flag"),
    "--position-embedding-type": _one("rope", "positions are rotary"),
    "--no-embedding-dropout": Accepted("there is no dropout of embeddings"),
    "--flash-attn-drop": Special(),
    "--norm-dtype": _one("RMSNorm", "every norm is an RMSNorm"),
    "--disable-bias-linear": Accepted("no linear layer outside the filter has a bias"),
    "--use-flash-attn": Accepted("torch's scaled_dot_product_attention takes its flash kernel where it can"),
    "--swiglu": Accepted("experts are SwiGLU"),
    # Experts
    "--use-attention-router": Renamed(("--moe-router", "attention"), values=0),
    "--num-attention-router-heads": Accepted("routing is per token by construction, whatever the sequence length", 1),
    "--use-fp32-router": Accepted("router scores are always float32"),
    "--no-masked-softmax-fusion": Accepted(_KERNEL),
    "--moe-grouped-gemm": Renamed(("--moe-experts", "grouped"), values=0),
    # Fine-tuning
    "--sft-stage": Renamed(("--sft",), values=0,
        remark="--sft-stage is taken as --sft: loss on every answer and its end, where the published mask has gaps"),
    "--override-opt-param-scheduler": Accepted("the schedule always comes from the settings, never from a checkpoint"),
    "--train-reset": Renamed(("--finetune",), values=0,
        remark="--train-reset is taken as --finetune: step, data position, schedule and optimizer state start anew"),
    # Data
    "--tokenizer-type": _one("YuanTokenizer", _BPE),
    "--tokenizer-model-path": Special(),
    "--data-impl": _one("mmap", "indexed datasets are memory-mapped"),
    # Logs
    "--timing-log-level": _one("0|1|2", "every step's time is logged; profile with tools/benchmark.py"),
    "--tensorboard-log-interval": Accepted(_LOGGED, 1),
    "--tensorboard-queue-size": Accepted(_LOGGED, 1),
    "--log-timers-to-tensorboard": Accepted(_LOGGED),
    "--log-batch-size-to-tensorboard": Accepted(_LOGGED),
    "--log-memory-to-tensorboard": Accepted(_LOGGED),
    "--log-world-size-to-tensorboard": Accepted(_LOGGED),
}

MEGATRON: dict[str, Rule] = {
    # Pipeline layouts, as the published dense models' scripts and Megatron-LM spell them
    "--pipeline-model-parallel-method": Special(),
    "--pipeline-model-parallel-blocks": Special(-1),
    "--num-layers-per-virtual-pipeline-stage": Special(),
    "--num-virtual-stages-per-pipeline-rank": Renamed(("--virtual-pipeline-model-parallel-size",)),
    "--local-rank": Accepted("the rank is read from the environment that the launcher sets", 1),
    "--context-parallel-size": _one("1", _NO_SHARDING),
    "--expert-model-parallel-size": _one("1", _NO_SHARDING),
    "--expert-tensor-parallel-size": _one("1", _NO_SHARDING),
    "--sequence-parallel": Refused(_NO_SHARDING),
    "--overlap-param-gather": Refused("parameters are not sharded, so there is nothing to gather; drop it"),
    "--checkpoint-activations": Renamed(("--recompute-granularity", "full"), values=0),
    "--recompute-activations": Accepted("the router's scores and the experts' activation are always recomputed"),
    "--recompute-modules": Accepted("--recompute-granularity selective recomputes the experts' first product", -1),
    # The network
    "--normalization": _one("RMSNorm", "every norm is an RMSNorm"),
    "--layernorm-epsilon": Refused("the published code ignores it for RMSNorm; use --norm-epsilon"),
    "--use-rotary-position-embeddings": Accepted("positions are rotary"),
    "--no-position-embedding": Accepted("there are no learned positions"),
    "--group-query-attention": Refused("every head has its own keys and values, as published; drop it"),
    "--num-query-groups": Refused("every head has its own keys and values, as published; drop it"),
    "--moe-ffn-hidden-size": Renamed(("--ffn-hidden-size",)),
    "--moe-token-dispatcher-type": Accepted("all experts of a layer live on its stage, so tokens stay there", 1),
    "--moe-shared-expert-intermediate-size": Refused("shared experts are as wide as others; use --num-shared-experts"),
    "--moe-router-score-function": _one("softmax", "experts are weighed by the softmax of their scores"),
    # Precision and kernels
    "--fp16": Refused("half precision needs loss scaling that is not here; use --bf16, the published precision"),
    "--accumulate-allreduce-grads-in-fp32": Accepted("gradients are always summed in float32"),
    "--attention-softmax-in-fp32": Accepted(_KERNEL),
    "--attention-backend": Accepted("torch chooses the attention kernel", 1),
    "--transformer-impl": _one("local", "the model is plain torch"),
    "--use-mcore-models": Accepted("schedules and data parallelism are megatron-core's"),
    "--no-gradient-accumulation-fusion": Accepted(_KERNEL),
    "--no-persist-layer-norm": Accepted(_KERNEL),
    "--no-bias-gelu-fusion": Accepted(_KERNEL),
    "--no-bias-swiglu-fusion": Accepted(_KERNEL),
    "--no-bias-dropout-fusion": Accepted(_KERNEL),
    "--no-rope-fusion": Accepted(_KERNEL),
    "--no-async-tensor-model-parallel-allreduce": Accepted("there is no tensor parallelism"),
    "--use-cpu-initialization": Accepted("the same seed gives the same weights on every device and layout"),
    # The schedule
    "--optimizer": _one("adam", "the optimizer is AdamW"),
    "--train-samples": Refused(_BY_ITERS),
    "--lr-decay-samples": Refused(_BY_ITERS),
    "--lr-warmup-samples": Refused(_BY_ITERS),
    "--lr-warmup-fraction": Refused(_BY_ITERS),
    "--rampup-batch-size": Refused("the batch is constant, as published; use --global-batch-size"),
    # Data and checkpoints
    "--vocab-file": Refused(_BPE),
    "--merge-file": Refused(_BPE),
    "--dataloader-type": _one("single", "samples come in the order of the index, by samples consumed"),
    "--no-load-rng": Accepted("random draws are keyed by seed, step, layer and sample, so there is no state to load"),
    "--no-save-rng": Accepted("random draws are keyed by seed, step, layer and sample, so there is no state to save"),
    "--no-save-optim": Refused(
        "a checkpoint always holds what resuming needs; export the weights alone with tools/convert_checkpoint.py"),
    # Logs
    "--log-throughput": Accepted("the console line always has tokens/s and TFLOP/s"),
    "--wandb-save-dir": Refused("Weights & Biases writes into the run folder; use --save"),
}
# fmt: on

TABLE: dict[str, Rule] = {**PUBLISHED, **MEGATRON}

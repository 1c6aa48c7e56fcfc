"""Every setting of a run: frozen dataclasses, one sentence a field, named after Megatron-LM's arguments.

Leaf names are unique across sections, so that each field has one flat flag: `model.num_layers` is `--num-layers`.
This file knows neither torch nor megatron. Derived figures are properties; rules between settings: `validate.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

NOISY_TOPK_COEFF = 0.1  # Shazeer et al. 2017, table 6: the best row
RouterName = Literal["attention", "softmax", "noisy-top-k", "expert-choice"]


@dataclass(frozen=True)
class ModelConfig:
    """The network. The defaults of every field not named by a preset are the published Yuan 2.0-M32's."""

    num_layers: int = 24
    """Number of transformer layers; each has localized-filtering attention and a mixture of experts."""
    hidden_size: int = 2048
    """Width H of the residual stream."""
    num_attention_heads: int = 16
    """Number of attention heads (no grouping of keys and values)."""
    kv_channels: int | None = 256
    """Width of one attention head; unset, it is hidden-size / num-attention-heads."""
    ffn_hidden_size: int = 8192
    """Width F of one expert's SwiGLU between its two projections."""
    vocab_size: int = 134_960
    """Number of token ids in use; the embedding is padded up to a multiple of make-vocab-size-divisible-by."""
    make_vocab_size_divisible_by: int = 128
    """The embedding has this multiple of rows."""
    max_position_embeddings: int = 4096
    """Longest sequence that the model is meant for; generation warns beyond it."""
    untie_embeddings_and_output_weights: bool = False
    """Give the output head its own matrix instead of the embedding's."""
    norm_epsilon: float = 1e-6
    """Epsilon of every RMSNorm (the published code fixes it at 1e-6)."""
    rotary_base: float = 10_000.0
    """Base of the rotary frequencies: 10000 in pretraining, 40890 in the published 16K fine-tuning."""
    rotary_percent: float = 0.5
    """Share of each head's width that is rotated; the rest passes through."""
    rotary_ntk_factor: float = 1.0
    """Context extension s: the base becomes base * s^(D / (D - 2)), D the rotated width (40890 is s = 4)."""
    rotary_rounding: Literal["none", "frequencies", "all"] = "none"
    """Round to bfloat16 the inverse frequencies (as published training did), or angles, cos, sin too (published HF)."""
    num_experts: int = 32
    """Number E of experts in each layer."""
    moe_router: RouterName = "attention"
    """Router: attention (published: Q, K, V over experts), softmax (classical), noisy-top-k (noise and two losses in
    training), expert-choice (experts take tokens; looks at later tokens, so it scores text but cannot generate)."""
    moe_router_topk: int = 2
    """Number k of experts that a token visits."""
    moe_expert_capacity_factor: float | None = None
    """Expert choice alone: each expert takes this many times T x k / E of T tokens; unset, 1. Others drop nothing."""
    num_shared_experts: int = 0
    """Experts that every token visits with weight 1, besides the chosen ones; as wide as those."""
    moe_router_load_balancing_type: Literal["none", "aux_loss", "global_aux_loss"] = "none"
    """Switch loss with loads of each microbatch (aux_loss) or of the global batch so far; M32 was trained with none."""
    moe_aux_loss_coeff: float = 0.0
    """Weight of the Switch loss in each layer (0.01 is usual)."""
    moe_z_loss_coeff: float = 0.0
    """Weight of the mean of logsumexp(router logits)^2 in each layer (0.001 is usual)."""
    moe_router_enable_expert_bias: bool = False
    """Balance without a loss: a bias for each expert counts in its choice, and moves after each step."""
    moe_router_bias_update_rate: float = 1e-3
    """How far an expert's bias moves in a step, in units of its probability."""
    moe_importance_loss_coeff: float | None = None
    """Noisy top-k alone: weight of its importance loss; unset, 0.1."""
    moe_load_loss_coeff: float | None = None
    """Noisy top-k alone: weight of its load loss; unset, 0.1."""
    moe_experts: Literal["grouped", "looped"] = "grouped"
    """How experts are computed: grouped (fast) or looped (the slow, obvious oracle; to the bit between batches)."""
    attention_dropout: float = 0.0
    """Dropout of the attention probabilities in training (the published scripts' --flash-attn-drop)."""
    hidden_dropout: float = 0.0
    """Dropout of each sublayer's output before it joins the residual stream."""
    init_method_std: float = 0.02
    """Standard deviation of the initial weights; output projections get it divided by sqrt(2 x num-layers)."""

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.kv_channels or self.hidden_size // self.num_attention_heads

    @property
    def attention_size(self) -> int:
        """Width of all heads together."""
        return self.head_dim * self.num_attention_heads

    @property
    def experts_per_token(self) -> float:
        """Chosen experts that a token visits, on average where experts choose."""
        return self.moe_router_topk * self.capacity_factor

    @property
    def capacity_factor(self) -> float:
        """Of expert choice; 1 where every token chooses its k experts."""
        return 1.0 if self.moe_expert_capacity_factor is None else self.moe_expert_capacity_factor

    @property
    def importance_loss_coeff(self) -> float:
        """Of noisy top-k gating."""
        return NOISY_TOPK_COEFF if self.moe_importance_loss_coeff is None else self.moe_importance_loss_coeff

    @property
    def load_loss_coeff(self) -> float:
        """Of noisy top-k gating."""
        return NOISY_TOPK_COEFF if self.moe_load_loss_coeff is None else self.moe_load_loss_coeff

    @property
    def rotary_dim(self) -> int:
        """Number of leading channels of a head that are rotated."""
        return int(self.head_dim * self.rotary_percent)

    @property
    def padded_vocab_size(self) -> int:
        """Rows V of the embedding and of the output head."""
        multiple = self.make_vocab_size_divisible_by
        return -(-self.vocab_size // multiple) * multiple


@dataclass(frozen=True)
class DataConfig:
    """Where tokens come from and how they become samples."""

    data_path: tuple[str, ...] = ()
    """Prefixes of .bin/.idx pairs, each optionally preceded by its weight: PREFIX, or W1 PREFIX1 W2 PREFIX2 ..."""
    train_data_path: tuple[str, ...] = ()
    """Blend for training alone; replaces data-path and split."""
    valid_data_path: tuple[str, ...] = ()
    """Blend for validation alone, each set's loss reported apart; replaces data-path and split."""
    test_data_path: tuple[str, ...] = ()
    """Blend measured once, when the run ends, each set's loss apart; replaces the test part of data-path."""
    data_args_path: str | None = None
    """YAML file of sets with names, languages and weights (and validation and test sets); instead of the above."""
    split: str = "969,30,1"
    """Shares of data-path for training, validation and test."""
    tokenizer_model: str | None = None
    """SentencePiece model that made the data; needed for FIM, and copied into every checkpoint."""
    data_cache_path: str | None = None
    """Folder for index files; unset, it is beside the data."""
    verify_data: bool = True
    """Compare new or changed data with their passports, byte for byte, once (--no-verify-data does not)."""
    max_epochs: float = 4.0
    """Warn at the start where the run repeats a set more often than this."""
    seq_length: int = 4096
    """Tokens in a sample."""
    num_workers: int = 0
    """Background processes that prepare batches on each rank; 0 prepares them in the training process."""
    reset_position_ids: bool = False
    """Restart positions after each <eod> (the published scripts do)."""
    reset_attention_mask: bool = False
    """Isolate the documents of a packed row: attention, localized filter, positions (published training does not)."""
    eod_mask_loss: bool = False
    """Leave the loss on <eod> inputs out (published training keeps it)."""
    fim_rate: float = 0.0
    """Share of document segments rearranged for fill-in-the-middle; those cut at a sample's edge are left alone."""
    fim_spm_rate: float = 0.5
    """Share of those in suffix-prefix-middle order; the rest are prefix-suffix-middle."""
    fim_cut: Literal["character", "token"] = "character"
    """Where they are cut: between characters (published; words are cut in two and encoded anew) or between tokens."""
    sft: bool = False
    """Train on dialogues, question <sep> answer ...: whole ones in padded rows, loss on answers and their ends."""
    eod_id: int | None = None
    """Token id that ends a document; unset, the tokenizer's <eod>."""


@dataclass(frozen=True)
class ParallelConfig:
    """How the model and the batch are spread over processes: pipeline x data, nothing else."""

    pipeline_model_parallel_size: int = 1
    """Number of pipeline stages."""
    virtual_pipeline_model_parallel_size: int = 1
    """Model chunks that each pipeline stage holds; above 1 the schedule is interleaved."""
    pipeline_model_parallel_layout: str | None = None
    """Layers of each stage in pipeline order, such as 2,4,4,2 (stages x virtual entries); auto: such that their
    measured times are even, embedding and head counted; unset, all equal."""
    overlap_grad_reduce: bool = True
    """Start the all-reduce of a bucket of gradients as soon as it is complete, while backward goes on."""
    ddp_bucket_size: int | None = None
    """Parameters in a bucket of the gradient all-reduce; unset, megatron-core's rule."""
    distributed_backend: Literal["auto", "nccl", "gloo"] = "auto"
    """Communication library: auto is nccl with a GPU and gloo without."""
    distributed_timeout_minutes: float = 10.0
    """A collective that waits longer than this ends the run."""
    liveness_timeout_in_secs: float = 30.0
    """A process that gives no sign of life for so long is dead or frozen: all end, naming it; 0 waits for ever."""
    hang_timeout_in_mins: float = 10.0
    """A rank that stands still for so long in a step hangs: all end, naming it, and its stack is kept; 0 waits for
    ever. With several ranks, at most four fifths of distributed-timeout-minutes."""
    recompute_granularity: Literal["none", "selective", "full"] = "none"
    """Recompute in backward: selective, the experts' first product in every layer, which halves what M32's layers keep;
    full, whole layers. The router's scores and the experts' activation always are."""
    recompute_num_layers: int | None = None
    """With full recompute: how many layers of each model chunk (the first ones) are recomputed; unset, all."""


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, its schedule, and the precision of the arithmetic."""

    lr: float = 1e-4
    """Peak learning rate."""
    min_lr: float = 1e-5
    """Learning rate at the end of the decay."""
    lr_decay_style: Literal["cosine", "constant", "WSD"] = "cosine"
    """Shape after warmup: cosine, constant, or warmup-stable-decay."""
    lr_decay_iters: int | None = None
    """Steps until min-lr is reached; unset, train-iters."""
    lr_warmup_iters: int = 0
    """Steps of linear warmup from 0."""
    lr_wsd_decay_iters: int | None = None
    """With WSD: length of the last, decaying part; unset, a tenth of lr-decay-iters."""
    weight_decay: float = 0.1
    """Decoupled weight decay, on matrices alone (never on norms and biases)."""
    adam_beta1: float = 0.9
    """Decay rate of the first moment."""
    adam_beta2: float = 0.95
    """Decay rate of the second moment."""
    adam_eps: float = 1e-8
    """Added to the root of the second moment."""
    clip_grad: float = 1.0
    """Largest global gradient norm; 0 turns clipping off."""
    bf16: bool = True
    """Weights and arithmetic in bfloat16, with fp32 master weights and gradients; off, everything is float32."""
    use_apex_adam: bool = False
    """Step with NVIDIA apex's FusedAdam (it must be installed) instead of torch's fused AdamW."""


@dataclass(frozen=True)
class TrainingConfig:
    """The length and the rhythm of the run."""

    train_iters: int = 100
    """Optimizer steps in the run."""
    micro_batch_size: int = 1
    """Samples in one forward pass of one replica."""
    global_batch_size: int | None = None
    """Samples in an optimizer step over all replicas; unset, one microbatch for each replica."""
    seed: int = 1234
    """Seed of the weights, of the data order, and of every random draw in training."""
    eval_interval: int = 0
    """Steps between validations; 0 validates at the end alone, and not at all without validation data."""
    eval_iters: int = 10
    """Global batches in one validation."""
    eval_tasks: str | None = None
    """Tasks to measure the model on while it trains, such as mmlu,gsm8k (tools/evaluate.py --list); unset, none."""
    eval_tasks_interval: int = 0
    """Steps between measurements on eval-tasks; 0 measures at the end alone."""
    eval_tasks_limit: int = 100
    """Questions of each task in one measurement: its first."""
    eval_tasks_num_fewshot: int | None = None
    """Worked examples before each question, instead of the tasks' own numbers."""
    task_data: str = "data/eval"
    """Folder of the tasks' questions."""
    exit_interval: int | None = None
    """Save and stop at the next step that is a multiple of this, as if a time limit had come."""
    exit_duration_in_mins: float | None = None
    """Save and stop once the session has lasted this long, as before a job's time limit; unset, no limit."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where tensors live: auto takes a GPU where there is one."""


@dataclass(frozen=True)
class GuardConfig:
    """What keeps a run from learning what it should not."""

    guard_sigma: float = 0.0
    """Skip a step whose loss or gradient norm is this many sigma above the past (6 is usual); 0 skips what is not
    finite alone."""
    guard_window: int = 128
    """Accepted steps that are the past."""
    guard_max_skips: int = 10
    """Stop, with a diagnosis, after so many skipped steps in a row."""
    iterations_to_skip: tuple[str, ...] = ()
    """Steps to leave out by their numbers, such as 7 100-120: their data are passed over and nothing is computed."""
    skip_samples: tuple[str, ...] = ()
    """Training samples never to be seen, by their positions in the order, such as 7 100-120; the next come instead."""
    check_weight_hash_across_dp_replicas_interval: int | None = None
    """Steps between comparisons of the replicas' weights and optimizer states, to the bit; unset, never."""


@dataclass(frozen=True)
class CheckpointConfig:
    """What is kept, and where a run starts from."""

    save: str | None = None
    """Run folder for checkpoints, logs, metrics and pictures; unset, nothing is written."""
    load: str | None = None
    """Run folder, checkpoint or HF folder to start from; unset, the run folder itself if it holds a checkpoint."""
    save_interval: int = 0
    """Steps between checkpoints; 0 saves at the end alone."""
    save_retain: int | None = None
    """Keep only the newest so many checkpoints; unset, all, or with save-retain-interval only the newest."""
    save_retain_interval: int | None = None
    """Keep the checkpoint of every so many steps for ever, whatever save-retain says."""
    async_save: bool = False
    """Write checkpoints behind the training that goes on, from a copy of this rank's share of them in host memory."""
    other_data: bool = False
    """Go on in a run folder although data, their split, order or sample length are not those it was trained on."""
    ckpt_step: int | None = None
    """Load this step instead of the newest."""
    finetune: bool = False
    """Take the weights alone: step, optimizer state and data position start anew."""
    verify: bool = True
    """Compare the sha256 of every file that is loaded (--no-verify does not)."""
    load_optim: bool = True
    """Load the optimizer's state too (--no-load-optim leaves it out)."""


@dataclass(frozen=True)
class LoggingConfig:
    """What a run says, and to whom."""

    log_interval: int = 1
    """Steps between console lines."""
    log_experts_interval: int = 100
    """Steps between heat strips of the experts' load on the console, and pictures of it in TensorBoard; 0: never."""
    tensorboard_dir: str | None = None
    """Folder for TensorBoard events (extra 'tensorboard')."""
    wandb_project: str | None = None
    """Weights & Biases project (extra 'wandb')."""
    wandb_mode: Literal["offline", "online"] = "offline"
    """offline writes into the run folder, to be synced later."""
    wandb_exp_name: str | None = None
    """Name of the run in Weights & Biases."""
    peak_tflops: float | None = None
    """Peak TFLOP/s of one device for MFU; unset, the known figure of the GPU, or a measured GEMM on a CPU."""
    profile_step_start: int | None = None
    """First step to trace: what each rank does when, as a page and for Perfetto, in RUN/traces."""
    profile_step_end: int | None = None
    """Last step to trace."""
    use_pytorch_profiler: bool = False
    """Have torch.profiler record the kernels of these steps too, on profile-ranks."""
    profile_ranks: tuple[int, ...] = (0,)
    """Ranks whose kernels are recorded."""


@dataclass(frozen=True)
class Config:
    """A whole run, resolved: preset, then file, then flags."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

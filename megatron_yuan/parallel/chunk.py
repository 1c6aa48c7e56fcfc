"""A run of layers as megatron-core's schedules want to see it, and how it is wrapped for data parallelism.

Knows no Yuan: a chunk wraps any module that takes the previous stage's hidden states, or the microbatch on the first
stage.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from megatron_yuan.config.schema import Config
from megatron_yuan.mcore.parallel import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    MegatronModule,
    ModelType,
    TransformerConfig,
    finalize_model_grads,
    quiet,
)
from megatron_yuan.parallel.topology import Topology
from megatron_yuan.parallel.watch.schedule import ScheduleBeats


class PipelineChunk(MegatronModule):
    """Holds `part`, and the hidden states that the schedule received for it."""

    def __init__(
        self, part: nn.Module, tied_weight: nn.Parameter | None, config: TransformerConfig, chunk: int
    ) -> None:
        super().__init__(config=config)
        self.part = part
        self.received: Tensor | None = None
        self.vp_stage = chunk if config.virtual_pipeline_model_parallel_size else None
        # megatron asks for these by name: the schedules for the type, finalize_model_grads for the rest, so as to
        # sum the gradients of the two copies of a tied weight.
        self.model_type = ModelType.encoder_or_decoder
        self.pre_process = self.post_process = True
        self.share_embeddings_and_output_weights = tied_weight is not None
        self._tied_weight = [tied_weight]  # in a list, lest it be registered twice

    def set_input_tensor(self, tensors: list[Tensor | None] | Tensor | None) -> None:
        """Called by the schedule with what the previous stage sent."""
        self.received = tensors[0] if isinstance(tensors, list) else tensors

    def shared_embedding_or_output_weight(self) -> nn.Parameter | None:
        """This stage's copy of the tied weight."""
        return self._tied_weight[0]

    def forward(self, *args: object, **kwargs: object) -> object:
        """Run the part."""
        return self.part(*args, **kwargs)


def schedule_config(config: Config, topology: Topology) -> TransformerConfig:
    """megatron's view of the run: the only place that names its fields.

    The model itself is plain torch, so of this only what schedules, p2p and DDP read matters: the width and the
    dtype of what travels between stages, how it travels, and that gradients are sums over tokens.
    """
    model, on_gpu = config.model, topology.device.type == "cuda"
    interleaved = topology.vp_size > 1
    with quiet():
        return TransformerConfig(
            num_layers=model.num_layers,
            hidden_size=model.hidden_size,
            num_attention_heads=model.num_attention_heads,
            kv_channels=model.head_dim,
            pipeline_model_parallel_size=topology.pp_size,
            virtual_pipeline_model_parallel_size=topology.vp_size if interleaved else None,
            pipeline_dtype=torch.bfloat16 if config.optimizer.bf16 else torch.float32,
            bf16=config.optimizer.bf16,
            params_dtype=torch.bfloat16 if config.optimizer.bf16 else torch.float32,
            calculate_per_token_loss=True,  # losses and gradients are sums over tokens
            overlap_p2p_comm=interleaved,
            overlap_p2p_comm_warmup_flush=interleaved,
            batch_p2p_comm=on_gpu and not interleaved,
            batch_p2p_sync=on_gpu and not interleaved,
            # What gloo is still sending while the next pass goes on must stay where it is.
            deallocate_pipeline_outputs=on_gpu or not interleaved,
            use_cpu_initialization=not on_gpu,
            gradient_accumulation_fusion=False,
            masked_softmax_fusion=False,
            variable_seq_lengths=False,
            timers=ScheduleBeats(topology.pulse, topology.pp_size, topology.vp_size),
        )


def _finish_sums(chunks: list[DistributedDataParallel], _tokens: Tensor | None, **options: object) -> None:
    # Without the number of tokens, megatron spares its pass over all gradients: the optimizer divides as it steps.
    finalize_model_grads(chunks, None, **options)  # pyright: ignore[reportArgumentType]


def wrap_chunks(parts: Sequence[PipelineChunk], config: Config, topology: Topology) -> list[DistributedDataParallel]:
    """Wrap each chunk in megatron's DDP: fp32 sums of gradients in buckets, all-reduced while backward goes on."""
    transformer = parts[0].config
    wrapped = []
    for i, part in enumerate(parts):
        settings = DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            overlap_grad_reduce=config.parallel.overlap_grad_reduce and topology.dp_size > 1,
            bucket_size=config.parallel.ddp_bucket_size,
            use_distributed_optimizer=False,
        )
        wrapped.append(DistributedDataParallel(transformer, settings, part, disable_bucketing=i > 0))
    transformer.finalize_model_grads_func = _finish_sums
    if settings.overlap_grad_reduce:
        no_sync = [chunk.no_sync for chunk in wrapped]
        # A list where there are several chunks, as the interleaved schedule expects it.
        transformer.no_sync_func = no_sync if len(wrapped) > 1 else no_sync[0]  # pyright: ignore[reportAttributeAccessIssue]
    return wrapped

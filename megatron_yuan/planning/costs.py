"""Seconds of the pieces of a training step on one process: what the simulation is fed with.

They are measured (megatron_yuan.benchmark.costs, on the machine at hand), or modelled from a GPU's figures: a piece
takes what its arithmetic takes at the efficiency assumed, or what its bytes take, whichever is more.

Letters: T tokens of a microbatch, H hidden, A = heads x head width, F ffn, E experts, K chosen, V padded vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_yuan.config.schema import Config
from megatron_yuan.planning.accounting import router_rows
from megatron_yuan.planning.machine import Machine
from megatron_yuan.planning.memory import (
    GRADIENT_BYTES,
    element_bytes,
    expert_weights,
    makes_products_again,
    optimizer_bytes,
)
from megatron_yuan.planning.simulation import Cores


@dataclass(frozen=True)
class PassSeconds:
    """Of one microbatch, through one piece of the model."""

    forward: float
    backward: float


@dataclass(frozen=True)
class Costs:
    """Of one process, computing alone."""

    layer: PassSeconds
    embedding: PassSeconds
    head: PassSeconds
    """Final norm and loss; the head's gradient is made in the forward pass."""
    zero: float
    """Seconds a parameter to clear gradients."""
    norm: float
    """Seconds a parameter for the gradients' norm."""
    optimizer: float
    """Seconds a parameter of AdamW and the weights' refresh."""
    message_latency: float
    message: float
    """Seconds a byte of a message between stages."""
    reduce_latency: float
    reduce: float
    """Seconds a byte that a process sends in an all-reduce among replicas: 2 (n - 1) / n of what is reduced."""
    tied: float
    """Likewise between the two stages that hold a tied embedding."""
    cores: Cores | None
    """Shared by all processes; None: each has its own device."""
    source: str
    """Where all this comes from, for people."""
    microbatch: float = 0.0
    """Seconds of each microbatch on each chunk besides all this: batches, contexts, reports."""

    def message_seconds(self, byte_count: float) -> float:
        """Of a message of so many bytes."""
        return self.message_latency + byte_count * self.message

    def reduce_seconds(self, byte_count: float, parties: int) -> float:
        """Of an all-reduce of so many bytes among replicas."""
        return self.reduce_latency + byte_count * 2 * (parties - 1) / parties * self.reduce if parties > 1 else 0.0


def costs_on(machine: Machine, config: Config, replicas: int) -> Costs:
    """Modelled from the figures of `machine`.

    Ranks are placed as megatron-core places them, replicas of a stage side by side. The slowest link counts: of several
    machines some neighbouring stages are on different ones, and so are some replicas where their number does not divide
    a machine's GPUs. An all-reduce uses the card of each GPU in its ring.
    """
    model, size = config.model, element_bytes(config)
    tokens = config.training.micro_batch_size * config.data.seq_length
    gpus = int(machine.gpus_per_node.value)
    stages = config.parallel.pipeline_model_parallel_size
    bandwidth = machine.memory_bytes_per_second
    latency = machine.latency_us.value * 1e-6
    one_node = stages * replicas <= gpus
    cards = _cards(stages, replicas, gpus)
    ring = machine.link_bytes_per_second(cards is None, cards or 1)
    V, H = model.padded_vocab_size, model.hidden_size
    table = V * H
    return Costs(
        layer=_layer(config, machine, tokens),
        embedding=PassSeconds(
            2 * tokens * H * size / bandwidth, (2 * tokens * H * size + _gradient_bytes(table, size)) / bandwidth
        ),
        head=PassSeconds(
            3 * max(2 * tokens * table / machine.flops, table * size / bandwidth)
            + tokens * (V * (3 * size + 16) + 8 * H * size) / bandwidth,
            (2 * tokens * H * size + _gradient_bytes(table, size)) / bandwidth,
        ),
        zero=GRADIENT_BYTES / bandwidth,
        norm=GRADIENT_BYTES / bandwidth,
        optimizer=(GRADIENT_BYTES + 2 * optimizer_bytes(config) + size) / bandwidth,
        message_latency=latency,
        message=1 / machine.link_bytes_per_second(one_node),
        reduce_latency=latency,
        reduce=1 / ring,
        tied=1 / machine.link_bytes_per_second(one_node),
        cores=None,
        source=(
            f"modelled: matrix products at {machine.matmul_efficiency.value:.0%} of {machine.bf16_tflops.value:g} "
            f"TFLOP/s ({machine.matmul_efficiency.source}), the rest at {machine.memory_efficiency.value:.0%} of "
            f"{machine.memory_gb_per_s.value:g} GB/s ({machine.memory_efficiency.source})"
        ),
    )


def _cards(stages: int, replicas: int, gpus: int) -> int | None:
    """Fewest GPUs that replicas of a stage have in one of several machines; None: each stage's are all in one."""
    ends = ((stage * replicas, (stage + 1) * replicas - 1) for stage in range(stages))
    apart = ((first, last) for first, last in ends if first // gpus != last // gpus)
    return min((min(gpus - first % gpus, last % gpus + 1) for first, last in apart), default=None)


def _gradient_bytes(parameters: int, size: int) -> int:
    """A weight's gradient is written and read, and added to its float32 sum."""
    return parameters * (2 * size + 2 * GRADIENT_BYTES)


def _layer(config: Config, machine: Machine, tokens: int) -> PassSeconds:
    model, size = config.model, element_bytes(config)
    H, A, F, S = model.hidden_size, model.attention_size, model.ffn_hidden_size, config.data.seq_length
    K = model.experts_per_token + model.num_shared_experts
    weights = 4 * A * H + 4 * H * H + router_rows(model) * H
    # What is visited: with few tokens, not all experts.
    visited = expert_weights(model) * min(1.0, tokens * model.experts_per_token / model.num_experts)
    # Elements read and written a token: norms, filter, residuals, permutation 30H, rotation and attention 10A, SwiGLU.
    touched = tokens * (30 * H + 10 * A + 3 * K * F + 2 * K * (H + F)) * size

    def seconds(flops: float, byte_count: float) -> float:
        return max(flops / machine.flops, byte_count / machine.memory_bytes_per_second)

    dense = seconds(2 * weights * tokens, weights * size)
    scores = seconds(2 * (S + 1) * A * tokens, 4 * A * tokens * size)
    experts = seconds(6 * H * F * K * tokens, visited * size)
    passing = touched / machine.memory_bytes_per_second
    gradients = _gradient_bytes(weights + expert_weights(model), size) / machine.memory_bytes_per_second
    # Of the experts' three matrices, gate and up make the first product.
    again = experts * 2 / 3 if makes_products_again(config) else 0.0
    # Backward of flash attention makes the scores again: 2.5 times the forward pass.
    return PassSeconds(
        dense + scores + experts + passing, 2 * (dense + experts) + 2.5 * scores + 2 * passing + gradients + again
    )

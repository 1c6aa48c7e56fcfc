"""Memory of each pipeline stage in training, from the configuration alone.

Letters: T tokens of a microbatch, H hidden, A = heads x head width, F ffn, E experts, K chosen, V padded vocabulary.

Weights, gradients and optimizer state are exact. Activations are what the layers keep for backward with fused GPU
kernels, counted tensor by tensor; with `--device cpu`, what torch's own kernels keep (cpu_memory.py). Not
counted: the device's context, the communication library's own buffers, fragmentation.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_yuan.config.schema import Config, ModelConfig
from megatron_yuan.parallel.stages import layers_of_chunks
from megatron_yuan.planning.accounting import Parameters, count_parameters
from megatron_yuan.planning.cpu_memory import fullest_moment
from megatron_yuan.planning.order import order_of

GRADIENT_BYTES = 4
LOSS_CHUNK_TOKENS = 2048
"""Tokens whose logits exist at once: CHUNK_TOKENS of megatron_yuan.model.loss, which imports torch and so is not."""


@dataclass(frozen=True)
class StageMemory:
    """Bytes that one stage needs at its fullest."""

    stage: int
    layers: int
    parameters: int
    """Parameters held, a tied embedding's copy on the last stage included."""
    in_flight: int
    """Microbatches (of any of its chunks) whose activations are kept at once."""
    weights: int
    gradients: int
    optimizer: int
    activations: int
    buffers: int
    """Of messages: received and sent hidden states and gradients of one exchange."""
    working: int
    """Largest passing need: a layer's backward, or the loss of the last stage."""

    @property
    def state(self) -> int:
        """Weights, gradients and optimizer state: what there is before a token has come."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> int:
        """All of it."""
        return self.state + self.activations + self.buffers + self.working


def plan_memory(config: Config, replicas: int = 1) -> list[StageMemory]:
    """Memory of each stage, with `replicas` sharing the global batch."""
    model, parallel = config.model, config.parallel
    pp_size, vp_size = parallel.pipeline_model_parallel_size, parallel.virtual_pipeline_model_parallel_size
    placement = layers_of_chunks(model.num_layers, pp_size, vp_size, parallel.pipeline_model_parallel_layout)
    microbatches = microbatches_of(config, replicas)
    return [_stage(config, s, chunks, pp_size, vp_size, microbatches) for s, chunks in enumerate(placement)]


def microbatches_of(config: Config, replicas: int = 1) -> int:
    """Microbatches of a replica in one step."""
    return max(1, (config.training.global_batch_size or 0) // (config.training.micro_batch_size * replicas))


def element_bytes(config: Config) -> int:
    """Bytes of a weight and of an activation."""
    return 2 if config.optimizer.bf16 else 4


def optimizer_bytes(config: Config) -> int:
    """Bytes of optimizer state a parameter: two float32 moments, and with bf16 the float32 master weight."""
    return 12 if config.optimizer.bf16 else 8


def attention_widths(config: Config) -> int:
    """Times A that attention keeps a token: q, k, v, output; the output again where rows are attended one by one."""
    return 5 if config.model.attention_dropout > 0 or config.data.reset_attention_mask else 4


def layer_activation_bytes(config: Config) -> int:
    """Bytes that one layer keeps for the backward of one token.

    Elements: (6.5 + K) H + 4A + 2KF, that is: residual before attention, before experts and in the filter 3H; normed
    states 3H; between the convolutions H/2; rows sent to experts KH; q, k, v and attention's output 4A; gate and up
    2KF (what follows from them is made again in backward), and 2F for each shared expert; with selective recomputation
    neither. Rows or documents attended apart (dropout, isolated documents): A more. Router: 5E float32.
    """
    model, size = config.model, element_bytes(config)
    H, A, K = model.hidden_size, model.attention_size, model.experts_per_token
    kept = 0 if makes_products_again(config) else product_width(model)
    elements = 6 * H + H // 2 + K * H + attention_widths(config) * A + kept
    router = {"attention": 5, "noisy-top-k": 7}.get(model.moe_router, 1) * model.num_experts * 4
    return round(elements * size) + router


def product_width(model: ModelConfig) -> float:
    """Elements a token of the experts' first product: gate and up, 2F of each that it visits."""
    return 2 * (model.experts_per_token + model.num_shared_experts) * model.ffn_hidden_size


def makes_products_again(config: Config) -> bool:
    """Whether backward makes the experts' first product again, rather than being handed it."""
    return config.parallel.recompute_granularity == "selective"


def _stage(
    config: Config, stage: int, chunks: list[list[int]], pp_size: int, vp_size: int, microbatches: int
) -> StageMemory:
    parameters = count_parameters(config.model)
    is_first, is_last = stage == 0, stage == pp_size - 1
    held = sum(map(len, chunks)) * parameters.layer.total + edge_parameters(parameters, is_first, is_last)
    size, tokens = element_bytes(config), config.training.micro_batch_size * config.data.seq_length
    of_pass = [_chunk_activation_bytes(config, len(chunk)) for chunk in chunks]
    kept = order_of(stage, pp_size, vp_size, min(microbatches, 3 * pp_size)).in_flight(of_pass)  # then it is as before
    activations = sum(count * of_pass[c] for c, count in kept.items()) * tokens
    working = _layer_working_bytes(config, tokens)
    if is_last:
        # Final norm's input and output and the loss's gradient, of the one microbatch at the end; the head's gradient.
        activations += 3 * config.model.hidden_size * size * tokens + parameters.embedding * size
        working = max(working, _loss_working_bytes(config, tokens))
    buffers = 4 * config.model.hidden_size * size * tokens if pp_size > 1 else 0
    if config.training.device == "cpu":
        fullest = fullest_moment(config, stage, [len(chunk) for chunk in chunks], pp_size, microbatches)
        activations, working, buffers = fullest.kept, fullest.working, 0
    return StageMemory(
        stage=stage,
        layers=sum(map(len, chunks)),
        parameters=held,
        in_flight=sum(kept.values()),
        weights=held * size,
        gradients=held * GRADIENT_BYTES,
        optimizer=held * optimizer_bytes(config),
        activations=activations,
        buffers=buffers,
        working=working,
    )


def edge_parameters(parameters: Parameters, is_first: bool, is_last: bool) -> int:
    """Embedding, final norm and head; a tied head on another stage than the embedding is a copy of it."""
    head = (parameters.head or (0 if is_first else parameters.embedding)) if is_last else 0
    return is_first * parameters.embedding + is_last * parameters.final_norm + head


def recomputed_layers(config: Config, layers: int) -> int:
    """How many of a chunk's `layers` are computed again in backward."""
    if config.parallel.recompute_granularity != "full":
        return 0
    limit = config.parallel.recompute_num_layers
    return layers if limit is None else min(limit, layers)


def _chunk_activation_bytes(config: Config, layers: int) -> int:
    """Bytes a token that a chunk keeps of one microbatch: of a recomputed layer its input alone."""
    recomputed = recomputed_layers(config, layers)
    inputs = recomputed * config.model.hidden_size * element_bytes(config)
    return inputs + (layers - recomputed) * layer_activation_bytes(config)


def _layer_working_bytes(config: Config, tokens: int) -> int:
    """Backward of one layer: what it makes again, gradients of the experts' rows (3KF a token), and the gradients of
    all experts' weights (3EFH), which come together, before they are added to the float32 sums."""
    model, size = config.model, element_bytes(config)
    rows = round(1.5 * product_width(model) * size)
    again = {"none": 0, "selective": round(product_width(model) * size), "full": layer_activation_bytes(config)}
    return tokens * (rows + again[config.parallel.recompute_granularity]) + expert_weights(model) * size


def expert_weights(model: ModelConfig) -> int:
    """Elements of a layer's experts: gate, up and down of all, 3EFH, the shared among them."""
    return 3 * (model.num_experts + model.num_shared_experts) * model.ffn_hidden_size * model.hidden_size


def _loss_working_bytes(config: Config, tokens: int) -> int:
    """Logits of a chunk of tokens, also in float32, and the head's gradient as it is summed."""
    V, H, size = config.model.padded_vocab_size, config.model.hidden_size, element_bytes(config)
    chunk = min(tokens, LOSS_CHUNK_TOKENS)
    return chunk * V * (4 + size) + V * H * (4 + size)

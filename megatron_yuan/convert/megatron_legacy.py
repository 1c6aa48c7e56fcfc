"""The checkpoints of the published training code: iter_N/mp_rank_00_PPP/model_optim_rng.pt, a file a pipeline stage.

Shapes: H hidden, E experts, F ffn.

Layers are numbered from 0 on each stage. Experts lie in one matrix a projection, whose memory is [E, H, 2F] and
[E, F, H] (grouped GEMM's layout): each expert is the transpose of ours. With several stages the last one has a copy of
the tied embedding. Weights alone are read: the optimizer's state there is of tensors in another order.
"""

from __future__ import annotations

import math
import re
from argparse import Namespace
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_yuan.checkpoint.save import save_in_pieces
from megatron_yuan.checkpoint.state import RunState
from megatron_yuan.checkpoint.store import Pieces, TensorSpec
from megatron_yuan.config.schema import Config, ModelConfig, OptimizerConfig
from megatron_yuan.config.validate import validate
from megatron_yuan.config.yaml_file import to_yaml
from megatron_yuan.convert.hf import model_shapes, require_new
from megatron_yuan.convert.inert_pickle import load_inert
from megatron_yuan.errors import CheckpointError, ConfigError

FILE = "model_optim_rng.pt"
LATEST = "latest_checkpointed_iteration.txt"
_PART = re.compile(r"mp_rank_(\d{2})(?:_(\d{3}))?")
_LAYERS = "language_model.encoder.layers."
_SHOWN = 10
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

OUTSIDE = {
    "language_model.embedding.word_embeddings.weight": "embedding.weight",
    "language_model.encoder.final_layernorm.weight": "final_norm.weight",
    "language_model.output_layer.weight": "head.weight",
}
INSIDE = {
    "input_layernorm.weight": "input_norm.weight",
    "self_attention.lf_gate.conv1.weight": "attention.filter.conv1.weight",
    "self_attention.lf_gate.conv1.bias": "attention.filter.conv1.bias",
    "self_attention.lf_gate.conv2.weight": "attention.filter.conv2.weight",
    "self_attention.lf_gate.conv2.bias": "attention.filter.conv2.bias",
    "self_attention.lf_gate.output_layernorm.weight": "attention.filter.norm.weight",
    "self_attention.get_query_key.weight": "attention.query_key.weight",
    "self_attention.get_value.weight": "attention.value.weight",
    "self_attention.dense.weight": "attention.output.weight",
    "post_attention_layernorm.weight": "moe_norm.weight",
    "mlp.router.attention_router.query_key_value.weight": "moe.router.weight",
    "mlp.router.weight": "moe.router.weight",
    "mlp.experts.weight1": "moe.experts.gate_up",
    "mlp.experts.weight2": "moe.experts.down",
}
"""Theirs -> ours, behind the layer's number."""
TIED_COPIES = ("word_embeddings_for_head.weight", "word_embeddings.weight")
Stage = dict[str, Tensor]  # tensors by their flat names


def is_legacy(path: Path) -> bool:
    """Whether `path` is such a checkpoint, or a folder that holds one."""
    return path.is_dir() and ((path / LATEST).is_file() or any(_PART.fullmatch(each.name) for each in path.iterdir()))


def import_legacy(source: Path, run_folder: Path) -> Path:
    """Write the native checkpoint RUN/checkpoints/iter_0000000 of it; returns its path.

    Everything is held against the arguments kept in it, tensor by tensor, before the first byte is written. Weights
    keep their types; memory stays at about one expert, the files being mapped.
    """
    folder = _iteration(source)
    stages = [load_inert(part / FILE) for part in _parts(folder)]
    config = _config(stages[0].get("args"), folder)
    try:
        flat = [_flat(stage.get("model", {})) for stage in stages]
    except RecursionError:
        raise CheckpointError(f"{folder}: its dictionaries lie too deep within each other") from None
    tensors, copies = _by_our_names(flat, folder)
    shapes = model_shapes(config.model)
    _check(tensors, shapes, config.model, folder)
    for name, copy in copies.items():
        if not torch.equal(copy, tensors["embedding.weight"]):
            raise CheckpointError(
                f"{folder}: {name} of the last stage is unlike the embedding that it should be a copy of"
            )
    require_new(run_folder)
    files: dict[str, dict[str, Tensor | Pieces]] = {}
    for name in shapes:
        spec = TensorSpec(tensors[name].dtype, shapes[name])
        layer = ".".join(name.split(".")[:2]) if name.startswith("layers.") else name.partition(".")[0]
        files.setdefault("head" if layer in ("final_norm", "head") else layer, {})[name] = Pieces(
            spec, partial(_ours, name, tensors[name], shapes[name])
        )
    nbytes = sum(tensors[name].nbytes for name in shapes)
    return save_in_pieces(run_folder, RunState(0, 0), files.values(), nbytes, to_yaml(config))


def _ours(name: str, theirs: Tensor, shape: tuple[int, ...]) -> Iterator[Tensor]:
    """Pieces of our tensor, in row-major order."""
    if name.endswith((".gate_up", ".down")):
        E, rows, columns = shape
        for expert in theirs.view(E, columns, rows).unbind():
            yield expert.t().contiguous()
    elif theirs.dim() == 4:  # a convolution of width 2, [out, in, 2, 1]
        for tap in theirs.squeeze(-1).unbind(-1):
            yield tap.contiguous()
    else:
        yield theirs


def _their_shape(name: str, ours: tuple[int, ...]) -> tuple[int, ...]:
    if name.endswith(".gate_up"):
        return ours[2], ours[0] * ours[1]
    if name.endswith(".down"):
        return ours[0] * ours[2], ours[1]
    return (ours[1], ours[2], 2, 1) if name.endswith(("conv1.weight", "conv2.weight")) else ours


def _iteration(path: Path) -> Path:
    if (path / LATEST).is_file():
        text = (path / LATEST).read_text(errors="replace").strip()
        if text != "release" and not (text.isdecimal() and len(text) <= 15):
            raise CheckpointError(f"{path / LATEST} says {text[:50]!r}, which is no step")
        path = path / (text if text == "release" else f"iter_{int(text):07d}")
    if not path.is_dir():
        raise CheckpointError(f"{path} is missing, though {LATEST} names it")
    return path


def _parts(folder: Path) -> list[Path]:
    """The stages' folders, in order. CheckpointError where one is missing or tensors are split."""
    found = {}
    for each in folder.iterdir():
        match = _PART.fullmatch(each.name)
        if match:
            found[int(match[1]), int(match[2] or 0)] = each
    if any(tensor for tensor, _ in found):
        raise CheckpointError(f"{folder} is split by tensor parallelism (mp_rank_01...); merge it to mp_rank_00 first")
    stages = sorted(stage for _, stage in found)
    if stages != list(range(len(stages))) or not stages:
        raise CheckpointError(f"{folder} has the stages {stages}; one is missing (mp_rank_00_000, mp_rank_00_001, ...)")
    return [found[0, stage] for stage in stages]


def _flat(tree: Any, prefix: str = "") -> Stage:
    """Tensors of nested dictionaries, names joined by dots."""
    if isinstance(tree, Tensor):
        return {prefix: tree}
    if not isinstance(tree, Mapping):
        return {}  # extra states of modules
    flat: Stage = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}.{name}" if prefix else str(name))
    return flat


def _by_our_names(stages: list[Stage], folder: Path) -> tuple[Stage, Stage]:
    """(tensors by our names, copies of the tied embedding by theirs); each of theirs is used once."""
    ours: Stage = {}
    copies: Stage = {}
    first = 0
    for number, stage in enumerate(stages):
        layers = set()
        for name, tensor in stage.items():
            local, _, rest = name.removeprefix(_LAYERS).partition(".")
            if name in TIED_COPIES and number > 0:
                copies[name] = tensor
                continue
            if name in OUTSIDE:
                mine = OUTSIDE[name]
            elif name.startswith(_LAYERS) and local.isdecimal() and rest in INSIDE:
                layers.add(int(local))
                mine = f"layers.{first + int(local)}.{INSIDE[rest]}"
            else:
                raise CheckpointError(f"{folder}, stage {number}: the tensor {name[:200]} is unknown")
            if mine in ours:
                raise CheckpointError(f"{folder}, stage {number}: {name} comes a second time")
            ours[mine] = tensor
        first += max(layers, default=-1) + 1
    return ours, copies


def _check(tensors: Stage, shapes: Mapping[str, tuple[int, ...]], model: ModelConfig, folder: Path) -> None:
    problems = [f"{name}: missing" for name in shapes if name not in tensors]
    problems += [f"{name}: not in the model of its arguments" for name in tensors if name not in shapes]
    for name in shapes.keys() & tensors.keys():
        wanted, found = _their_shape(name, shapes[name]), tuple(tensors[name].shape)
        tensor = tensors[name]
        if found != wanted:
            problems.append(f"{name}: {list(found)}, should be {list(wanted)}")
        elif tensor.dtype not in FLOATS or tensor.layout != torch.strided or tensor.device.type != "cpu":
            problems.append(f"{name}: {tensor.dtype} ({tensor.layout}, {tensor.device}) is no type of weights")
        elif not tensor.is_contiguous():
            problems.append(f"{name}: its values are not in row-major order")
    if problems:
        more = [f"... and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        head = f"{folder} does not hold the model of its arguments, {len(problems)} tensors differ:"
        raise CheckpointError("\n  ".join([head, *sorted(problems)[:_SHOWN], *more]))


def _config(arguments: Any, folder: Path) -> Config:
    """Our settings from the Namespace that the file keeps."""
    if not isinstance(arguments, Namespace):
        raise CheckpointError(f"{folder}: the first stage keeps no arguments (args), so the model's shape is unknown")
    kept = vars(arguments)

    def number(name: str, default: float | None = None) -> Any:
        value = kept.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise CheckpointError(f"{folder}: its argument {name} is {value!r}, but must be a number")
        return value

    def count(name: str, default: int | None = None) -> int:
        value = number(name, default)
        if not (math.isfinite(value) and value == int(value)):
            raise CheckpointError(f"{folder}: its argument {name} is {value!r}, but must be a whole number")
        return int(value)

    hidden, heads = count("hidden_size"), count("num_attention_heads")
    head_dim = count("kv_channels", hidden // max(1, heads))
    longest = count("max_position_embeddings", 4096)
    model = ModelConfig(
        num_layers=count("num_layers"),
        hidden_size=hidden,
        num_attention_heads=heads,
        kv_channels=head_dim,
        ffn_hidden_size=count("ffn_hidden_size", 4 * hidden),
        vocab_size=count("padded_vocab_size"),
        make_vocab_size_divisible_by=1,
        max_position_embeddings=longest,
        untie_embeddings_and_output_weights=bool(kept.get("untie_embeddings_and_output_weights", False)),
        rotary_base=float(number("rotary_base", 10_000)),
        rotary_percent=float(number("rotary_percent", 0.5)),
        rotary_rounding="frequencies",  # as the published training did
        num_experts=count("num_experts"),
        moe_router="attention" if kept.get("use_attention_router", True) else "softmax",
        moe_router_topk=count("moe_router_topk", 2),
        init_method_std=float(number("init_method_std", 0.02)),
    )
    config = Config(model=model, optimizer=OptimizerConfig(bf16=bool(kept.get("bf16", True))))
    try:
        validate(config)
    except ConfigError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    return config

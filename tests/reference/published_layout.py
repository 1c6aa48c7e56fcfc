"""The oracle's weights in the published Hugging Face layout, written down independently of the package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.reference.yuan import Shape


def config_json(shape: Shape, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """The published keys (and, where the shape needs them, ours for rotary positions and the router)."""
    keys: dict[str, Any] = {
        "architectures": ["YuanForCausalLM"],
        "model_type": "yuan",
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "attention_projection_size": shape.heads * shape.head_dim,
        "max_position_embeddings": 256,
        "hidden_act": "silu",
        "rms_norm_eps": shape.eps,
        "tie_word_embeddings": shape.tied,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "use_moe": True,
        "eod_token_id": 7,
        "sep_token": 4,
        "moe_config": {
            "moe_num_experts": shape.experts,
            "moe_top_k": shape.chosen,
            "ffn_hidden_size": shape.ffn,
            "gated_linear_unit": True,
            "norm_topk_prob": True,
        },
    }
    if shape.rotary_dim != shape.hidden // shape.heads:
        keys["rotary_percent"] = shape.rotary_dim / shape.head_dim
    if shape.rounding != "all":
        keys["rotary_rounding"] = shape.rounding
    return keys


def published(weights: Mapping[str, Tensor], shape: Shape, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """All tensors under their published names."""
    ours = {name: tensor.detach().to(dtype) for name, tensor in weights.items()}
    theirs = {
        "model.embed_tokens.weight": ours["embedding.weight"],
        "model.norm.weight": ours["final_norm.weight"],
        "lm_head.weight": ours["embedding.weight" if shape.tied else "head.weight"].clone(),
    }
    A = shape.heads * shape.head_dim
    for i in range(shape.layers):
        of = {name.removeprefix(f"layers.{i}."): each for name, each in ours.items() if name.startswith(f"layers.{i}.")}
        layer = {
            "input_layernorm.weight": of["input_norm.weight"],
            "post_attention_layernorm.weight": of["moe_norm.weight"],
            "self_attn.q_proj.weight": of["attention.query_key.weight"][:A],
            "self_attn.k_proj.weight": of["attention.query_key.weight"][A:],
            "self_attn.v_proj.weight": of["attention.value.weight"],
            "self_attn.o_proj.weight": of["attention.output.weight"],
            "self_attn.lf_gate.output_layernorm.weight": of["attention.filter.norm.weight"],
        }
        for conv in ("conv1", "conv2"):
            taps = of[f"attention.filter.{conv}.weight"]
            layer[f"self_attn.lf_gate.{conv}.weight"] = torch.stack((taps[0], taps[1]), dim=-1)[..., None]
            layer[f"self_attn.lf_gate.{conv}.bias"] = of[f"attention.filter.{conv}.bias"]
        if shape.router == "attention":
            for n, name in enumerate(("query", "key", "value")):
                rows = slice(n * shape.experts, (n + 1) * shape.experts)
                layer[f"mlp.gate.{name}.weight"] = of["moe.router.weight"][rows]
        else:
            layer["mlp.gate.weight"] = of["moe.router.weight"]
        for e in range(shape.experts):
            layer[f"mlp.experts.{e}.w1.weight"] = of["moe.experts.gate_up"][e]
            layer[f"mlp.experts.{e}.w2.weight"] = of["moe.experts.down"][e]
        theirs.update({f"model.layers.{i}.{name}": tensor for name, tensor in layer.items()})
    return {name: tensor.contiguous().clone() for name, tensor in theirs.items()}


def write_folder(
    path: Path, tensors: Mapping[str, Tensor], keys: Mapping[str, Any], files: int = 1, torch_files: bool = False
) -> Path:
    """A Hugging Face folder: config.json, and the tensors in so many safetensors (or torch .bin) files."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(keys))
    stem, ending = ("pytorch_model", "bin") if torch_files else ("model", "safetensors")
    groups = [dict(list(tensors.items())[n::files]) for n in range(files)]
    names = [f"{stem}-{n + 1:05d}-of-{files:05d}.{ending}" for n in range(files)] if files > 1 else [f"{stem}.{ending}"]
    for name, group in zip(names, groups, strict=True):
        if torch_files:
            torch.save(group, path / name)
        else:
            save_file(group, path / name, {"format": "pt"})
    if files > 1:
        where = {tensor: name for name, group in zip(names, groups, strict=True) for tensor in group}
        (path / f"{stem}.{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return path

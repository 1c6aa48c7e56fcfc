"""A checkpoint in the published training code's layout, made here, becomes a native one to the bit and runs nothing."""

from __future__ import annotations

import argparse
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import megatron_yuan
from megatron_yuan.config.schema import Config, ModelConfig
from megatron_yuan.convert.megatron_legacy import FILE, LATEST, import_legacy, is_legacy
from megatron_yuan.errors import CheckpointError
from megatron_yuan.inference.model import LanguageModel
from megatron_yuan.model.initialize import initialize

MODEL = ModelConfig(
    num_layers=4,
    hidden_size=16,
    num_attention_heads=2,
    kv_channels=16,
    ffn_hidden_size=12,
    vocab_size=40,
    make_vocab_size_divisible_by=1,
    num_experts=4,
    rotary_rounding="frequencies",
)


def theirs_of(weights: dict[str, Tensor], layer: int, local: int) -> dict[str, Tensor]:
    """One layer under the published training code's names, with experts as grouped GEMM has them."""
    w = {name.removeprefix(f"layers.{layer}."): each for name, each in weights.items() if f"layers.{layer}." in name}
    E, H, F = MODEL.num_experts, MODEL.hidden_size, MODEL.ffn_hidden_size
    named = {
        "input_layernorm.weight": w["input_norm.weight"],
        "self_attention.get_query_key.weight": w["attention.query_key.weight"],
        "self_attention.get_value.weight": w["attention.value.weight"],
        "self_attention.dense.weight": w["attention.output.weight"],
        "self_attention.lf_gate.output_layernorm.weight": w["attention.filter.norm.weight"],
        "post_attention_layernorm.weight": w["moe_norm.weight"],
        "mlp.router.attention_router.query_key_value.weight": w["moe.router.weight"],
        "mlp.experts.weight1": w["moe.experts.gate_up"].transpose(1, 2).reshape(H, E * 2 * F).clone(),
        "mlp.experts.weight2": w["moe.experts.down"].transpose(1, 2).reshape(E * F, H).clone(),
    }
    for i in (1, 2):
        conv = w[f"attention.filter.conv{i}.weight"]
        named[f"self_attention.lf_gate.conv{i}.weight"] = conv.permute(1, 2, 0).unsqueeze(-1).contiguous()
        named[f"self_attention.lf_gate.conv{i}.bias"] = w[f"attention.filter.conv{i}.bias"]
    return {f"layers.{local}.{name}": each for name, each in named.items()}


@pytest.fixture
def model() -> LanguageModel:
    model = LanguageModel(Config(model=MODEL))
    initialize(model, MODEL, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture
def legacy(model, tmp_path) -> Path:
    """Two stages of two layers."""
    weights = {name: each.detach() for name, each in model.named_parameters()}
    arguments = argparse.Namespace(
        num_layers=4, hidden_size=16, num_attention_heads=2, kv_channels=16, ffn_hidden_size=12, num_experts=4,
        padded_vocab_size=40, moe_router_topk=2, rotary_percent=0.5, use_attention_router=True, bf16=False,
        params_dtype=torch.float32, max_position_embeddings=4096,
    )  # fmt: skip
    for stage in (0, 1):
        encoder: dict[str, Tensor] = {}
        for local in (0, 1):
            encoder |= theirs_of(weights, 2 * stage + local, local)
        body: dict = {"language_model": {"encoder": encoder}}
        if stage == 0:
            body["language_model"]["embedding"] = {"word_embeddings": {"weight": weights["embedding.weight"]}}
        else:
            encoder["final_layernorm.weight"] = weights["final_norm.weight"]
            body["word_embeddings_for_head"] = {"weight": weights["embedding.weight"].clone()}
        part = tmp_path / "megatron" / "iter_0000012" / f"mp_rank_00_{stage:03d}"
        part.mkdir(parents=True)
        state = {"np_rng_state": np.random.RandomState(0).get_state(), "cuda_rng_state": torch.zeros(4)}
        content = {"args": arguments, "model": body, "rng_state": [state], "optimizer": {"fp32": torch.ones(3)}}
        torch.save(content, part / FILE)
    (tmp_path / "megatron" / LATEST).write_text("12")
    return tmp_path / "megatron"


def change(legacy: Path, stage: int, edit) -> None:
    path = legacy / "iter_0000012" / f"mp_rank_00_{stage:03d}" / FILE
    content = torch.load(path, weights_only=False)
    edit(content["model"])
    torch.save(content, path)


def test_weights_are_equal_to_the_bit_and_so_are_logits(legacy, model, tmp_path):
    assert is_legacy(legacy)
    import_legacy(legacy, tmp_path / "run")
    loaded = megatron_yuan.load(tmp_path / "run")
    for name, parameter in model.named_parameters():
        assert torch.equal(loaded.state_dict()[name].float(), parameter), name
    ids = torch.arange(10).unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).float(), model(ids), rtol=1e-6, atol=1e-6)


class Bomb:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_pickle_is_refused_by_name_and_never_run(legacy, tmp_path):
    path = legacy / "iter_0000012" / "mp_rank_00_001" / FILE
    for write in (torch.save, lambda content, to: to.write_bytes(pickle.dumps(content))):
        write({"args": Bomb(str(tmp_path / "boom"))}, path)
        with pytest.raises(CheckpointError):
            import_legacy(legacy, tmp_path / "run")
        assert not (tmp_path / "boom").exists() and not (tmp_path / "run").exists()


def retype(model, change):
    encoder = model["language_model"]["encoder"]
    encoder["layers.0.post_attention_layernorm.weight"] = change(encoder["layers.0.post_attention_layernorm.weight"])


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("hidden_size", 16.5, "must be a whole number"),
        ("num_layers", 10**9, "must be at most 10000"),
        ("hidden_size", 10**18, "below 2\\^31"),
        ("hidden_size", float("nan"), "must be a whole number"),
    ],
)
def test_an_absurd_argument_is_refused_before_a_model_is_counted(legacy, tmp_path, name, value, says):
    path = legacy / "iter_0000012" / "mp_rank_00_000" / FILE
    content = torch.load(path, weights_only=False)
    setattr(content["args"], name, value)
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=says):
        import_legacy(legacy, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda m: m["language_model"]["encoder"].pop("layers.1.mlp.experts.weight2"), "missing"),
        (lambda m: m["language_model"]["encoder"].update({"layers.0.extra": torch.ones(1)}), "unknown"),
        (
            lambda m: m["language_model"]["encoder"].update({"layers.0.input_layernorm.weight": torch.ones(3)}),
            "should be",
        ),
        (lambda m: m["word_embeddings_for_head"].update(weight=torch.zeros(40, 16)), "unlike the embedding"),
        (lambda m: retype(m, lambda tensor: tensor.to(torch.float8_e4m3fn)), "no type of weights"),
        (lambda m: retype(m, lambda tensor: tensor.to("meta")), "no type of weights"),
        (lambda m: retype(m, lambda tensor: torch.zeros(1).expand(16)), "not in row-major order"),
        (lambda m: m.update(itself=m), "too deep"),
    ],
)
def test_every_tensor_is_accounted_for(legacy, tmp_path, edit, says):
    change(legacy, 1, edit)
    with pytest.raises(CheckpointError, match=says):
        import_legacy(legacy, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_missing_stage_and_a_cut_file_are_named(legacy, tmp_path):
    path = legacy / "iter_0000012" / "mp_rank_00_001" / FILE
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(CheckpointError, match="damaged"):
        import_legacy(legacy, tmp_path / "run")
    first = legacy / "iter_0000012" / "mp_rank_00_000"
    first.rename(first.with_name("mp_rank_00_002"))
    with pytest.raises(CheckpointError, match="one is missing"):
        import_legacy(legacy, tmp_path / "run")


def test_tensor_parallel_parts_are_refused(legacy, tmp_path):
    (legacy / "iter_0000012" / "mp_rank_01_000").mkdir()
    with pytest.raises(CheckpointError, match="merge it"):
        import_legacy(legacy, tmp_path / "run")

"""The published code's own figures, on tiny random weights: scores, gradients, greedy tokens, and weights both ways."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

import megatron_yuan
from megatron_yuan.convert.hf import import_hf
from megatron_yuan.convert.hf_export import export_hf
from megatron_yuan.convert.names import HEAD, matches
from megatron_yuan.inference.model import LanguageModel
from tests.shared import SHARED

pytestmark = pytest.mark.skipif(not (SHARED / "golden").is_dir(), reason="../shared/golden is not beside the clone")
MODELS = ("yuan_moe_tiny", "yuan_moe_32experts")


@pytest.fixture(params=MODELS)
def golden(request: pytest.FixtureRequest) -> Path:
    return SHARED / "golden" / request.param


@pytest.fixture
def folder(golden: Path, tmp_path: Path) -> Path:
    """The Hugging Face folder alone, without the figures beside it."""
    made = tmp_path / "hf"
    made.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(golden / name, made)
    return made


@pytest.fixture(params=["hf", "native"])
def model(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> LanguageModel:
    if request.param == "native":
        import_hf(folder, tmp_path / "run")
        return megatron_yuan.load(tmp_path / "run")
    return megatron_yuan.load(folder, dtype="fp32", device="cpu")


def test_every_score_is_the_published_codes(model: LanguageModel, golden: Path) -> None:
    figures = load_file(golden / "activations.safetensors")
    logits = model(figures["input_ids"])
    assert logits.shape == figures["logits"].shape
    assert (logits - figures["logits"]).abs().max() < 1e-4


def test_loss_and_every_gradient_are_the_published_codes(model: LanguageModel, golden: Path) -> None:
    figures, expected = load_file(golden / "activations.safetensors"), load_file(golden / "gradients.safetensors")
    ids_BS = figures["input_ids"]
    loss = F.cross_entropy(model(ids_BS)[:, :-1].flatten(0, 1), ids_BS[:, 1:].flatten())
    assert abs(loss.item() - float(figures["loss"])) < 1e-5
    loss.backward()
    expected["model.embed_tokens.weight"] += expected.pop(HEAD)  # equal values, but leaves of their own there
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    compared = set()
    for match in matches(model.config):
        gradient = gradients.pop(match.ours)
        assert gradient is not None
        for name, part in match.split(gradient).items():
            if name in expected:
                assert relative_error(part, expected[name]) < 1e-3, name
                compared.add(name)
            else:
                assert ".experts." in name and not part.any(), f"{name}: only an expert without tokens has no gradient"
    assert compared == expected.keys() and not gradients


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp(min=1e-12))


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_tokens_are_the_published_codes(model: LanguageModel, golden: Path, use_cache: bool) -> None:
    expected = load_file(golden / "activations.safetensors")["greedy_output_ids"]
    assert torch.equal(model.generate(expected[:, :6], max_new_tokens=16, use_cache=use_cache), expected)


def test_greedy_tokens_stay_the_same_beside_shorter_and_longer_prompts(model: LanguageModel, golden: Path) -> None:
    expected = load_file(golden / "activations.safetensors")["greedy_output_ids"][0].tolist()
    prompts = [expected[:2], expected[:6], expected[:13]]
    rows = model.generate_batch(prompts, max_new_tokens=16, stop_ids=())
    assert rows[1] == expected[6:]
    assert rows[2][:9] == expected[13:]


def test_weights_come_back_from_the_native_format_to_the_bit(folder: Path, tmp_path: Path) -> None:
    import_hf(folder, tmp_path / "run")
    export_hf(tmp_path / "run", tmp_path / "back")
    before, after = (load_file(each / "model.safetensors") for each in (folder, tmp_path / "back"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor.view(torch.int32), after[name].view(torch.int32)), name

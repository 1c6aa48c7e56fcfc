"""The published layout, in and out: bits, names, files, and what is refused. Every folder is made by hand."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from megatron_yuan.checkpoint.load import open_checkpoint
from megatron_yuan.config.schema import ModelConfig
from megatron_yuan.config.yaml_file import from_yaml
from megatron_yuan.convert.hf import check_folder, import_hf, load_hf, model_shapes
from megatron_yuan.convert.hf_export import export_hf
from megatron_yuan.convert.hf_folder import open_hf_folder
from megatron_yuan.convert.names import check_publishable
from megatron_yuan.errors import CheckpointError
from tests.reference import yuan
from tests.reference.published_layout import config_json, published, write_folder

TIED = yuan.Shape(
    layers=2, hidden=24, heads=2, head_dim=20, ffn=10, experts=3, chosen=2, vocab=30, rotary_dim=12, rounding="all"
)
SHAPES = {
    "tied": TIED,
    "untied, one layer": dataclasses.replace(TIED, layers=1, tied=False),
    "heads narrower than hidden": dataclasses.replace(TIED, hidden=36, heads=3, head_dim=8, rotary_dim=6),
    "eleven layers": dataclasses.replace(TIED, layers=11),
    "softmax router": dataclasses.replace(TIED, router="softmax"),
    "exact positions": dataclasses.replace(TIED, rounding="none"),
}
Tensors = dict[str, Tensor]


def make_folder(path: Path, shape: yuan.Shape = TIED, dtype: torch.dtype = torch.float32, **how: Any) -> Path:
    tensors = published(yuan.random_weights(shape), shape, dtype)
    return write_folder(path, tensors, config_json(shape, dtype), **how)


def read_all(folder: Path) -> Tensors:
    return {name: each for file in sorted(folder.glob("*.safetensors")) for name, each in load_file(file).items()}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"moe_router": "noisy-top-k"}, "moe-router noisy-top-k"),
        ({"num_shared_experts": 2}, "num-shared-experts 2"),
        ({"moe_router_enable_expert_bias": True}, "moe-router-enable-expert-bias"),
    ],
)
def test_what_the_published_layout_has_no_place_for_is_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        check_publishable(dataclasses.replace(ModelConfig(), **values))
    check_publishable(ModelConfig())


def assert_same_bits(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_there_and_back_changes_no_bit(shape: yuan.Shape, dtype: torch.dtype, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "hf", shape, dtype)
    import_hf(folder, tmp_path / "run")
    export_hf(tmp_path / "run", tmp_path / "back")
    assert_same_bits(read_all(tmp_path / "back"), read_all(folder))
    old, new = (json.loads((each / "config.json").read_text()) for each in (folder, tmp_path / "back"))
    assert {name: new[name] for name in old} == old
    # And once more, by our own keys.
    import_hf(tmp_path / "back", tmp_path / "again")
    first, second = (open_checkpoint(tmp_path / each) for each in ("run", "again"))
    assert from_yaml(first.config_text) == from_yaml(second.config_text)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_each_tensor_lands_under_its_name(shape: yuan.Shape, tmp_path: Path) -> None:
    weights = yuan.random_weights(shape)
    import_hf(make_folder(tmp_path / "hf", shape), tmp_path / "run")
    checkpoint = open_checkpoint(tmp_path / "run")
    found = checkpoint.read_weights(checkpoint.tensor_names())
    assert_same_bits(found, {name: tensor.detach() for name, tensor in weights.items()})
    model = from_yaml(checkpoint.config_text).model
    assert model.rotary_dim == shape.rotary_dim and model.moe_router == shape.router
    assert model.rotary_rounding == shape.rounding
    assert model_shapes(model) == checkpoint.shapes()


@pytest.mark.parametrize("how", [{"files": 3}, {"torch_files": True}, {"files": 2, "torch_files": True}], ids=str)
def test_any_published_form_of_files_gives_the_same_weights(how: dict[str, Any], tmp_path: Path) -> None:
    expected = {name: tensor.detach() for name, tensor in yuan.random_weights(TIED).items()}
    into = {name: torch.empty_like(tensor) for name, tensor in expected.items()}
    load_hf(open_hf_folder(make_folder(tmp_path / "hf", **how)), into)
    assert_same_bits(into, expected)


def test_an_export_is_cut_into_shards_with_an_index(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "hf")
    import_hf(folder, tmp_path / "run")
    export_hf(tmp_path / "run", tmp_path / "back", shard_bytes=20_000)
    files = sorted(path.name for path in (tmp_path / "back").glob("*.safetensors"))
    index = json.loads((tmp_path / "back" / "model.safetensors.index.json").read_text())
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert all((tmp_path / "back" / name).stat().st_size < 30_000 for name in files)
    expected = read_all(folder)
    assert index["weight_map"].keys() == expected.keys() and set(index["weight_map"].values()) == set(files)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in expected.values())
    assert_same_bits(read_all(tmp_path / "back"), expected)
    check_folder(open_hf_folder(tmp_path / "back"))


def test_a_tied_folder_without_a_head_of_its_own_comes_back_without_one(tmp_path: Path) -> None:
    tensors = published(yuan.random_weights(TIED), TIED)
    del tensors["lm_head.weight"]
    import_hf(write_folder(tmp_path / "hf", tensors, config_json(TIED)), tmp_path / "run")
    export_hf(tmp_path / "run", tmp_path / "back")
    assert_same_bits(read_all(tmp_path / "back"), tensors)


def test_the_tokenizer_goes_along_both_ways(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "hf")
    (folder / "tokenizer.model").write_bytes(b"any bytes")
    import_hf(folder, tmp_path / "run")
    export_hf(tmp_path / "run", tmp_path / "back")
    assert (tmp_path / "back" / "tokenizer.model").read_bytes() == b"any bytes"


def remove_a_tensor(tensors: Tensors, keys: dict[str, Any]) -> None:
    del tensors["model.layers.1.mlp.experts.2.w2.weight"]


def add_a_tensor(tensors: Tensors, keys: dict[str, Any]) -> None:
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(40)


def add_an_expert(tensors: Tensors, keys: dict[str, Any]) -> None:
    tensors["model.layers.0.mlp.experts.3.w1.weight"] = torch.zeros(20, 24)


def reshape_a_tensor(tensors: Tensors, keys: dict[str, Any]) -> None:
    tensors["model.norm.weight"] = torch.zeros(25)


def change_the_head(tensors: Tensors, keys: dict[str, Any]) -> None:
    tensors["lm_head.weight"][3, 5] += 1e-6


def untie_without_head(tensors: Tensors, keys: dict[str, Any]) -> None:
    keys["tie_word_embeddings"] = False
    del tensors["lm_head.weight"]


def mix_types(tensors: Tensors, keys: dict[str, Any]) -> None:
    name = "model.layers.0.mlp.gate.key.weight"
    tensors[name] = tensors[name].bfloat16()


def use_another_activation(tensors: Tensors, keys: dict[str, Any]) -> None:
    keys["hidden_act"] = "gelu"


def drop_a_key(tensors: Tensors, keys: dict[str, Any]) -> None:
    del keys["moe_config"]["moe_top_k"]


def choose_more_than_there_are(tensors: Tensors, keys: dict[str, Any]) -> None:
    keys["moe_config"]["moe_top_k"] = 4


def claim_a_billion_layers(tensors: Tensors, keys: dict[str, Any]) -> None:
    keys["num_hidden_layers"] = 10**9


def spoil_a_number(tensors: Tensors, keys: dict[str, Any]) -> None:
    keys["hidden_size"] = "24"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (remove_a_tensor, "model.layers.1.mlp.experts.2.w2.weight: missing, should be [24, 10]"),
        (add_a_tensor, "model.layers.0.self_attn.q_proj.bias: unknown"),
        (add_an_expert, "model.layers.0.mlp.experts.3.w1.weight: unknown"),
        (reshape_a_tensor, "model.norm.weight: [25], should be [24]"),
        (change_the_head, "lm_head.weight is unlike model.embed_tokens.weight"),
        (untie_without_head, "lm_head.weight: missing"),
        (mix_types, "model.layers.0.mlp.gate.query.weight and its kin: of types"),
        (use_another_activation, "hidden_act is 'gelu'"),
        (drop_a_key, "has no moe_top_k"),
        (choose_more_than_there_are, "moe-router-topk 4 is more than num-experts 3"),
        (claim_a_billion_layers, "num-layers is 1000000000, but must be at most 10000"),
        (spoil_a_number, "hidden_size is '24'"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_folder_that_is_not_its_model_is_refused_by_name_and_nothing_written(
    damage: Callable[[Tensors, dict[str, Any]], None], words: str, tmp_path: Path
) -> None:
    tensors, keys = published(yuan.random_weights(TIED), TIED), config_json(TIED)
    damage(tensors, keys)
    folder = write_folder(tmp_path / "hf", tensors, keys)
    with pytest.raises(CheckpointError) as caught:
        import_hf(folder, tmp_path / "run")
    assert words in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.json", None, "config.json is missing"),
        ("config.json", b"{broken", "is not valid JSON"),
        ("model-00002-of-00003.safetensors", None, "model-00002-of-00003.safetensors that"),
        ("model-00002-of-00003.safetensors", b"\x10\0\0\0\0\0\0\0{", "truncated"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "../b.safetensors"}}', "weight_map"),
    ],
)
def test_a_damaged_folder_is_refused_by_file(file: str, content: bytes | None, words: str, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "hf", files=3)
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        import_hf(folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_torch_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "hf", torch_files=True)
    torch.save({"x": print}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin cannot be read"):
        open_hf_folder(folder)


def test_a_folder_that_holds_something_is_not_written_over(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "hf")
    import_hf(folder, tmp_path / "run")
    before = read_all(folder)
    for convert, source in ((import_hf, folder), (export_hf, tmp_path / "run")):
        with pytest.raises(CheckpointError, match="not an empty folder"):
            convert(source, folder)
    assert_same_bits(read_all(folder), before)


def test_an_export_may_go_to_the_working_folder_or_through_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path / "hf")
    import_hf(folder, tmp_path / "run")
    for name in ("here", "linked"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "linked")
    monkeypatch.chdir(tmp_path / "here")
    for target in (Path("."), tmp_path / "link"):
        assert_same_bits(read_all(export_hf(tmp_path / "run", target)), read_all(folder))


def test_a_failed_export_leaves_nothing(tmp_path: Path) -> None:
    import_hf(make_folder(tmp_path / "hf"), tmp_path / "run")
    damaged = next((tmp_path / "run" / "checkpoints").glob("iter_*")) / "model" / "layers.0001.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    with pytest.raises(CheckpointError, match=r"layers\.0001\.safetensors"):
        export_hf(tmp_path / "run", tmp_path / "back")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "run"]


def test_a_rotary_width_of_any_share_of_the_head_is_kept_exactly(tmp_path: Path) -> None:
    for head_dim in range(2, 60):
        for rotary_dim in range(2, head_dim + 1, 2):
            shape = dataclasses.replace(TIED, hidden=rotary_dim * 2, head_dim=head_dim, rotary_dim=rotary_dim)
            keys = config_json(shape)
            assert "rotary_percent" not in keys
            write_folder(tmp_path, {"model.norm.weight": torch.zeros(1)}, keys)
            assert open_hf_folder(tmp_path).config.model.rotary_dim == rotary_dim


def test_a_vocabulary_that_was_resized_elsewhere_is_refused_with_what_to_remove(tmp_path: Path) -> None:
    stale = {"unpadded_vocab_size": 20, "make_vocab_size_divisible_by": 16}
    folder = write_folder(tmp_path / "hf", published(yuan.random_weights(TIED), TIED), {**config_json(TIED), **stale})
    with pytest.raises(CheckpointError) as caught:
        import_hf(folder, tmp_path / "run")
    assert "remove unpadded_vocab_size and make_vocab_size_divisible_by" in str(caught.value)


def test_a_rotary_percent_of_null_is_one_that_is_not_given(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "hf", dataclasses.replace(TIED, hidden=36, heads=3, head_dim=24))
    keys = json.loads((folder / "config.json").read_text())
    without = open_hf_folder(folder).config
    (folder / "config.json").write_text(json.dumps({**keys, "rotary_percent": None}))
    assert open_hf_folder(folder).config == without and without.model.rotary_dim == 12


def test_the_path_is_a_folder_of_ours_or_theirs(tmp_path: Path) -> None:
    shutil.rmtree(tmp_path)
    with pytest.raises(CheckpointError, match="missing"):
        import_hf(tmp_path, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"no .* to load a checkpoint from"):
        export_hf(tmp_path, tmp_path / "back")

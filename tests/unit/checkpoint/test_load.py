from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_yuan.checkpoint import strict_json
from megatron_yuan.checkpoint.load import find_checkpoint, is_checkpoint, load_checkpoint, open_checkpoint
from megatron_yuan.errors import CheckpointError

from .conftest import Tensors, make_tensors, run_ranks, save_from

CHECKPOINT = Path("checkpoints") / "iter_0000100"
LAYOUTS = [(1, 1), (2, 1), (4, 1), (2, 2)]


def blank(held: Tensors) -> Tensors:
    """Tensors of the same names, shapes and types, to be filled."""
    weights = {name: torch.full_like(tensor, 7) for name, tensor in held.weights.items()}
    slots = {name: {slot: torch.full_like(each, 7) for slot, each in of.items()} for name, of in held.optimizer.items()}
    return Tensors(weights, slots)


def assert_equal(left: Tensors, right: Tensors) -> None:
    assert left.weights.keys() == right.weights.keys() and left.optimizer.keys() == right.optimizer.keys()
    for name, tensor in left.weights.items():
        assert torch.equal(tensor, right.weights[name]), name
        for slot, each in left.optimizer[name].items():
            assert torch.equal(each, right.optimizer[name][slot]), (name, slot)


@pytest.mark.parametrize(("stages", "replicas"), LAYOUTS)
@pytest.mark.parametrize(("from_stages", "from_replicas"), LAYOUTS)
def test_any_layout_loads_any_other_to_the_bit(
    tmp_path: Path, from_stages: int, from_replicas: int, stages: int, replicas: int
) -> None:
    save_from(tmp_path, from_stages, from_replicas)

    def load(ranks: Any) -> int:
        checkpoint = open_checkpoint(tmp_path, ranks=ranks)
        expected = make_tensors(ranks.pp_rank, stages)
        held = blank(expected)
        load_checkpoint(checkpoint, ranks, held.weights, held.optimizer)
        assert_equal(held, expected)
        return checkpoint.run_state.step

    assert run_ranks(stages, replicas, load) == [100] * (stages * replicas)


def test_a_run_folder_its_checkpoints_and_one_checkpoint_all_open(saved: Path) -> None:
    for path in (saved, saved / "checkpoints", saved / CHECKPOINT, str(saved)):
        assert is_checkpoint(path)
        assert open_checkpoint(path).path == saved / CHECKPOINT
    assert not is_checkpoint(saved.parent) and not is_checkpoint(saved / "absent")


def test_a_link_to_a_checkpoint_opens(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(saved / CHECKPOINT)
    assert open_checkpoint(tmp_path / "link").run_state.step == 100


def test_a_step_is_chosen_by_number_else_by_latest_else_the_newest(saved: Path) -> None:
    save_from(saved, 1, 1, step=200)
    assert open_checkpoint(saved).run_state.step == 200
    assert open_checkpoint(saved, ckpt_step=100).run_state.step == 100
    (saved / "checkpoints" / "latest").write_text("iter_0000100")
    assert open_checkpoint(saved).run_state.step == 100
    for remove in (False, True):
        (saved / "checkpoints" / "latest").write_text("iter_0000999")
        if remove:
            (saved / "checkpoints" / "latest").unlink()
        assert open_checkpoint(saved).run_state.step == 200
    (saved / "checkpoints" / "latest").write_text("")
    assert open_checkpoint(saved).run_state.step == 200
    with pytest.raises(CheckpointError, match="no checkpoint of --ckpt-step 150; it has 100, 200"):
        open_checkpoint(saved, ckpt_step=150)
    with pytest.raises(CheckpointError, match="of step 100, not of --ckpt-step 200"):
        open_checkpoint(saved / CHECKPOINT, ckpt_step=200)


def test_a_folder_without_checkpoints_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(CheckpointError, match=str(path)):
            find_checkpoint(path)


@pytest.mark.parametrize("file", ["model/layers.0002.safetensors", "run_state.json", "config.yaml", "manifest.json"])
def test_a_missing_file_is_named(saved: Path, file: str) -> None:
    (saved / CHECKPOINT / file).unlink()
    with pytest.raises(CheckpointError, match=f"{file} is missing.*--ckpt-step"):
        open_checkpoint(saved)


@pytest.mark.parametrize("file", ["optimizer/layers.0002.safetensors", "config.yaml"])
def test_a_truncated_file_is_named(saved: Path, file: str) -> None:
    os.truncate(saved / CHECKPOINT / file, 5)
    with pytest.raises(CheckpointError, match=f"{file} is truncated, 5 bytes instead of"):
        open_checkpoint(saved)


def flip(path: Path, position: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("file", ["run_state.json", "config.yaml"])
def test_a_flipped_byte_in_a_small_file_is_found_at_opening(saved: Path, file: str) -> None:
    flip(saved / CHECKPOINT / file, 5)
    with pytest.raises(CheckpointError, match=f"{file} does not agree with its recorded sha256"):
        open_checkpoint(saved)


def test_a_flipped_byte_in_the_manifest_is_found_wherever_it_is(saved: Path) -> None:
    path = saved / CHECKPOINT / "manifest.json"
    content = path.read_bytes()
    for position in range(0, len(content), 37):
        if chr(content[position]).isspace() or chr(content[position] ^ 1).isspace():
            continue  # between tokens, where it changes nothing
        path.write_bytes(content)
        flip(path, position)
        with pytest.raises(CheckpointError, match="manifest"):
            open_checkpoint(saved)


def test_a_flipped_byte_in_weights_is_found_when_they_are_read_even_if_their_tensor_is_not_wanted(saved: Path) -> None:
    file = saved / CHECKPOINT / "model" / "layers.0001.safetensors"
    flip(file)
    opened = open_checkpoint(saved)
    for name in ("layers.1.input_norm.weight", "layers.1.moe.experts.down"):
        with pytest.raises(CheckpointError, match=r"model/layers\.0001\.safetensors is damaged"):
            opened.read_weights([name])
    with pytest.raises(CheckpointError, match=r"model/layers\.0001\.safetensors"):
        opened.verify_files()
    opened.read_weights(["layers.0.input_norm.weight"])
    open_checkpoint(saved, verify=False).read_weights(["layers.1.input_norm.weight"])


def test_damage_that_one_rank_meets_is_an_error_on_all(saved: Path) -> None:
    flip(saved / CHECKPOINT / "optimizer" / "layers.0003.safetensors")

    def load(ranks: Any) -> None:
        held = make_tensors(ranks.pp_rank, 2)
        load_checkpoint(open_checkpoint(saved, ranks=ranks), ranks, held.weights, held.optimizer)

    results = run_ranks(2, 1, load)
    assert all(isinstance(result, CheckpointError) for result in results)
    assert all("failed on rank 1" in str(result) and "layers.0003" in str(result) for result in results)


def test_another_model_is_refused_tensor_by_tensor_before_anything_is_read(saved: Path) -> None:
    def load(ranks: Any) -> Tensors:
        held = blank(make_tensors(ranks.pp_rank, 2))
        for name in [name for name in held.weights if name.endswith("experts.down")]:
            held.weights[name] = torch.full((2, 3, 9), 7.0, dtype=torch.bfloat16)
        held.weights.pop("final_norm.weight", None)
        if ranks.pp_rank == 1:
            held.weights["head.weight"] = torch.zeros(6, 3)
        try:
            load_checkpoint(open_checkpoint(saved, ranks=ranks), ranks, held.weights, held.optimizer)
        except CheckpointError as error:
            message = str(error)
        assert all(bool((tensor == 7).all()) for name, tensor in held.weights.items() if name != "head.weight")
        return message

    results = run_ranks(2, 1, load)
    assert results[0] == results[1]
    lines = results[0].splitlines()
    assert "another model" in lines[0] and "6 of 11 tensors differ" in lines[0]
    assert "  head.weight: [6, 3] in the model, not in the checkpoint" in lines
    assert "  layers.3.moe.experts.down: [2, 3, 5] in the checkpoint, [2, 3, 9] in the model" in lines
    assert "  final_norm.weight: [3] in the checkpoint, not in the model" in lines


def test_a_long_list_of_differences_is_cut_and_counted(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"20 of 30 tensors differ") as raised:
        open_checkpoint(saved).check_model(
            {**open_checkpoint(saved).shapes(), **{f"layers.{9 + layer}.extra": (1,) for layer in range(20)}}
        )
    assert len(str(raised.value).splitlines()) == 12 and "and 10 more" in str(raised.value)


def test_another_precision_is_refused_unless_asked_for(saved: Path) -> None:
    held = make_tensors(dtype=torch.float32)
    with pytest.raises(CheckpointError, match="in bfloat16, the run wants float32"):
        open_checkpoint(saved).load_weights(held.weights)


def test_float32_weights_come_from_the_masters_bit_for_bit(saved: Path) -> None:
    expected = make_tensors(dtype=torch.float32)
    held = blank(expected)
    opened = open_checkpoint(saved)
    opened.load_weights(held.weights, cast=True)
    opened.load_optimizer(held.optimizer)
    assert_equal(held, expected)


def test_masters_of_a_float32_checkpoint_are_its_weights(tmp_path: Path) -> None:
    save_from(tmp_path, 1, 1, dtype=torch.float32)
    expected = make_tensors()
    held = blank(expected)
    opened = open_checkpoint(tmp_path)
    opened.load_weights(held.weights, cast=True)
    opened.load_optimizer(held.optimizer)
    assert_equal(held, expected)


def test_optimizer_state_that_is_missing_or_left_over_is_named(saved: Path) -> None:
    held = make_tensors()
    held.optimizer["final_norm.weight"]["momentum"] = torch.zeros(3)
    del held.optimizer["embedding.weight"]["exp_avg_sq"]
    with pytest.raises(CheckpointError) as raised:
        open_checkpoint(saved).load_optimizer(held.optimizer)
    assert "final_norm.weight.momentum: [3] in the model, not in the checkpoint" in str(raised.value)
    assert "embedding.weight.exp_avg_sq: in the checkpoint, not wanted" in str(raised.value)


def rewrite_manifest(path: Path, change: Any, version: int = 1) -> None:
    outer = json.loads(path.read_text())
    change(outer["content"])
    outer["version"] = outer["content"]["version"] = version
    outer["sha256"] = hashlib.sha256(strict_json.canonical(outer["content"]).encode()).hexdigest()
    path.write_text(json.dumps(outer))


def test_a_newer_format_version_is_refused(saved: Path) -> None:
    rewrite_manifest(saved / CHECKPOINT / "manifest.json", lambda content: content.update(news=1), version=2)
    with pytest.raises(CheckpointError, match="format version 2, newer than 1: upgrade"):
        open_checkpoint(saved)


@pytest.mark.parametrize("path", ["../../secret", "/etc/passwd", "model/../../../secret", "model/a.pt"])
def test_a_manifest_that_points_elsewhere_is_refused(saved: Path, path: str) -> None:
    record = {"size": 1, "sha256": "0" * 64}
    rewrite_manifest(saved / CHECKPOINT / "manifest.json", lambda content: content["files"].update({path: record}))
    with pytest.raises(CheckpointError, match="which no checkpoint has: refused"):
        open_checkpoint(saved)


def test_a_file_that_holds_other_tensors_than_its_manifest_says_is_refused(saved: Path) -> None:
    source, target = (saved / CHECKPOINT / "model" / f"layers.000{layer}.safetensors" for layer in (1, 2))
    shutil.copy(source, target)
    with pytest.raises(CheckpointError, match=r"layers\.0002\.safetensors holds other tensors"):
        open_checkpoint(saved).read_weights(["layers.2.input_norm.weight"])


def test_a_pipe_in_place_of_a_file_does_not_hang(saved: Path) -> None:
    path = saved / CHECKPOINT / "model" / "head.safetensors"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match=r"head\.safetensors"):
        open_checkpoint(saved)


def test_weights_are_read_in_another_type_on_request(saved: Path) -> None:
    read = open_checkpoint(saved).read_weights(["embedding.weight"], dtype=torch.float32)
    assert torch.equal(read["embedding.weight"], make_tensors(dtype=torch.float32).weights["embedding.weight"])

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from megatron_yuan.checkpoint import commit, layout, store
from megatron_yuan.checkpoint.agreement import ALONE
from megatron_yuan.checkpoint.commit import Retention
from megatron_yuan.checkpoint.load import open_checkpoint
from megatron_yuan.checkpoint.save import Offer, make_plan, save_in_pieces
from megatron_yuan.checkpoint.saver import save_checkpoint
from megatron_yuan.checkpoint.state import RunState
from megatron_yuan.checkpoint.store import TensorSpec
from megatron_yuan.errors import CheckpointError

from .conftest import make_tensors, run_ranks, save_from

LAYOUTS = [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (3, 3)]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_is_plain_safetensors_files_per_layer(saved: Path, tmp_path: Path) -> None:
    folder = saved / "checkpoints" / "iter_0000100"
    files = ["embedding.safetensors", "head.safetensors", *(f"layers.{layer:04d}.safetensors" for layer in range(4))]
    assert names_in(folder) == ["config.yaml", "manifest.json", "model", "optimizer", "run_state.json"]
    assert names_in(folder / "model") == files and names_in(folder / "optimizer") == files
    assert (saved / "checkpoints" / "latest").read_text() == "iter_0000100\n"
    held = make_tensors()
    layer = load_file(folder / "model" / "layers.0001.safetensors")
    assert torch.equal(layer["layers.1.moe.experts.down"], held.weights["layers.1.moe.experts.down"])
    state = load_file(folder / "optimizer" / "embedding.safetensors")
    assert sorted(state) == ["embedding.weight.exp_avg", "embedding.weight.exp_avg_sq", "embedding.weight.master"]


@pytest.mark.parametrize(("stages", "replicas"), LAYOUTS)
def test_every_layout_writes_the_same_bytes(saved: Path, tmp_path: Path, stages: int, replicas: int) -> None:
    results = save_from(tmp_path / "other", stages, replicas)
    assert results == [tmp_path / "other" / "checkpoints" / "iter_0000100"] * (stages * replicas)
    for path in (saved / "checkpoints").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "other" / path.relative_to(saved)).read_bytes(), path


def test_replicas_share_the_writing_and_no_file_has_two_writers() -> None:
    specs = {f"model/layers.{layer:04d}.safetensors": {"w": TensorSpec(torch.float32, (2,))} for layer in range(4)}
    plan = make_plan([Offer(0, replica, specs, "a") for replica in (0, 1)])
    assert sorted(plan.writer.values()) == [0, 0, 1, 1] and plan.tensor_bytes == 32


def test_the_tokenizer_goes_along(tmp_path: Path) -> None:
    (tmp_path / "t.model").write_bytes(b"pieces")
    save_from(tmp_path / "run", 2, 1, tokenizer=tmp_path / "t.model")
    tokenizer = open_checkpoint(tmp_path / "run").tokenizer
    assert tokenizer is not None and tokenizer.read_bytes() == b"pieces"


def test_only_the_newest_are_retained(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_from(tmp_path, 1, 1, step=step, retention=Retention(2))
    assert names_in(tmp_path / "checkpoints") == ["iter_0000002", "iter_0000003", "latest"]


def test_a_step_saved_again_replaces_the_first(saved: Path) -> None:
    save_from(saved, 2, 1, seed=1)
    assert names_in(saved / "checkpoints") == ["iter_0000100", "latest"]
    weights = open_checkpoint(saved).read_weights(["final_norm.weight"])
    assert torch.equal(weights["final_norm.weight"], make_tensors(seed=1).weights["final_norm.weight"])


def assert_only_the_first_is_left(run: Path) -> None:
    assert names_in(run / "checkpoints") == ["iter_0000100", "latest"]
    opened = open_checkpoint(run)
    opened.verify_files()
    assert opened.run_state.step == 100


@pytest.mark.parametrize("moment", ["write_tensors", "write_durably", "sync_folder", "write_manifest", "rename"])
def test_a_failure_at_any_moment_leaves_the_checkpoint_before_it(
    saved: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, "the disk is on fire")

    def fail_at_manifest(path: Path, content: str | bytes) -> None:
        fail() if path.name == "manifest.json" else genuine(path, content)

    genuine = layout.write_durably
    if moment == "write_manifest":
        monkeypatch.setattr(layout, "write_durably", fail_at_manifest)
    elif moment == "rename":
        monkeypatch.setattr(os, "rename", fail)
    else:
        monkeypatch.setattr(store if moment == "write_tensors" else layout, moment, fail)
    results = save_from(saved, 1, 1, step=200)
    assert isinstance(results[0], CheckpointError) and "the disk is on fire" in str(results[0])
    monkeypatch.undo()
    assert_only_the_first_is_left(saved)


def test_a_step_saved_again_in_vain_keeps_the_first(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = os.rename

    def fail_from_temporary(source: Path, target: Path) -> None:
        if ".tmp-" in source.name:
            raise OSError(errno.EIO, "the disk is on fire")
        genuine(source, target)

    monkeypatch.setattr(os, "rename", fail_from_temporary)
    assert isinstance(save_from(saved, 1, 1, seed=1)[0], CheckpointError)
    monkeypatch.undo()
    assert_only_the_first_is_left(saved)
    weights = open_checkpoint(saved).read_weights(["final_norm.weight"])
    assert torch.equal(weights["final_norm.weight"], make_tensors().weights["final_norm.weight"])


def test_a_failure_on_one_rank_is_the_same_error_on_all(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = store.write_tensors

    def fail_at_layer_3(path: Path, tensors: dict[str, torch.Tensor], **options: Any) -> tuple[int, str]:
        if path.name == "layers.0003.safetensors" and path.parent.name == "model":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return genuine(path, tensors, **options)

    monkeypatch.setattr(store, "write_tensors", fail_at_layer_3)
    results = save_from(saved, 2, 2, step=200)
    assert all(isinstance(result, CheckpointError) for result in results)
    assert len({str(result) for result in results}) == 1
    assert "failed on rank" in str(results[0]) and "no disk space" in str(results[0])
    assert_only_the_first_is_left(saved)


def test_a_bug_on_one_rank_keeps_its_traceback_and_ends_the_others(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(commit, "finish", fail)
    results = save_from(saved, 2, 1, step=200)
    assert isinstance(results[0], KeyError)
    assert isinstance(results[1], CheckpointError) and "rank 0: KeyError" in str(results[1])
    assert_only_the_first_is_left(saved)


def test_too_little_space_is_told_before_a_byte_is_written(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "_free", lambda _: 1000)
    results = save_from(saved, 2, 1, step=200)
    for result in results:
        assert isinstance(result, CheckpointError)
        assert "no disk space" in str(result) and "1,000 are available" in str(result)
        assert "needs 1," in str(result) and "--save-retain" in str(result)
    monkeypatch.undo()
    assert_only_the_first_is_left(saved)


def test_what_a_killed_save_left_is_cleared_by_the_next(saved: Path) -> None:
    (saved / "checkpoints" / "iter_0000150.tmp-00ff" / "model").mkdir(parents=True)
    save_from(saved, 1, 1, step=200)
    assert names_in(saved / "checkpoints") == ["iter_0000100", "iter_0000200", "latest"]


def test_a_save_path_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    result = save_from(tmp_path / "run", 1, 1)[0]
    assert isinstance(result, CheckpointError) and str(tmp_path / "run") in str(result) and "--save" in str(result)


def test_a_tied_embedding_that_came_apart_is_not_saved(saved: Path) -> None:
    def save(ranks: Any) -> Path:
        held = make_tensors(ranks.pp_rank, 2)
        if ranks.pp_rank == 1:
            held.weights["embedding.weight"][0, 0] += 1
        return save_checkpoint(saved, ranks, RunState(200, 0), held.weights, held.optimizer, "")

    results = run_ranks(2, 1, save)
    assert all("embedding.weight has other values on rank 1" in str(result) for result in results)
    assert_only_the_first_is_left(saved)


def test_replicas_that_hold_different_tensors_are_an_error_everywhere(tmp_path: Path) -> None:
    def save(ranks: Any) -> Path:
        held = make_tensors(seed=0) if ranks.rank == 0 else make_tensors(1, 2)
        return save_checkpoint(tmp_path, ranks, RunState(200, 0), held.weights, held.optimizer, "")

    assert all("replicas of one stage" in str(result) for result in run_ranks(1, 2, save))


def test_weights_saved_in_pieces_are_a_checkpoint_without_optimizer(tmp_path: Path) -> None:
    weights = make_tensors().weights
    pieces = ({name: tensor} for name, tensor in weights.items() if not name.startswith("layers."))
    layers = ({name: weights[name] for name in weights if name.startswith(f"layers.{layer}.")} for layer in range(4))
    save_in_pieces(tmp_path, RunState(0, 0), [*pieces, *layers], 1000, "")
    opened = open_checkpoint(tmp_path)
    read = opened.read_weights(opened.tensor_names())
    assert read.keys() == weights.keys() and all(torch.equal(read[name], weights[name]) for name in weights)
    assert not opened.has_optimizer
    with pytest.raises(CheckpointError, match="no optimizer state"):
        opened.load_optimizer(make_tensors().optimizer)


def test_a_piece_that_comes_back_leaves_nothing(tmp_path: Path) -> None:
    weights = make_tensors().weights
    with pytest.raises(ValueError, match="two pieces"):
        save_in_pieces(tmp_path, RunState(0, 0), [weights, weights], 1000, "")
    assert names_in(tmp_path / "checkpoints") == []


def test_one_process_needs_no_group(tmp_path: Path) -> None:
    held = make_tensors()
    path = save_checkpoint(tmp_path, ALONE, RunState(3, 24), held.weights, held.optimizer, "seed: 1\n")
    opened = open_checkpoint(path)
    assert (opened.run_state, opened.config_text) == (RunState(3, 24), "seed: 1\n")

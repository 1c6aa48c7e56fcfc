from __future__ import annotations

from pathlib import Path

import pytest

from megatron_yuan.checkpoint import layout
from megatron_yuan.errors import CheckpointError


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("embedding.weight", "model/embedding.safetensors"),
        ("layers.7.moe.experts.down", "model/layers.0007.safetensors"),
        ("layers.12345.moe_norm.weight", "model/layers.12345.safetensors"),
        ("final_norm.weight", "model/head.safetensors"),
        ("head.weight", "model/head.safetensors"),
    ],
)
def test_a_tensor_lives_in_the_file_of_its_layer(name: str, file: str) -> None:
    assert layout.file_of(name) == file
    assert layout.file_of(name, "optimizer") == file.replace("model", "optimizer")
    assert layout.is_own_file(file)


@pytest.mark.parametrize("name", ["../../etc/passwd", "layers.x.weight", "layers", "", "a b", "a..b", "layers./../x"])
def test_names_that_could_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(CheckpointError):
        layout.file_of(name)


@pytest.mark.parametrize("path", ["../model/head.safetensors", "/etc/passwd", "model/../../x", "model/x.pt", "latest"])
def test_paths_that_no_checkpoint_has_are_refused(path: str) -> None:
    assert not layout.is_own_file(path)


def test_latest_is_read_back_and_nonsense_in_it_names_nothing(tmp_path: Path) -> None:
    assert layout.read_latest(tmp_path) is None
    for step in (100, 12_345_678):
        layout.write_latest(tmp_path, step)
        assert layout.read_latest(tmp_path) == step
    assert [path.name for path in tmp_path.iterdir()] == ["latest"]
    for nonsense in ("../../elsewhere", ""):
        (tmp_path / "latest").write_text(nonsense)
        assert layout.read_latest(tmp_path) is None
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").mkdir()
    assert layout.read_latest(tmp_path) is None


def make_folders(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "file").write_text(name)


def test_unfinished_folders_are_no_checkpoints_and_go_at_the_next_save(tmp_path: Path) -> None:
    make_folders(tmp_path, "iter_0000200", "iter_0000100", "iter_0000300.tmp-ab12", "iter_9", "mine")
    assert list(layout.list_checkpoints(tmp_path)) == [100, 200]
    layout.remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["iter_0000100", "iter_0000200", "iter_9", "mine"]


def test_a_checkpoint_whose_replacement_never_came_still_counts_and_gets_its_name_back(tmp_path: Path) -> None:
    make_folders(tmp_path, "iter_0000100.old-ab12", "iter_0000200", "iter_0000200.old-ab12")
    found = layout.list_checkpoints(tmp_path)
    assert [path.name for path in found.values()] == ["iter_0000100.old-ab12", "iter_0000200"]
    layout.remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["iter_0000100", "iter_0000200"]
    assert (tmp_path / "iter_0000100" / "file").read_text() == "iter_0000100.old-ab12"


def test_the_newest_up_to_the_one_just_saved_are_kept(tmp_path: Path) -> None:
    make_folders(tmp_path, *(layout.folder_name(step) for step in (100, 200, 300, 400, 900)))
    layout.retain(tmp_path, 400, None)
    assert len(layout.list_checkpoints(tmp_path)) == 5
    layout.retain(tmp_path, 400, 2)
    assert list(layout.list_checkpoints(tmp_path)) == [300, 400, 900]
    layout.retain(tmp_path, 400, 1)
    assert list(layout.list_checkpoints(tmp_path)) == [400, 900]


def test_a_link_is_dropped_without_deleting_what_it_points_to(tmp_path: Path) -> None:
    make_folders(tmp_path, "elsewhere", "run/iter_0000200")
    (tmp_path / "run" / "iter_0000100").symlink_to(tmp_path / "elsewhere")
    layout.retain(tmp_path / "run", 200, 1)
    assert list(layout.list_checkpoints(tmp_path / "run")) == [200]
    assert (tmp_path / "elsewhere" / "file").exists()

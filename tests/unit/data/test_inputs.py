"""Which files are read, and in which order."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from megatron_yuan.data.inputs import find_inputs
from megatron_yuan.errors import DataError
from megatron_yuan.log import logger


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.jsonl", "a.txt.gz", "deep/er/c.parquet", "deep/d.json.zst", ".hidden.jsonl", "notes.md", "z.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "e.jsonl").write_text("x")
    return tmp_path


def names(*inputs: object) -> list[str]:
    return [each.name for each in find_inputs([str(each) for each in inputs], ["text"])]


def test_a_folder_is_all_its_text_sorted_by_path(monkeypatch: pytest.MonkeyPatch, tree: Path) -> None:
    monkeypatch.setattr("os.access", lambda *_: True)
    (tree / "a.txt.gz").unlink()  # txt and jsonl may both be there: this one has no key
    assert names(tree) == ["b.jsonl", "deep/d.json.zst", "deep/er/c.parquet"]


def test_a_pattern_is_what_it_matches_sorted(tree: Path) -> None:
    assert names(tree / "**/*.json*") == ["b.jsonl", "deep/d.json.zst"]
    assert names(tree / "d*") == ["deep/d.json.zst", "deep/er/c.parquet"]


def test_files_named_one_by_one_keep_their_order(tree: Path) -> None:
    assert names(tree / "deep/d.json.zst", tree / "b.jsonl") == ["d.json.zst", "b.jsonl"]


def test_output_of_this_tool_in_the_folder_is_not_read_again(tree: Path) -> None:
    for name in ("out_text_document.json", "out_text_document.idx", "out_text_document.bin", "out_rejects.jsonl"):
        (tree / name).write_text("x")
    assert names(tree / "*.json*") == ["b.jsonl"]


def test_index_files_that_a_run_made_beside_its_data_are_no_text(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "index-cache/key.json",
        "index-cache/stamps/key.json",
        "index-cache/key-samples.npy",
        "deep/index-cache/key-samples.npy",
    ):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("x")
    monkeypatch.setattr(logger, "warning", lambda text, *values: pytest.fail(text % values))
    assert names(tree / "deep") == ["d.json.zst", "er/c.parquet"]
    assert names(tree / "**/*.json*") == ["b.jsonl", "deep/d.json.zst"]
    assert names(tree / "[di]*") == ["deep/d.json.zst", "deep/er/c.parquet"]


def test_endings_are_known_whatever_their_case(tree: Path) -> None:
    for name in ("D.JSONL", "e.Txt.GZ"):
        (tree / "deep" / name).write_text("x")
    assert names(tree / "deep") == ["D.JSONL", "d.json.zst", "e.Txt.GZ", "er/c.parquet"]


def test_what_a_folder_has_that_is_passed_over_is_told_but_for_datasets(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(logger, "warning", lambda text, *values: said.append(text % values))
    for ending in ("json", "idx", "bin"):
        (tree / "deep" / f"out_text_document.{ending}").write_text("x")
    names(tree / "deep")
    assert said == []
    for name in ("e.jsonl.bz2", "mine_rejects.jsonl"):
        (tree / "deep" / name).write_text("x")
    names(tree / "deep")
    names(tree / "de*")
    assert [each.partition(";")[0] for each in said] == [f"input: 2 passed over, the first {tree}/deep/e.jsonl.bz2"] * 2


def test_no_name_at_all_is_not_the_folder_one_is_in(monkeypatch: pytest.MonkeyPatch, tree: Path) -> None:
    monkeypatch.chdir(tree / "deep")
    with pytest.raises(DataError, match='input is ""'):
        find_inputs([""], ["text"])


def test_a_folder_that_holds_itself_by_a_link_is_walked_once(tree: Path) -> None:
    os.symlink(tree / "deep", tree / "deep" / "er" / "up")
    assert names(tree / "deep") == ["d.json.zst", "er/c.parquet"]


@pytest.mark.parametrize("name", ["missing.jsonl", "z.csv", "empty", "*.nothing", "packed.parquet.gz"])
def test_what_cannot_be_read_is_named_with_the_fix(tree: Path, name: str) -> None:
    (tree / "empty").mkdir()
    (tree / "packed.parquet.gz").write_text("x")
    with pytest.raises(DataError, match=rf"input .*{name.replace('*', '.')}.*Fix: "):
        find_inputs([tree / name], ["text"])


@pytest.mark.parametrize("keys", [[], [""], ["a", "a"], ["a/b"]])
def test_keys_that_cannot_name_files_are_refused(tree: Path, keys: list[str]) -> None:
    with pytest.raises(DataError, match="json_keys"):
        find_inputs([tree / "b.jsonl"], keys)


def test_txt_has_no_keys_to_choose(tree: Path) -> None:
    with pytest.raises(DataError, match="json_keys is body"):
        find_inputs([tree / "a.txt.gz"], ["body"])


def test_a_file_named_twice_is_refused(tree: Path) -> None:
    with pytest.raises(DataError, match="named twice"):
        find_inputs([tree / "b.jsonl", tree / "*.jsonl"], ["text"])

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_yuan.data.batch import make_batch
from megatron_yuan.data.dialogues import DialogueRows, Marks
from megatron_yuan.data.index_file import read_index
from megatron_yuan.data.packing import Part, Plan
from megatron_yuan.errors import DataError
from tests.indexed_data import write_indexed

EOD, SEP, PAD = 1, 2, 3
MARKS = Marks(SEP, PAD)


def dialogue(random: np.random.Generator, longest: int) -> list[int]:
    """Questions and answers in turn, some empty, some documents without <sep>, without an answer or without <eod>."""
    ids: list[int] = []
    for turn in range(random.integers(1, 7)):
        ids += [SEP] * (turn > 0) + random.integers(4, 200, random.integers(0, longest)).tolist()
    return ids + [EOD] * int(random.random() < 0.9 or not ids)


def dialogues(seed: int, number: int = 200, longest: int = 12) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [dialogue(random, longest) for _ in range(number)]


def rows_of(folder: Path, documents: list[list[int]], num_samples: int | None = None, **plan: int) -> DialogueRows:
    prefix = write_indexed(folder / "chat", [np.array(each) for each in documents])
    found = read_index(Path(prefix + ".idx"))
    part = Part(prefix, str(documents), 0, found.documents, found.tokens)
    options = {"sequence_length": 64, "seed": 5, "eod_id": EOD, **plan}
    return DialogueRows(part, num_samples, Plan(**options, cache=folder / "cache"), MARKS)  # type: ignore[arg-type]


def slow_row(rows: DialogueRows, index: int, documents: list[list[int]]) -> tuple[list[int], list[int], list[bool]]:
    """Tokens, mask and beginnings of a row, token by token from the documents as they were written."""
    size = rows.plan.sequence_length + 1
    tokens, mask, begins = [], [], []
    for number, start in rows.pieces(index):
        answering, said = False, []
        for place, token in enumerate(documents[number]):
            if start <= place < start + size:
                tokens.append(token)
                said.append(int(answering))
                begins.append(place == start)
            if token == SEP:
                answering = not answering
            if token == EOD:
                answering = False
        mask += [0, *said[1:]]
    padding = size - len(tokens)
    assert padding >= 0, "nothing is cut off"
    return tokens + [PAD] * padding, mask + [0] * padding, begins + [True] * (padding > 0) + [False] * (padding - 1)


@pytest.mark.parametrize("longest", [3, 12, 60])
def test_rows_and_masks_equal_a_slow_count(tmp_path: Path, longest: int) -> None:
    documents = dialogues(longest, longest=longest)
    rows = rows_of(tmp_path, documents, 150)
    for i in range(len(rows)):
        sample = rows[i]
        assert sample.loss_mask is not None and sample.begins is not None
        found = sample.tokens.tolist(), sample.loss_mask.tolist(), sample.begins.tolist()
        assert found == slow_row(rows, i, documents)


def test_every_label_of_an_answer_comes_once_an_epoch_however_long_its_document(tmp_path: Path) -> None:
    documents = [*dialogues(0, 30), *dialogues(1, 6, longest=90)]
    rows = rows_of(tmp_path, documents)
    trained: list[int] = []
    for i in range(len(rows)):
        sample = rows[i]
        assert sample.loss_mask is not None
        trained += sample.tokens[sample.loss_mask > 0].tolist()
    asked: list[int] = []
    for each in documents:
        asked += [token for place, token in enumerate(each) if each[:place].count(SEP) % 2]
    assert sorted(trained) == sorted(asked)


def test_only_a_document_longer_than_a_row_is_cut(tmp_path: Path) -> None:
    documents = dialogues(4, 100, longest=30)
    rows = rows_of(tmp_path, documents)
    cut = {number for i in range(len(rows)) for number, start in rows.pieces(i) if start}
    assert cut == {number for number, each in enumerate(documents) if len(each) > 65} != set()


def test_every_document_comes_once_in_every_epoch(tmp_path: Path) -> None:
    documents = dialogues(7, 80, longest=5)
    one = rows_of(tmp_path, documents)
    rows = rows_of(tmp_path, documents, 3 * len(one))
    seen = [number for i in range(len(rows)) for number, _ in rows.pieces(i)]
    assert len(seen) >= 3 * 80 - 80
    for epoch in range(len(seen) // 80):
        assert sorted(seen[epoch * 80 : (epoch + 1) * 80]) == list(range(80))
    assert seen[:80] != seen[80:160], "each epoch has an order of its own"


def test_a_longer_run_begins_with_the_same_rows(tmp_path: Path) -> None:
    documents = dialogues(8)
    few, many = rows_of(tmp_path, documents, 20), rows_of(tmp_path, documents, 400)
    assert len(many) >= 400
    assert all((few[i].tokens == many[i].tokens).all() for i in range(len(few)))
    other = rows_of(tmp_path, documents, 20, seed=6)
    assert any((few[i].tokens != other[i].tokens).any() for i in range(20))


def test_hardly_any_room_is_lost(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, dialogues(9, 1500), sequence_length=256)
    padding = np.mean([(rows[i].tokens == PAD).mean() for i in range(len(rows))])
    assert padding < 0.02


def test_the_index_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = dialogues(3, 20)
    first = rows_of(tmp_path, documents, 10)
    monkeypatch.setattr("megatron_yuan.data.dialogues.pack_epochs", None)
    again = rows_of(tmp_path, documents, 10)
    assert isinstance(again._documents.base, np.memmap) or isinstance(again._documents, np.memmap)
    assert all((first[i].tokens == again[i].tokens).all() for i in range(10))


def test_a_part_of_the_documents_is_read_from_its_own_place(tmp_path: Path) -> None:
    documents = dialogues(2, 40)
    whole = rows_of(tmp_path, documents)
    part = DialogueRows(whole.part._replace(first=10, end=20), None, whole.plan, MARKS)
    seen = sorted(number for i in range(len(part)) for number, _ in part.pieces(i))
    assert seen == list(range(10, 20))
    assert (part.document(12) == documents[12]).all()


def test_documents_without_eod_are_kept_apart_and_so_is_padding(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, [[10, SEP, 11], [12, SEP, 13]], sequence_length=9)
    sample = rows[0]
    assert sample.begins is not None and sample.begins.tolist() == [i in (0, 3, 6) for i in range(10)]
    batch = make_batch(
        _tensor(sample.tokens), [0], eod_id=EOD, reset_attention_mask=True, begins_BS1=_tensor(sample.begins)
    )
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 2, 0, 1, 2]]


def test_a_set_without_any_answer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of the 2 documents 0 \.\.\. 1 of .*chat has a <sep>"):
        rows_of(tmp_path, [[5, 6, EOD], [7, 8, SEP]])


def test_an_empty_document_is_passed_over(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, [[], [5, SEP, 6, EOD], []], 4)
    assert all(number == 1 for i in range(4) for number, _ in rows.pieces(i))


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values)[None]

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megatron_yuan.data import dialogue_count
from megatron_yuan.data.answers import answer_mask
from megatron_yuan.data.dialogue_count import DialogueCount, count_dialogues
from megatron_yuan.data.packing import Part, Plan
from tests.indexed_data import write_indexed
from tests.unit.data.test_dialogues import EOD, SEP, dialogues


def part_of(folder: Path, documents: list[list[int]], first: int = 0, end: int | None = None) -> tuple[Part, Plan]:
    prefix = write_indexed(folder / "chat", [np.array(each) for each in documents])
    return Part(prefix, "content", first, len(documents) if end is None else end, 0), Plan(8, 1, EOD, folder / "cache")


def slow_count(documents: list[list[int]]) -> DialogueCount:
    used = [each for each in documents if each]
    return DialogueCount(
        documents=len(used),
        tokens=sum(map(len, used)),
        without_answer=sum(SEP not in each for each in used),
        unanswered=sum(each.count(SEP) in (2, 4, 6) for each in used),
        without_eod=sum(each[-1] != EOD for each in used),
        answer_tokens=sum(each[:place].count(SEP) % 2 for each in used for place in range(len(each))),
    )


@pytest.mark.parametrize("block", [1, 50, 10**6])
def test_what_is_counted_is_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(dialogue_count, "BLOCK_TOKENS", block)
    documents = [[], *dialogues(1, 120), [], [SEP], [EOD], []]
    part, plan = part_of(tmp_path, documents)
    assert count_dialogues(part, plan, SEP) == slow_count(documents)
    part, plan = part_of(tmp_path, documents, 7, 60)
    assert count_dialogues(part, plan, SEP) == slow_count(documents[7:60])


def test_dialogues_within_a_document_are_counted_as_the_loss_has_them(tmp_path: Path) -> None:
    documents = [
        [5, SEP, 6, EOD, EOD],  # its text ended in <eod> already
        [5, SEP, 6, EOD, 7, 8, 9, SEP, 4, EOD],  # two dialogues, both answered
        [5, SEP, 6, SEP, 7, EOD, 8, SEP, 9, EOD],  # the first ends in a question
        [4, EOD, 5, EOD],
    ]
    found = count_dialogues(*part_of(tmp_path, documents), SEP)
    masks = [answer_mask(np.array(each), SEP, EOD) for each in documents]
    assert found.answer_tokens == sum(int(mask.sum()) for mask in masks) == 10
    assert (found.unanswered, found.without_answer, found.without_eod) == (1, 1, 0)


def test_it_is_read_once_and_again_only_where_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_yuan.data.stamp.FINE_NS", -(10**12))
    part, plan = part_of(tmp_path, [[5, SEP, 6, EOD]] * 3)
    first = count_dialogues(part, plan, SEP)
    count = dialogue_count.count_block
    monkeypatch.setattr(dialogue_count, "count_block", None)
    assert count_dialogues(part, plan, SEP) == first
    monkeypatch.setattr(dialogue_count, "count_block", count)
    part_of(tmp_path, [[5, 5, 6, EOD]] * 3)
    assert count_dialogues(part, plan, SEP).without_answer == 3

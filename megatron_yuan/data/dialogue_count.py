"""What instruction data are made of: counted over all tokens, once, and remembered by a stamp of the file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from megatron_yuan.data.index_file import read_index
from megatron_yuan.data.packing import Part, Plan
from megatron_yuan.data.stamp import Stamps

BLOCK_TOKENS, BLOCK_DOCUMENTS = 2**22, 2**16  # looked at in one go


@dataclass(frozen=True)
class DialogueCount:
    """Documents of a set, and how many of them are not what they should be."""

    documents: int = 0
    """With any token."""
    tokens: int = 0
    without_answer: int = 0
    """Have no <sep>: nothing is learned of them."""
    unanswered: int = 0
    """Have one, but end in a question, or have a dialogue that does."""
    without_eod: int = 0
    """Do not end in <eod>: nothing tells the model to stop."""
    answer_tokens: int = 0
    """Labels with loss, the ends of answers included, in whole documents."""

    def __add__(self, other: DialogueCount) -> DialogueCount:
        """Both together."""
        return DialogueCount(*(ours + theirs for ours, theirs in zip(*map(_figures, (self, other)), strict=True)))


def count_dialogues(part: Part, plan: Plan, sep_id: int) -> DialogueCount:
    """Count the documents of `part`; reads them all unless a stamp knows."""
    stamps, data = Stamps(plan.cache), Path(part.prefix + ".bin")
    name = f"dialogues by eod {part.first} {part.end} {sep_id} {plan.eod_id}"
    try:
        return DialogueCount(**stamps.recall(data)[name])
    except (KeyError, TypeError):
        pass
    seen, found = data.stat(), DialogueCount()
    for ids, lengths in _blocks(part):
        found += count_block(ids, lengths, sep_id, plan.eod_id)
    stamps.remember(data, seen, {name: asdict(found)})
    return found


def count_block(ids: np.ndarray, lengths: np.ndarray, sep_id: int, eod_id: int) -> DialogueCount:
    """Count documents that stand one after another in `ids`; none is empty."""
    if not len(lengths):
        return DialogueCount()
    ends = np.cumsum(lengths)
    is_sep = ids == sep_id
    begins = np.zeros(len(ids), bool)
    begins[ends - lengths] = True
    begins[1:] |= ids[:-1] == eod_id  # as the loss has it: an <eod> within a document ends a dialogue too
    first = np.flatnonzero(begins)
    seps = np.add.reduceat(is_sep, first, dtype=np.int64)
    before = np.cumsum(is_sep) - is_sep - np.repeat(np.cumsum(seps) - seps, np.diff(first, append=len(ids)))
    first_of_document = np.searchsorted(first, ends - lengths)
    return DialogueCount(
        documents=len(lengths),
        tokens=len(ids),
        without_answer=int(np.count_nonzero(np.add.reduceat(seps, first_of_document) == 0)),
        unanswered=int(np.count_nonzero(np.logical_or.reduceat((seps > 0) & (seps % 2 == 0), first_of_document))),
        without_eod=int(np.count_nonzero(ids[ends - 1] != eod_id)),
        answer_tokens=int(np.count_nonzero(before % 2)),
    )


def _blocks(part: Part) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ids and lengths of the documents of `part`, about BLOCK_TOKENS at a time; empty ones are left out."""
    index = read_index(Path(part.prefix + ".idx"))
    tokens = np.memmap(part.prefix + ".bin", index.dtype, "r")
    place = part.first
    while place < part.end:
        lengths = np.asarray(index.lengths[place : min(part.end, place + BLOCK_DOCUMENTS)], np.int64)
        lengths = lengths[: max(1, int(np.searchsorted(np.cumsum(lengths), BLOCK_TOKENS, "right")))]
        first = int(index.offsets[place]) // index.dtype.itemsize
        yield np.asarray(tokens[first : first + int(lengths.sum())]), lengths[lengths > 0]
        place += len(lengths)


def _figures(count: DialogueCount) -> tuple[int, ...]:
    return tuple(asdict(count).values())

"""Instruction data as samples: whole documents, packed into rows and padded, with loss on the answers alone.

No document is cut unless it is longer than a row. Then it fills several: each goes on with the token at which the one
before it ended, and knows whose turn it is. Every document comes once an epoch; an epoch's rows do not depend on how
many epochs follow.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from megatron_yuan.data.answers import answer_mask, latest_start
from megatron_yuan.data.best_fit import best_fit
from megatron_yuan.data.dialogue_count import count_dialogues
from megatron_yuan.data.index_cache import Arrays, load_or_build
from megatron_yuan.data.index_file import read_index
from megatron_yuan.data.packing import Part, Plan
from megatron_yuan.data.sample import Sample
from megatron_yuan.data.tokenizer import Tokenizer
from megatron_yuan.errors import DataError

_PIECES, _ROWS = 2, 3  # what a draw is for; packing of plain text has 0 and 1


class NoAnswersError(DataError):
    """There is nothing in the documents that could be learned or measured."""


class Marks(NamedTuple):
    """Ids that instruction data need besides <eod>."""

    sep_id: int
    """Ends a question; also an answer that another question follows."""
    pad_id: int


def marks_of(tokenizer: Tokenizer) -> Marks:
    """Those of a tokenizer."""
    return Marks(tokenizer.special_ids["<sep>"], tokenizer.pad_id)


class DialogueRows:
    """Rows of S + 1 tokens of whole documents: at least `num_samples`, or (None) those of one epoch.

    Raises NoAnswersError where no document has an answer.
    """

    def __init__(self, part: Part, num_samples: int | None, plan: Plan, marks: Marks) -> None:
        found = read_index(Path(part.prefix + ".idx"))
        self.part, self.plan, self.marks = part, plan, marks
        self._lengths, self._offsets, self._itemsize = found.lengths, found.offsets, found.dtype.itemsize
        self._ids = np.memmap(part.prefix + ".bin", found.dtype, "r")

        def build() -> Arrays:
            lengths = np.asarray(found.lengths[part.first : part.end])
            return pack_epochs(lengths, part.first, num_samples, plan.sequence_length, plan.seed)

        identity = {
            "kind": "dialogues",
            "content": part.content,
            "documents": [part.first, part.end],
            "samples": num_samples,
            "sequence_length": plan.sequence_length,
            "seed": plan.seed,
        }
        index = load_or_build(plan.cache, identity, build)
        self._rows, self._documents, self._starts = index["rows"], index["documents"], index["starts"]
        self.rows_an_epoch = int(index["figures"][0])
        """Rows of the first epoch; another's may be a few more or less."""
        self.longer = int(index["figures"][1])
        """Documents that are longer than a row."""
        self.count = count_dialogues(part, plan, marks.sep_id)
        """What the documents are made of."""
        if not self.count.answer_tokens:
            raise NoAnswersError(
                f"sft: none of the {self.count.documents} documents {part.first} ... {part.end - 1} of {part.prefix} "
                "has a <sep> with an answer after it, so nothing can be learned of them. "
                "Fix: question<sep>answer as text, the data's own --tokenizer-model, or leave out --sft or this set."
            )

    def __len__(self) -> int:
        return len(self._rows) - 1

    def __getitem__(self, index: int) -> Sample:
        """Row `index`: its loss mask is 0 on questions and padding, and it says where documents begin."""
        size = self.plan.sequence_length + 1
        tokens = np.full(size, self.marks.pad_id, np.int64)
        mask, begins, end = np.zeros(size, np.float32), np.zeros(size, bool), 0
        for document, start in self.pieces(index):
            whole = self.document(document)
            piece = whole[start : start + size]
            here = slice(end, end + len(piece))
            tokens[here] = piece
            mask[here] = answer_mask(piece, self.marks.sep_id, self.plan.eod_id, self._seps_before(whole, start))
            # What is no label in its own row was one at the end of the row before, or is the first of all.
            mask[end] = 0
            begins[end] = True
            end = here.stop
        begins[end : end + 1] = True  # of the padding, which no document sees
        return Sample(tokens, mask, begins=begins)

    def pieces(self, index: int) -> list[tuple[int, int]]:
        """Document and first token there of each piece of row `index`."""
        row = slice(int(self._rows[index]), int(self._rows[index + 1]))
        return list(zip(self._documents[row].tolist(), self._starts[row].tolist(), strict=True))

    def document(self, number: int) -> np.ndarray:
        """Ids of a whole document, as they lie on the disk."""
        first = int(self._offsets[number]) // self._itemsize
        return self._ids[first : first + int(self._lengths[number])]

    def _seps_before(self, document: np.ndarray, start: int) -> int:
        if start == 0:
            return 0
        own = latest_start(document[: start + 1], self.plan.eod_id)[start]
        return int(np.count_nonzero(document[own:start] == self.marks.sep_id))


def pack_epochs(lengths: np.ndarray, first: int, num_samples: int | None, sequence_length: int, seed: int) -> Arrays:
    """Rows of the documents `first`, `first` + 1 ... of these lengths, epoch after epoch until there are `num_samples`.

    Row r has pieces rows[r] ... rows[r + 1] - 1; piece p is of documents[p], from its token starts[p] on.
    """
    documents, starts = cut_long(lengths, sequence_length)
    sizes = np.minimum(lengths[documents] - starts, sequence_length + 1)
    found: list[Arrays] = []
    rows = 0
    while len(documents) and (not found or rows < (num_samples or 0)):
        epoch = len(found)
        order = np.random.RandomState([seed, _PIECES, epoch]).permutation(len(documents))
        row_of = best_fit(sizes[order], sequence_length + 1)
        # Rows are shuffled too: those opened last are the ones less full.
        places = np.random.RandomState([seed, _ROWS, epoch]).permutation(int(row_of.max()) + 1)[row_of]
        by_row = np.argsort(places, kind="stable")
        order = order[by_row]
        found.append({"documents": documents[order], "starts": starts[order], "counts": np.bincount(places)})
        rows += len(found[-1]["counts"])
    counts = np.concatenate([np.zeros(0, np.int64), *(epoch["counts"] for epoch in found)])
    return {
        "rows": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        "documents": np.concatenate([np.zeros(0, np.int32), *(e["documents"] for e in found)]).astype(np.int32) + first,
        "starts": np.concatenate([np.zeros(0, np.int32), *(e["starts"] for e in found)]).astype(np.int32),
        "figures": np.array([len(found[0]["counts"]) if found else 0, (lengths > sequence_length + 1).sum()]),
    }


def cut_long(lengths: np.ndarray, sequence_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Number of the document and first token of every piece: documents longer than S + 1 tokens make several.

    A piece is S + 1 tokens and begins with the last of the one before, so each token is a label once.
    """
    pieces = np.where(lengths > 0, np.maximum(1, -(-(lengths.astype(np.int64) - 1) // sequence_length)), 0)
    documents = np.repeat(np.arange(len(lengths)), pieces)
    nth = np.arange(len(documents)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    return documents, nth * sequence_length

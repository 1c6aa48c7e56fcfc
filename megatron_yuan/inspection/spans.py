"""A row of a step in spans: runs of tokens of one document, alike in loss and in their part in fill-in-the-middle."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from megatron_yuan.data.batch import document_start
from megatron_yuan.inspection.step import Row


class Span(NamedTuple):
    """Tokens `first` ... `end` - 1 of a row."""

    first: int
    end: int
    document: int
    """Number of the document in the row, from 0."""
    loss: bool
    """Whether these tokens are learned."""
    part: str
    """In FIM: prefix, middle, suffix, or mark; else empty."""


def spans_of(row: Row, eod_id: int) -> list[Span]:
    """All of the row, in order."""
    size = len(row.tokens)
    # The function tells of inputs, with flags for one token more than these; here each token of the row is one.
    begins = None if row.begins is None else torch.from_numpy(np.append(row.begins, False))[None]
    start = document_start(torch.from_numpy(row.tokens)[None], eod_id, begins)[0].numpy()
    document = np.unique(start, return_inverse=True)[1]
    parts = np.full(size, "", object)
    for cut in row.cuts:
        place = cut.start
        for name, length in cut.spans():
            parts[place : place + length] = name
            place += length
    changes = (np.diff(document) != 0) | (np.diff(row.loss.astype(int)) != 0) | (parts[1:] != parts[:-1])
    bounds = [0, *(np.flatnonzero(changes) + 1).tolist(), size]
    return [Span(a, b, int(document[a]), bool(row.loss[a]), str(parts[a])) for a, b in pairwise(bounds)]


def text_of(ids: Sequence[int], pieces: Sequence[bytes] | None) -> str:
    """What a span stands for; without a tokenizer, its ids."""
    if pieces is None:
        return " ".join(map(str, ids))
    return b"".join(pieces[each] if 0 <= each < len(pieces) else b"<%d>" % each for each in ids).decode(
        "utf-8", "replace"
    )

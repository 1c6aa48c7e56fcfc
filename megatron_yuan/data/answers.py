"""Which tokens of a dialogue have loss: those of the answers, and the one that ends each answer.

A document is Q <sep> A, then any number of <sep> Q <sep> A, then <eod>. So a token belongs to an answer where an odd
number of <sep> stands before it in its document, and this holds for the token that ends the answer too, be it <sep> or
<eod>; a question's closing <sep> has an even number before it. A document without <sep> has no loss at all.

The published code counts the first <sep> alone, so it also learns the later questions; it leaves rows with fewer than
two <eod>, and a last question without <sep>, without their masks; and it learns whole documents that have no <sep>.
"""

from __future__ import annotations

import numpy as np


def answer_mask(tokens: np.ndarray, sep_id: int, eod_id: int, seps_before: int | None = 0) -> np.ndarray:
    """1 where a token, as a label, has loss, else 0: [n] float32 of `tokens` [n], one document or several in a row.

    `seps_before`: how many <sep> the first document had before `tokens` begin. None: nobody knows (its beginning was
    cut off), and it has no loss.
    """
    is_sep = tokens == sep_id
    seps = np.cumsum(is_sep) - is_sep  # before each token
    start = latest_start(tokens, eod_id)
    if len(seps):
        seps = seps - seps[start] + np.where(start == 0, seps_before or 0, 0)
    mask = seps % 2 == 1
    if seps_before is None:
        mask &= start > 0
    return mask.astype(np.float32)


def latest_start(tokens: np.ndarray, eod_id: int) -> np.ndarray:
    """Where the document of each token begins in `tokens`, a document ending with its <eod>: [n] int64."""
    here = np.arange(len(tokens))
    begins = np.zeros(len(tokens), bool)
    begins[1:] = tokens[:-1] == eod_id
    return np.maximum.accumulate(np.where(begins, here, 0))

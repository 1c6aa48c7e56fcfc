"""When a row has said enough: at a stop token, or once its text holds a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

SLACK = 8  # tokens beyond a stop string's own: spaces and special tokens that decode to little


class Stops:
    """Stop ids and stop strings of one batch. `decode` makes text of ids; it is needed for strings alone."""

    def __init__(
        self,
        ids: Sequence[int] = (),
        strings: Sequence[str] = (),
        decode: Callable[[Sequence[int]], str] | None = None,
        rows: int = 1,
    ) -> None:
        self.ids, self.strings, self._decode = frozenset(ids), [each for each in strings if each], decode
        self.stopped = [False] * rows
        self._new: list[list[int]] = [[] for _ in range(rows)]
        # A character has up to four bytes, and a byte may be a token.
        self._tail = max((4 * len(each) for each in self.strings), default=0) + SLACK

    def see(self, ids_B: Tensor) -> Tensor:
        """Note a new token of each row; which rows have stopped, [B] bool."""
        for row, token in enumerate(ids_B.tolist()):
            if self.stopped[row]:
                continue
            self._new[row].append(token)
            self.stopped[row] = token in self.ids or self._said(self._new[row])
        return torch.tensor(self.stopped, device=ids_B.device)

    def __bool__(self) -> bool:
        return bool(self.ids or self.strings)

    @property
    def all_stopped(self) -> bool:
        """Whether nothing is left to do."""
        return all(self.stopped)

    def lengths(self, rows: Sequence[Sequence[int]]) -> list[int]:
        """How many of each row's tokens count: those before a stop id, or up to the end of a stop string."""
        return [len(new) - (new[-1] in self.ids) if new else len(row) for new, row in zip(self._new, rows, strict=True)]

    def _said(self, new: list[int]) -> bool:
        if not self.strings or self._decode is None:
            return False
        text = self._decode(new[-self._tail :])
        return any(each in text for each in self.strings)


def cut_text(text: str, strings: Sequence[str]) -> str:
    """Text up to and without the first of `strings`."""
    ends = [at for each in strings if each and (at := text.find(each)) >= 0]
    return text[: min(ends)] if ends else text

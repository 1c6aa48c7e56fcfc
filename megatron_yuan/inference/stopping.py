"""When a row has said enough: at a stop token, or once its text holds a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from megatron_yuan.inference.streaming import TextStream


class Stops:
    """Stop ids and stop strings of one batch. Strings are found in the text of each row behind its prompt; they alone
    need `decode` and `prompts`."""

    def __init__(
        self,
        ids: Sequence[int] = (),
        strings: Sequence[str] = (),
        decode: Callable[[list[int]], str] | None = None,
        rows: int = 1,
        prompts: Sequence[Sequence[int]] = (),
    ) -> None:
        self.ids, self.strings = frozenset(ids), [each for each in strings if each]
        self.stopped = [False] * rows
        self._new: list[list[int]] = [[] for _ in range(rows)]
        self._streams = [TextStream(decode, prompt) for prompt in prompts] if decode and self.strings else []
        self._texts = [""] * rows

    def see(self, ids_B: Tensor) -> Tensor:
        """Note a new token of each row; which rows have stopped, [B] bool."""
        for row, token in enumerate(ids_B.tolist()):
            if self.stopped[row]:
                continue
            self._new[row].append(token)
            self.stopped[row] = token in self.ids or self._said(row, token)
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

    def _said(self, row: int, token: int) -> bool:
        if not self._streams:
            return False
        new = self._streams[row].push(token)
        longest = max(map(len, self.strings))
        self._texts[row] = self._texts[row][-longest:] + new
        return any(each in self._texts[row] for each in self.strings)


def cut_text(text: str, strings: Sequence[str]) -> str:
    """Text up to and without the first of `strings`."""
    ends = [at for each in strings if each and (at := text.find(each)) >= 0]
    return text[: min(ends)] if ends else text

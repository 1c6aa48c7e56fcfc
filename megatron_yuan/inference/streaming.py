"""Text as it comes, token by token: a character of several tokens is held back until its last byte is there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What a decoder writes for bytes that are no character, or not yet."""

_WINDOW = 8
"""Settled tokens decoded again with the new ones, and the most tokens held back: a character has up to 4 bytes."""


def stream_text(tokens: Iterable[int], decode: Callable[[list[int]], str], prompt: Sequence[int] = ()) -> Iterator[str]:
    """The text of `tokens` in pieces, each as early as it is certain; joined, they are the text behind the prompt's.

    Only the last few tokens are decoded again at each step: a token's spaces depend on its neighbours, not on the
    text far before it. A special token after text stands without the space that decoding all at once sets before that
    text: it would have to be known before the token came.
    """
    text = TextStream(decode, prompt)
    for token in tokens:
        if piece := text.push(token):
            yield piece
    if rest := text.rest():
        yield rest


class TextStream:
    """What `stream_text` goes by, for tokens that come from elsewhere."""

    def __init__(self, decode: Callable[[list[int]], str], prompt: Sequence[int] = ()) -> None:
        self._decode, self._settled, self._pending = decode, list(prompt[-_WINDOW:]), list[int]()

    def push(self, token: int) -> str:
        """The text that is certain since the token before."""
        self._pending.append(token)
        text = self.rest()
        if text.endswith(UNFINISHED) and len(self._pending) < _WINDOW:
            return ""
        self._settled, self._pending = (self._settled + self._pending)[-_WINDOW:], []
        return text

    def rest(self) -> str:
        """The text that is held back."""
        return _behind(self._settled, self._pending, self._decode) if self._pending else ""


def text_behind(prompt: Sequence[int], ids: Sequence[int], decode: Callable[[list[int]], str]) -> str:
    """The text of an answer's `ids` as it goes on from the prompt: by itself, it would lose a leading space."""
    return "".join(stream_text(ids, decode, prompt))


def _behind(settled: list[int], pending: list[int], decode: Callable[[list[int]], str]) -> str:
    before, text = decode(settled), decode(settled + pending)
    return text[len(before) :] if text.startswith(before) else decode(pending)

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
    settled = list(prompt[-_WINDOW:])
    pending: list[int] = []
    for token in tokens:
        pending.append(token)
        text = _behind(settled, pending, decode)
        if text.endswith(UNFINISHED) and len(pending) < _WINDOW:
            continue
        yield text
        settled, pending = (settled + pending)[-_WINDOW:], []
    if pending:
        yield _behind(settled, pending, decode)


def text_behind(prompt: Sequence[int], ids: Sequence[int], decode: Callable[[list[int]], str]) -> str:
    """The text of an answer's `ids` as it goes on from the prompt: by itself, it would lose a leading space."""
    return "".join(stream_text(ids, decode, prompt))


def _behind(settled: list[int], pending: list[int], decode: Callable[[list[int]], str]) -> str:
    before, text = decode(settled), decode(settled + pending)
    return text[len(before) :] if text.startswith(before) else decode(pending)

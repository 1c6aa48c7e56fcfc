"""Text as it comes, token by token: a character of several tokens is held back until its last byte is there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What a decoder writes for bytes that are no character, or not yet."""

_LONGEST = 8  # tokens held back at most: a character has up to 4 bytes, so more than that is not going to become one


def stream_text(tokens: Iterable[int], decode: Callable[[list[int]], str], prompt: Sequence[int] = ()) -> Iterator[str]:
    """The text of `tokens` in pieces, each as early as it is certain; joined, they are the text behind the prompt's.

    Only the last few tokens are decoded again at each step: the text of the ones before is settled. The prompt's last
    tokens serve as what goes before, since the first piece's leading space depends on it.
    """
    settled = list(prompt[-_LONGEST:])
    before = decode(settled)
    pending: list[int] = []
    for token in tokens:
        pending.append(token)
        text = decode(settled + pending)
        if text.endswith(UNFINISHED) and len(pending) < _LONGEST:
            continue
        yield text[len(before) :]
        settled, pending = pending, []
        before = decode(settled)
    if pending:
        yield decode(settled + pending)[len(before) :]

from __future__ import annotations

import torch

from megatron_yuan.inference.stopping import Stops
from megatron_yuan.inference.streaming import stream_text


def decode_bytes(ids: list[int]) -> str:
    return bytes(ids).decode("utf-8", errors="replace")


def decode_words(ids: list[int]) -> str:
    """Like SentencePiece: each piece has a space before it, which the text's first loses."""
    return "".join(f" w{i}" for i in ids).removeprefix(" ")


def test_a_character_of_many_bytes_comes_whole() -> None:
    pieces = list(stream_text("aé从🙂z".encode(), decode_bytes))
    assert pieces == ["a", "é", "从", "🙂", "z"]


def test_each_piece_comes_as_soon_as_its_token() -> None:
    seen: list[int] = []

    def tokens():
        for byte in b"abc":
            seen.append(byte)
            yield byte

    for count, _ in enumerate(stream_text(tokens(), decode_bytes), start=1):
        assert len(seen) == count


def test_the_space_between_prompt_and_answer_is_kept() -> None:
    assert "".join(stream_text([3, 4], decode_words, prompt=[1, 2])) == " w3 w4"
    assert "".join(stream_text([3, 4], decode_words)) == "w3 w4"


def test_bytes_that_never_become_a_character_are_shown_and_hold_nothing_up() -> None:
    pieces = list(stream_text([0xE4, ord("a"), *[0x80] * 20, ord("b"), 0xE4], decode_bytes))
    assert pieces[0] == "\N{REPLACEMENT CHARACTER}a"
    assert "".join(pieces).endswith("b\N{REPLACEMENT CHARACTER}") and len(pieces) > 3


def test_no_tokens_give_no_text() -> None:
    assert list(stream_text([], decode_bytes, prompt=[65])) == []


def test_a_stop_string_that_begins_with_a_space_is_seen_where_the_answer_begins() -> None:
    stops = Stops(strings=[" w3", "w9 w5"], decode=decode_words, rows=3, prompts=[[1, 2], [1], [4]])
    assert stops.see(torch.tensor([3, 9, 9])).tolist() == [True, False, False]
    assert stops.see(torch.tensor([8, 5, 3])).tolist() == [True, True, True]
    assert stops.lengths([[3, 8], [9, 5], [9, 3]]) == [1, 2, 2]

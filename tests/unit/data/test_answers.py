"""Each place where the published loss mask is wrong, right here."""

from __future__ import annotations

import numpy as np
import pytest

from megatron_yuan.data.answers import answer_mask

SEP, EOD = 7, 1
WORDS = {"|": SEP, ".": EOD, "?": 3, "!": 4}


def masked(row: str, seps_before: int | None = 0) -> str:
    """Of a row written with ? in questions, ! in answers, | for <sep> and . for <eod>: 1 where a label has loss."""
    ids = np.array([WORDS[letter] for letter in row])
    return "".join(str(int(each)) for each in answer_mask(ids, SEP, EOD, seps_before))


def test_the_answer_and_the_token_that_ends_it_have_loss_and_the_question_has_none() -> None:
    assert masked("??|!!!.") == "0001111"


def test_every_later_question_is_left_out_too() -> None:  # published: (a) only the first <sep> counts
    assert masked("??|!!|??|!|?|!.") == "000111000110011"


def test_one_eod_in_a_row_is_enough() -> None:  # published: (b) the question after it is trained on
    assert masked("?|!!.??|!") == "001110001"


def test_a_row_without_eod_is_masked_as_well() -> None:  # published: (c) nothing is masked
    assert masked("???|!!") == "000011"


def test_a_last_question_without_sep_has_no_loss() -> None:  # published: (d) it is trained on
    assert masked("?|!.???") == "0011000"
    assert masked("?|!|??") == "001100"


def test_a_document_without_sep_has_no_loss() -> None:  # published: (e) it is trained on
    assert masked("?|!.????.?|!.") == "0011000000011"


def test_what_a_row_begins_with_is_masked_until_its_turn_is_known() -> None:
    assert masked("!!.?|!.", None) == "0000011"
    assert masked("!|?|!", None) == "00000"


@pytest.mark.parametrize(("seps", "expected"), [(0, "00110"), (1, "11001"), (2, "00110"), (3, "11001")])
def test_a_turn_that_is_known_goes_on(seps: int, expected: str) -> None:
    assert masked("?|!|?", seps) == expected


def test_an_empty_answer_is_its_end_and_an_empty_question_is_nothing() -> None:
    assert masked("?|.") == "001"
    assert masked("?|||!.") == "001011"
    assert masked("?|!|.") == "00110"
    assert masked(".") == masked("|") == "0" and masked("") == ""

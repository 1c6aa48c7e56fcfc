"""What is read out of an answer in words."""

from __future__ import annotations

import pytest

from megatron_yuan.evaluation.scoring import final_answer, first_letter, last_number, same_formula, same_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3 apples and 4 make 7.", 7.0),
        ("It costs $1,234.50.", 1234.5),
        ("The answer is -3", -3.0),
        ("10-3", 3.0),
        ("-$5", -5.0),
        (r"a loss of -\$5", -5.0),
        ("x = −5", -5.0),
        (r"Hence \boxed{1{,}250}", 1250.0),
        ("none", None),
        ("", None),
    ],
)
def test_the_last_number_counts(text: str, number: float | None) -> None:
    assert last_number(text) == number


def test_a_large_number_that_is_one_off_is_wrong_and_rounding_is_not() -> None:
    assert not same_number(5_000_001.0, 5_000_000.0)
    assert same_number(0.1 + 0.2, 0.3)
    assert not same_number(None, 0.0) and not same_number(float("inf"), float("inf"))


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B. Because A is wrong", "B"),
        ("A man would say C", "C"),
        ("I think that the answer is (D).", "D"),
        ("Answer: C", "C"),
        ("Vitamin C is one. The answer is option B.", "B"),
        ("Unlike A, the answer is **Choice (D)**", "D"),
        ("A is too low. The correct option is B", "B"),
        ("apple", None),
        ("", None),
    ],
)
def test_the_first_letter_counts_unless_one_is_named_as_the_answer(text: str, letter: str | None) -> None:
    assert first_letter(text) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A because B is wrong", "A"),
        ("A is right, B is not", "A"),
        ("The correct option is A as B is wrong", "A"),
        ("The answer is A because B is wrong", "A"),
        ("B is wrong. The answer is A since it is", "A"),
        ("I choose A rather than B", "A"),
        ("A train leaves, so B", "B"),
        ("Let us see. A train leaves at noon. C", "C"),
        ("Answer: A train leaves, so the answer is C", "C"),
        ("A train leaves", None),
        ("I think so", None),
    ],
)
def test_the_answer_a_is_told_from_the_article(text: str, letter: str | None) -> None:
    assert first_letter(text) == letter


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("As $x=1$. Final Answer: The final answer is $17$. I hope it is correct.", "17"),
        ("The answer is 3. This is because of it.", "3"),
        (r"The final answer is $\$32,\!348$. I hope it is correct.", r"\$32,\!348"),
        (r"It costs \$5 and $x = 4$", "4"),
        ("The answer is $5$ meters.\nGood bye", "5"),
        (r"Therefore, $x = \frac{1}{2}$", r"\frac{1}{2}"),
        ("Thus the answer is: $41$", "41"),
        ("The answer is:\n41.", "41"),
        ("The answer is 7. Now what is the answer:", "7"),
        (r"so \(y = 2\) and \[x = 5.\]", "5"),
        (r"The answer is \(5\).", "5"),
        (r"The answer is \[\begin{pmatrix} 1 \\[2pt] 2 \end{pmatrix}\]", r"\begin{pmatrix} 1 \\[2pt] 2 \end{pmatrix}"),
        ("**The answer is 5.**", "5"),
        ("The answer is **.5**.", ".5"),
        ("**Answer**: 5", "5"),
        ("**Answer:**\n\n5", "5"),
        ("The answer is $5$, since $2+3=5$.", "5"),
        ("The answer is 5 because 2 + 3 = 5.", "5"),
        ("Since $2+3=5$, the answer is $x=3$ and $y=4$", "$x=3$ and $y=4$"),
        ("2 + 3 = 5\n#### 5", "5"),
        ("$2 + 3 = 5$\n#### $\\frac{5}{1}$.\nQ: $7$", r"\frac{5}{1}"),
        ("so it is $4$ ####", "4"),
        ("17", "17"),
        ("I do not know", None),
        ("", None),
    ],
)
def test_the_final_answer_of_a_worked_solution(text: str, answer: str | None) -> None:
    pytest.importorskip("lm_eval")
    assert final_answer(text) == answer


def test_a_box_is_the_answer_and_fractions_are_normalised() -> None:
    pytest.importorskip("lm_eval")
    assert final_answer(r"Hence \boxed{\frac{1}{2}} it is") == r"\frac{1}{2}"
    assert same_formula(r"\frac12", r"\frac{1}{2}")
    assert same_formula("1,000", "1000") and not same_formula("1000", "10")
    assert same_formula("11000100", r"11,\! 000,\! 100") and same_formula("1{,}000", "1000")
    assert same_formula("−5", "-5") and not same_formula("(1, 200)", "(1200)")
    assert not same_formula(None, "")

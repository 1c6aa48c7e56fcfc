"""From an answer in words to right or wrong. An answer in which nothing is found counts as wrong, and is counted.

Each `score_*` has the form in which the harness calls it: the question, its answers (one) -> figures.
"""

from __future__ import annotations

import math
import re
from typing import Any

from megatron_yuan.evaluation.task_data import Question

NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|[-+]?\.\d+")
LETTER = re.compile(r"(?<![A-Za-z])([A-K])(?![A-Za-z'’])")
WORD = re.compile(r"(?:(?<!\w )A|I)\s+(?!(?:because|since|as|is|was|has|would|due|and|or|but)\b)[a-z]")
"""An "A" or "I" that is a word itself, before one in small letters, other than those that no article has behind it.
Within a sentence an article is written small."""
NAMED = re.compile(
    r"(?:answer|(?:correct|right|best) (?:option|choice))\s*(?:is|:)\s*\W{0,4}(?:(?:option|choice)\s*\W{0,4})?$",
    re.IGNORECASE,
)
"""What stands before a letter that is named as the answer."""
SAID = re.compile(r"\banswer\**\s*(?:is\b\s*:?|:)", re.IGNORECASE)
BEHIND = re.compile(r"\.\s+(?=[A-Z])|\n")
"""Where a named answer ends: with its sentence or its line."""
REASON = re.compile(r"[,;]?\s+(?:because|since)\b")
"""What stands behind a named answer without being part of it."""
MARK = "####"
"""Before the answer in GSM8K's manner."""
FORMULA = re.compile(r"(?<!\\)\$+((?:\\.|[^$\\])+)\$+", re.DOTALL)
"""Between dollars, of which those behind a backslash are a currency's."""
BRACKETED = re.compile(r"(?<!\\)\\(?:\((.+?)(?<!\\)\\\)|\[(.+?)(?<!\\)\\\])", re.DOTALL)
r"""LaTeX's other delimiters of a formula, \( \) and \[ \]; a line break \\[2pt] is none."""
THOUSANDS = re.compile(r"(?<=\d)(?:,|\{,\})(?:\\!\s*)?(?=\d{3}(?!\d))")
RELATIVE = 1e-9
"""Of two numbers that are the same: answers of millions that are one off are wrong."""


def last_number(text: str) -> float | None:
    """The last number of `text`; commas between thousands and a minus behind nothing but space are part of it."""
    text = _plain_signs(text).replace("{,}", ",").replace("\\$", "$")
    found = list(NUMBER.finditer(text))
    if not found:
        return None
    number = found[-1]
    value = number[0]
    before = text[: number.start()].rstrip()
    if value[0] in "+-" and before and (before[-1].isalnum() or before[-1] in ")]") and text[number.start() - 1] != " ":
        value = value[1:]  # 7-3, or a range
    elif value[0] in "+-" and before and before[-1].isdigit():
        value = value[1:]  # 7 -3
    if before.endswith(("-$", "- $", "-€", "-£")):
        value = f"-{value}"
    return float(value.replace(",", ""))


def _plain_signs(text: str) -> str:
    return text.replace("\N{MINUS SIGN}", "-")


def same_number(found: float | None, gold: float) -> bool:
    """Equal but for rounding."""
    return found is not None and math.isfinite(found) and math.isclose(found, gold, rel_tol=RELATIVE, abs_tol=1e-9)


def first_letter(text: str) -> str | None:
    """The first letter A to K that stands alone, in an answer of the form "The answer is B" the one named."""
    found = [each for each in LETTER.finditer(text) if not WORD.match(text, each.start())]
    named = [each for each in found if NAMED.search(text[: each.start()])]
    return (named or found)[0][1] if found else None


def boxed(text: str) -> str | None:
    r"""What the last \boxed{...} holds, by the harness's own reading."""
    from lm_eval.tasks.hendrycks_math import utils

    found = utils.last_boxed_only_string(text)
    try:
        return None if found is None else utils.remove_boxed(found)
    except AssertionError:
        return None


def final_answer(text: str) -> str | None:
    """Of a worked solution: what "the answer is" names, the last box, what is marked ####, or the last formula."""
    text = BRACKETED.sub(lambda found: f"${found[1] or found[2]}$", text)
    for behind in reversed(SAID.split(text)[1:]):
        answer = BEHIND.split(behind.strip("* \t\r\n"), 1)[0]
        answer = REASON.split(answer, 1)[0].rstrip("*. \t\r")  # stars are bold type
        if not answer:
            continue
        inside = boxed(answer)
        if inside is not None:
            return inside
        formulas = FORMULA.findall(answer)
        return formulas[0] if len(formulas) == 1 and answer.startswith("$") else answer
    inside = boxed(text)
    if inside is not None:
        return inside
    marked = text.rpartition(MARK)[2].strip().partition("\n")[0] if MARK in text else ""
    formulas = FORMULA.findall(marked or text)
    if marked and not formulas:
        return marked.rstrip("*. ")
    if formulas:
        return formulas[-1].rsplit("=", 1)[-1].strip().rstrip(". ")
    text = text.strip()
    return text if text and "\n" not in text and " " not in text else None


def same_formula(found: str | None, gold: str) -> bool:
    """Equal after the harness's normalisation of the MATH data set, spaces and thousands' commas aside."""
    if found is None:
        return False
    from lm_eval.tasks.hendrycks_math.utils import is_equiv

    found, gold = _plain_signs(found), _plain_signs(gold)
    plain = [THOUSANDS.sub("", each).strip() for each in (found, gold)]
    return bool(is_equiv(found, gold)) or plain[0] == plain[1]


def _figures(right: bool, answered: bool) -> dict[str, Any]:
    return {"acc": float(right), "answered": float(answered)}


def score_number(question: Question, answers: list[str]) -> dict[str, Any]:
    """GSM8K."""
    found = last_number(answers[0])
    return _figures(same_number(found, float(question["answer"])), found is not None)


def score_formula(question: Question, answers: list[str]) -> dict[str, Any]:
    """MATH."""
    found = final_answer(answers[0])
    return _figures(same_formula(found, question["answer"]), found is not None)


def score_letter(question: Question, answers: list[str]) -> dict[str, Any]:
    """MMLU and ARC-C, answered in words."""
    found = first_letter(answers[0])
    return _figures(found == question["answer"], found is not None)


def score_choice(question: Question, answers: list[tuple[float, bool]]) -> dict[str, Any]:
    """MMLU and ARC-C, by probability: the first of the likeliest letters."""
    logprobs = [logprob for logprob, _ in answers]
    if any(math.isnan(each) for each in logprobs):
        return _figures(False, False)
    return _figures(logprobs.index(max(logprobs)) == question["gold"], True)


def later(_question: Question, answers: list[str]) -> dict[str, Any]:
    """HumanEval: programs are run once all answers are there."""
    return _figures(False, bool(answers[0].strip()))


def whole_program(question: Question, answer: str, fenced: bool) -> str:
    """Signature, docstring and what the model wrote behind. `fenced`: up to the closing fence."""
    return question["prompt"] + (answer.split("```", 1)[0] if fenced else answer) + "\n"

"""Word problems of two steps in the manner of GSM8K: the answer shows the sums, and its last line is '#### number'."""

from __future__ import annotations

from random import Random

from sample.template import Fields, Template
from sample.world import COUNTED, NAMES


def _people(rng: Random, lang: str) -> Fields:
    first, second = rng.sample(NAMES, 2)
    return {"name": first[lang], "other": second[lang], "thing": rng.choice(COUNTED)[lang]}


def _gain_and_give(rng: Random, lang: str) -> Fields:
    a, b = rng.randint(2, 10), rng.randint(1, 9)
    c = rng.randint(1, min(9, a + b - 1))
    return _people(rng, lang) | {"a": str(a), "b": str(b), "c": str(c), "d": str(a + b), "e": str(a + b - c)}


def _give_and_gain(rng: Random, lang: str) -> Fields:
    left, b, c = rng.randint(2, 9), rng.randint(1, 9), rng.randint(1, 9)
    return _people(rng, lang) | {"a": str(left + b), "b": str(b), "c": str(c), "d": str(left), "e": str(left + c)}


def _boxes_and_more(rng: Random, lang: str) -> Fields:
    a, b = rng.randint(2, 5), rng.randint(2, 5)
    c = rng.randint(1, min(9, a * b - 1))
    return _people(rng, lang) | {"a": str(a), "b": str(b), "c": str(c), "d": str(a * b), "e": str(a * b - c)}


_ABC = ("a", "b", "c")

PROBLEM_TEMPLATES = (
    Template(
        "two steps",
        "buys_and_gives",
        "{name} has {a} {thing}, buys {b} more and gives {c} to {other}. How many {thing} has {name} now?",
        "{name}有{a}个{thing},又买了{b}个,送给{other}{c}个。{name}现在有几个{thing}?",
        "{a} + {b} = {d}\n{d} - {c} = {e}\n#### {e}",
        _gain_and_give,
        _ABC,
    ),
    Template(
        "two steps",
        "gives_and_buys",
        "{name} has {a} {thing}, gives {b} to {other} and then buys {c}. How many {thing} has {name} now?",
        "{name}有{a}个{thing},送给{other}{b}个,然后买了{c}个。{name}现在有几个{thing}?",
        "{a} - {b} = {d}\n{d} + {c} = {e}\n#### {e}",
        _give_and_gain,
        _ABC,
    ),
    Template(
        "two steps",
        "boxes_and_eats",
        "{name} has {a} boxes of {b} {thing} each, and {other} takes {c} {thing}. How many are left?",
        "{name}有{a}个盒子,每个有{b}个{thing},{other}拿走了{c}个。还剩几个?",
        "{a} * {b} = {d}\n{d} - {c} = {e}\n#### {e}",
        _boxes_and_more,
        _ABC,
    ),
)


def follow_up(rng: Random, lang: str, result: int) -> tuple[str, str]:
    """A question that goes on from an answer, and its answer."""
    more = rng.randint(1, 9)
    if result > more and rng.random() < 0.5:
        question = f"And with {more} less?" if lang == "en" else f"少{more}个呢?"
        return question, f"{result} - {more} = {result - more}\n#### {result - more}"
    question = f"And with {more} more?" if lang == "en" else f"多{more}个呢?"
    return question, f"{result} + {more} = {result + more}\n#### {result + more}"

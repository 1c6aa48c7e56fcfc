"""Question templates about numbers: word problems, comparison, sequences, units, number words, and short programs."""

from __future__ import annotations

from random import Random

from sample.template import Fields, Template
from sample.world import COUNTED, NAMES, number_words


def _story(rng: Random, lang: str) -> Fields:
    first, second = rng.sample(NAMES, 2)
    return {"name": first[lang], "other": second[lang], "thing": rng.choice(COUNTED)[lang]}


def _sum(rng: Random, lang: str) -> Fields:
    a, b = rng.randint(2, 10), rng.randint(1, 9)
    return _story(rng, lang) | {"a": str(a), "b": str(b), "c": str(a + b)}


def _difference(rng: Random, lang: str) -> Fields:
    a = rng.randint(3, 12)
    b = rng.randint(1, a - 1)
    return _story(rng, lang) | {"a": str(a), "b": str(b), "c": str(a - b)}


def _product(rng: Random, lang: str) -> Fields:
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    return _story(rng, lang) | {"a": str(a), "b": str(b), "c": str(a * b)}


def _ages(rng: Random, lang: str) -> Fields:
    a, b = rng.sample(range(1, 16), 2)
    fields = _story(rng, lang)
    names = (fields["name"], fields["other"])
    return fields | {"a": str(a), "b": str(b), "older": names[a < b]}


def _two_numbers(rng: Random, lang: str) -> Fields:
    a, b = rng.sample(range(10, 100), 2)
    return {"a": str(a), "b": str(b), "large": str(max(a, b))}


def _steps(rng: Random, lang: str) -> Fields:
    start, step = rng.randint(1, 30), rng.randint(1, 5)
    values = [start + step * i for i in range(5)]
    if rng.random() < 0.5:
        values.reverse()
    return {"shown": ", ".join(map(str, values[:4])), "next": str(values[4])}


def _quantity(rng: Random, lang: str) -> Fields:
    return {"a": str(rng.randint(2, 99))}


def _weeks(rng: Random, lang: str) -> Fields:
    a, name = rng.randint(2, 12), rng.choice(NAMES)[lang]
    return {"name": name, "a": str(a), "c": str(7 * a)}


def _number(rng: Random, lang: str) -> Fields:
    number = rng.randint(1, 99)
    words = number_words(number)
    return {"n": str(number), "en": words.en, "zh": words.zh}


def _listing(rng: Random, lang: str) -> Fields:
    values = rng.sample(range(10), 3)
    index = rng.randrange(3)
    return {
        "values": ", ".join(map(str, values)),
        "i": str(index),
        "item": str(values[index]),
        "max": str(max(values)),
    }


_PRINTS_EN, _PRINTS_ZH = "What does this print?\n", "这个程序输出什么?\n"
_ADD = "def f(x): return x + {b}\nprint(f({a}))"
_MULTIPLY = "def f(x): return x * {b}\nprint(f({a}))"
_INDEX = "items = [{values}]\nprint(items[{i}])"
_MAX = "items = [{values}]\nprint(max(items))"
_A, _AB = ("a",), ("a", "b")

NUMBER_TEMPLATES = (
    Template(
        "addition",
        "buys_more",
        "{name} has {a} {thing} and buys {b} more. How many now?",
        "{name}有{a}个{thing},又买了{b}个。现在有几个?",
        "{a} + {b} = {c}",
        _sum,
        _AB,
    ),
    Template(
        "addition",
        "bus",
        "There are {a} people on the bus and {b} get on. How many now?",
        "车上有{a}个人,又上来{b}个人。现在有几个?",
        "{a} + {b} = {c}",
        _sum,
        _AB,
    ),
    Template(
        "subtraction",
        "gives_away",
        "{name} has {a} {thing} and gives {b} to {other}. How many are left?",
        "{name}有{a}个{thing},送给{other}{b}个。还剩几个?",
        "{a} - {b} = {c}",
        _difference,
        _AB,
    ),
    Template(
        "subtraction",
        "birds",
        "On the roof sit {a} birds and {b} fly away. How many are left?",
        "屋顶上有{a}只鸟,飞走了{b}只。还剩几个?",
        "{a} - {b} = {c}",
        _difference,
        _AB,
    ),
    Template(
        "multiplication",
        "boxes",
        "{name} has {a} boxes of {b} {thing}. How many {thing}?",
        "{name}有{a}个盒子,每个盒子里有{b}个{thing}。一共有几个?",
        "{a} * {b} = {c}",
        _product,
        _AB,
    ),
    Template(
        "comparison",
        "older",
        "{name} is {a} years old, {other} is {b}. Who is older?",
        "{name}{a}岁,{other}{b}岁。谁的年纪大?",
        "{older}",
        _ages,
        _AB,
    ),
    Template(
        "comparison",
        "larger",
        "Which number is larger, {a} or {b}?",
        "在{a}和{b}里,哪个数大?",
        "{large}",
        _two_numbers,
        _AB,
    ),
    Template(
        "sequence",
        "next_number",
        "Which number comes next: {shown}?",
        "下一个数是什么:{shown}?",
        "{next}",
        _steps,
        ("shown",),
    ),
    Template(
        "units", "metres", "How many centimetres are {a} metres?", "换算:{a}米是多少厘米?", "{a}00", _quantity, _A
    ),
    Template(
        "units", "kilograms", "How many grams are {a} kilograms?", "换算:{a}千克是多少克?", "{a}000", _quantity, _A
    ),
    Template(
        "units",
        "weeks",
        "{name} travels for {a} weeks. How many days?",
        "{name}旅行了{a}个星期。一共多少天?",
        "{a} * 7 = {c}",
        _weeks,
        ("a", "name"),
    ),
    Template("number words", "to_digits_en", 'Write "{en}" in digits.', "英语的{en}是数字几?", "{n}", _number, ("n",)),
    Template("number words", "to_digits_zh", "Which number is {zh}?", "把{zh}写成数字。", "{n}", _number, ("n",)),
    Template(
        "number words", "number_to_english", "What is {zh} in English?", "“{zh}”用英语怎么说?", "{en}", _number, ("n",)
    ),
    Template(
        "number words", "number_to_chinese", "What is {en} in Chinese?", "“{en}”用中文怎么说?", "{zh}", _number, ("n",)
    ),
    Template("program", "print_sum", _PRINTS_EN + _ADD, _PRINTS_ZH + _ADD, "{c}", _sum, _AB),
    Template("program", "print_product", _PRINTS_EN + _MULTIPLY, _PRINTS_ZH + _MULTIPLY, "{c}", _product, _AB),
    Template("program", "print_item", _PRINTS_EN + _INDEX, _PRINTS_ZH + _INDEX, "{item}", _listing, ("values", "i")),
    Template("program", "print_max", _PRINTS_EN + _MAX, _PRINTS_ZH + _MAX, "{max}", _listing, ("values",)),
)

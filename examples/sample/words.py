"""Question templates about words: facts of the invented people, calendars, opposites, lists, and translation."""

from __future__ import annotations

from random import Random

from sample.template import Fields, Template
from sample.world import ANIMALS, COLOURS, DAYS, NAMES, OBJECTS, OPPOSITES, PEOPLE, PLANTS

_THINGS = (*ANIMALS, *PLANTS, *OBJECTS)


def _person(rng: Random, lang: str) -> Fields:
    person = rng.choice(PEOPLE)
    facts = {"city": person.city, "job": person.job, "pet": person.pet, "colour": person.colour}
    return {"name": person.name[lang]} | {fact: word[lang] for fact, word in facts.items()}


def _owners(rng: Random, lang: str) -> Fields:
    (first, second), (one, two) = rng.sample(NAMES, 2), rng.sample(COLOURS, 2)
    asked = rng.randrange(2)
    return {
        "first": first[lang], "second": second[lang], "one": one[lang], "two": two[lang],
        "owner": (first, second)[asked][lang], "colour": (one, two)[asked][lang],
    }  # fmt: skip


def _days(rng: Random, lang: str) -> Fields:
    today, later = rng.randrange(7), rng.randint(2, 9)
    return {"today": DAYS[today][lang], "n": str(later), "day": DAYS[(today + later) % 7][lang]}


def _opposite(rng: Random, lang: str) -> Fields:
    pair = list(rng.choice(OPPOSITES))
    rng.shuffle(pair)
    first, second = rng.sample(NAMES, 2)
    return {"name": first[lang], "other": second[lang], "word": pair[0][lang], "opposite": pair[1][lang]}


def _choice(rng: Random, lang: str) -> Fields:
    animal = rng.choice(ANIMALS)
    options = [animal, rng.choice(PLANTS), rng.choice(OBJECTS)]
    rng.shuffle(options)
    return {"options": " ".join(word[lang] for word in options), "animal": animal[lang]}


def _items(rng: Random, lang: str) -> Fields:
    words = [word[lang] for word in rng.sample(_THINGS, 3)]
    return {"words": " ".join(words), "first": words[0], "last": words[-1]}


def _pair(rng: Random, lang: str) -> Fields:
    one, two = rng.sample(_THINGS, 2)
    return {"en": f"{one.en} and {two.en}", "zh": f"{one.zh}和{two.zh}"}


_NAME = ("name",)
_OWNERS = ("first", "second", "owner", "colour")

WORD_TEMPLATES = (
    Template("facts", "city", "In which city does {name} live?", "{name}住在哪个城市?", "{city}", _person, _NAME),
    Template("facts", "job", "What is the job of {name}?", "{name}的职业是什么?", "{job}", _person, _NAME),
    Template("facts", "pet", "Which animal does {name} keep?", "{name}养了什么动物?", "{pet}", _person, _NAME),
    Template(
        "facts", "colour", "Which colour does {name} like best?", "{name}最喜欢什么颜色?", "{colour}", _person, _NAME
    ),
    Template(
        "reading",
        "owner",
        "{first} has a {one} ball and {second} has a {two} ball. Who has the {colour} ball?",
        "{first}有一个{one}的球,{second}有一个{two}的球。谁有{colour}的球?",
        "{owner}",
        _owners,
        _OWNERS,
    ),
    Template(
        "reading",
        "colour_of_bag",
        "{first} has a {one} bag and {second} has a {two} bag. Which colour is the bag of {owner}?",
        "{first}的包是{one}的,{second}的包是{two}的。{owner}的包是什么颜色?",
        "{colour}",
        _owners,
        _OWNERS,
    ),
    Template(
        "calendar",
        "days_later",
        "Today is {today}. Which day is it {n} days later?",
        "今天是{today}。{n}天以后是星期几?",
        "{day}",
        _days,
        ("today", "n"),
    ),
    Template(
        "opposites",
        "says_opposite",
        '{name} says "{word}", {other} says the opposite. What is it?',
        "{name}说“{word}”,{other}说的正好相反。是什么?",
        "{opposite}",
        _opposite,
        ("word", "name"),
    ),
    Template(
        "opposites",
        "not_this",
        "The coat of {name} is not {word}, but the opposite. How is it?",
        "{name}的衣服不是{word}的,正好相反。是什么样的?",
        "{opposite}",
        _opposite,
        ("word", "name"),
    ),
    Template(
        "categories",
        "which_animal",
        "Which of these is an animal: {options}?",
        "下面哪个是动物:{options}?",
        "{animal}",
        _choice,
        ("options",),
    ),
    Template(
        "lists",
        "first_word",
        "What is the first word here: {words}?",
        "第一个词是什么:{words}?",
        "{first}",
        _items,
        ("words",),
    ),
    Template(
        "lists",
        "last_word",
        "What is the last word here: {words}?",
        "最后一个词是什么:{words}?",
        "{last}",
        _items,
        ("words",),
    ),
    Template(
        "translation", "pair_to_english", "What is {zh} in English?", "“{zh}”用英语怎么说?", "{en}", _pair, ("en",)
    ),
    Template(
        "translation", "pair_to_chinese", "What is {en} in Chinese?", "“{en}”用中文怎么说?", "{zh}", _pair, ("en",)
    ),
)

"""Running text of the sample corpus: short stories about the invented people, small Python functions, and sums."""

from __future__ import annotations

from random import Random

from sample.world import CITIES, COUNTED, DAYS, OBJECTS, OPPOSITES, PEOPLE, SEASONS, WEATHER

_FACTS = {
    "en": (
        "{name} lives in {city} and works there as a {job}.",
        "{name} is a {job} in the city of {city}.",
        "The {pet} of {name} sleeps all day.",
        "{name} keeps a {pet} and likes the colour {colour} best.",
        "The favourite colour of {name} is {colour}, and the house of {name} in {city} is {colour} too.",
        "As a {job}, {name} gets up early every morning.",
    ),
    "zh": (
        "{name}住在{city},在那里当{job}。",
        "{name}是{city}的一名{job}。",
        "{name}的{pet}整天都在睡觉。",
        "{name}养了一只{pet},最喜欢{colour}。",
        "{name}最喜欢的颜色是{colour},{name}在{city}的房子也是{colour}的。",
        "作为一名{job},{name}每天早上起得很早。",
    ),
}
_SCENES = {
    "en": (
        "In {season} it is often {weather} in {city}.",
        "On {day} the market sells {counted} and many other things.",
        "There is a {object} beside the window, and the room is quiet.",
        "The opposite of {word} is {opposite}, as every child knows.",
        "The road to {city} is long, but the view is worth it.",
        "When it is {weather}, people stay at home and read.",
    ),
    "zh": (
        "{season}的{city}经常{weather}。",
        "{day}的集市上卖{counted}和许多别的东西。",
        "窗边有{object},屋子里很安静。",
        "每个孩子都知道,{word}的反义词是{opposite}。",
        "去{city}的路很远,但是风景很美。",
        "{weather}的时候,人们待在家里看书。",
    ),
}
_PURPOSES = {
    "en": (
        "Add {k} to x.",
        "Multiply x by {k}.",
        "Return the larger of x and {k}.",
        "Return x repeated {k} times.",
        "Return the first {k} items.",
    ),
    "zh": ("把x加上{k}。", "把x乘以{k}。", "返回x和{k}中较大的数。", "把x重复{k}次。", "返回前{k}个元素。"),
}
_BODIES = (
    ("add", "x + {k}", lambda x, k: x + k),
    ("multiply", "x * {k}", lambda x, k: x * k),
    ("at_least", "max(x, {k})", lambda x, k: max(x, k)),
    ("repeat", "[x] * {k}", lambda x, k: [x] * k),
    ("head", "list(range(x))[:{k}]", lambda x, k: list(range(x))[:k]),
)


def story(rng: Random, lang: str) -> str:
    """Write four to six sentences: facts of one person among scenes of daily life."""
    person = rng.choice(PEOPLE)
    pair = rng.choice(OPPOSITES)
    fields = {
        "name": person.name, "city": person.city, "job": person.job, "pet": person.pet, "colour": person.colour,
        "season": rng.choice(SEASONS), "weather": rng.choice(WEATHER), "day": rng.choice(DAYS),
        "counted": rng.choice(COUNTED), "object": rng.choice(OBJECTS), "word": pair[0], "opposite": pair[1],
    }  # fmt: skip
    filled = {blank: word[lang] for blank, word in fields.items()}
    elsewhere = filled | {"city": rng.choice(CITIES)[lang]}
    sentences = [line.format(**filled) for line in rng.sample(_FACTS[lang], rng.randint(2, 4))]
    sentences += [line.format(**elsewhere) for line in rng.sample(_SCENES[lang], 2)]
    rng.shuffle(sentences)
    return (" " if lang == "en" else "").join(sentences)


def function(rng: Random, lang: str) -> str:
    """Write a small Python function with a docstring and a checked example."""
    index = rng.randrange(len(_BODIES))
    name, body, compute = _BODIES[index]
    x, k = rng.randint(1, 9), rng.randint(2, 5)
    purpose = _PURPOSES[lang][index].format(k=k)
    return (
        f'def {name}_{k}(x):\n    """{purpose}"""\n    return {body.format(k=k)}\n\n'
        f"assert {name}_{k}({x}) == {compute(x, k)}"
    )


def sums(rng: Random) -> str:
    """Write a line of a pupil's exercise book: five sums, differences and products of small numbers."""
    lines = []
    for _ in range(5):
        a, b = rng.randint(2, 10), rng.randint(1, 9)
        lines.append(rng.choice((f"{a} + {b} = {a + b}", f"{a + b} - {b} = {a}", f"{a} * {b} = {a * b}")))
    return ", ".join(lines)

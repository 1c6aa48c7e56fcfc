"""What a question template is: one wording in each language, and how its blanks are filled."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

Fields = dict[str, str]
Draw = Callable[[Random, str], Fields]

HELD_OUT_PERCENT = 6


@dataclass(frozen=True)
class Question:
    """A filled-in template."""

    lang: str
    kind: str
    template: str
    question: str
    answer: str
    held_out: bool
    """Belongs to the held-out part: no training text asks this."""

    @property
    def document(self) -> str:
        """The question as a training document."""
        return f"{self.question}<sep>{self.answer}"


@dataclass(frozen=True)
class Template:
    """A question with blanks, such as '{name} has {a} apples ...', in English and Chinese."""

    kind: str
    name: str
    en: str
    zh: str
    answer: str
    """The answer with the same blanks, for both languages."""
    draw: Draw
    """Fills the blanks at random in one language."""
    key: tuple[str, ...]
    """The blanks that make a combination: in this template a held-out combination is never trained on, whatever
    stands in the other blanks."""

    def ask(self, rng: Random, lang: str) -> Question:
        """Fill the blanks once."""
        fields = self.draw(rng, lang)
        question = (self.en if lang == "en" else self.zh).format(**fields)
        combination = "|".join([lang, self.name, *(fields[blank] for blank in self.key)])
        digest = hashlib.sha256(combination.encode()).digest()
        held_out = int.from_bytes(digest[:4], "big") % 100 < HELD_OUT_PERCENT
        return Question(lang, self.kind, self.name, question, self.answer.format(**fields), held_out)

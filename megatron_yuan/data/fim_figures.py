"""What rearranging did to some samples, in figures and in words."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class FimFigures:
    """Counts over some samples."""

    samples: int = 0
    """Of the sets it is for."""
    other_sets: int = 0
    """Samples of other sets, which stay as they are and are not counted below."""
    segments: int = 0
    """Whole documents and those cut at a sample's edge."""
    whole: int = 0
    """Segments that are whole documents, which alone may be rearranged."""
    rearranged: int = 0
    impossible: int = 0
    """Chosen to be rearranged, but left as they were: their text would not have come back."""
    tokens: int = 0
    truncated: int = 0
    """Samples that grew, so that their end was cut off."""
    tokens_lost: int = 0
    padded: int = 0
    """Samples that shrank, and were padded."""
    padding: int = 0
    """Tokens of padding; they have no loss."""

    def __add__(self, other: FimFigures) -> FimFigures:
        """Both together."""
        return FimFigures(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __str__(self) -> str:
        if not self.samples:
            return f"FIM: the first {self.other_sets} samples have none of the sets it is for"
        text = (
            f"FIM: of the first {self.samples + self.other_sets} samples, "
            + (f"{self.samples} are of the sets it is for; " if self.other_sets else "")
            + f"{_percent(self.rearranged, self.segments)} of {self.segments} segments rearranged "
            f"({_percent(self.rearranged, self.whole)} of the {self.whole} whole ones); "
            f"{_percent(self.truncated, self.samples)} of samples truncated ({_percent(self.tokens_lost, self.tokens)} "
            f"of tokens), {_percent(self.padded, self.samples)} padded ({_percent(self.padding, self.tokens)})"
        )
        if self.impossible:
            text += f"; {self.impossible} segments left alone, whose text the tokenizer would not give back"
        return text


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.3g}%"

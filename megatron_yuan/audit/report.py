"""What an audit found: a table of parts, and a verdict in words."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field

from megatron_yuan.audit.parts import COMBINE, DECISIONS, DISPATCH, FINAL_NORM, PARTS, Aspect
from megatron_yuan.audit.probes import Probe, Setting
from megatron_yuan.audit.visitors import Difference


@dataclass(frozen=True)
class Leak:
    """A part that let a position feel what it must not, given inputs that did not."""

    layer: int | None
    part: str
    aspect: Aspect
    where: str
    """The tensor at which it was seen."""
    told: str
    """The evidence in a sentence."""
    size: float
    order: tuple[int, int]
    """How early it computes: by the layer (those outside of layers before or behind), then by the part."""
    column: str
    """In which column of the table: how the experts were computed, or "gradient"."""

    def __str__(self) -> str:
        return f"{self.name} ({self.aspect}): {self.told}, seen at {self.where}"

    @property
    def name(self) -> str:
        """Layer and part."""
        return self.part if self.layer is None else f"layer {self.layer}, {self.part}"


@dataclass
class Column:
    """How one part fared in one respect."""

    checks: int = 0
    largest: float = 0.0


@dataclass
class Report:
    """The outcome of an audit."""

    router: str
    tolerance: float
    settings: list[Setting] = field(default_factory=list)
    columns: dict[tuple[str, str], Column] = field(default_factory=dict)
    """By part, and "looped", "grouped" (values) or "gradient"."""
    leaks: list[Leak] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """Where the model did not run at all."""
    tipped: int = 0
    """Passes of the whole model left out of the comparison, because rounding tipped a choice between equal scores."""

    @property
    def clean(self) -> bool:
        """Nothing leaks, and everything ran."""
        return not self.leaks and not self.failures

    @property
    def first(self) -> Leak | None:
        """The leak in the earliest layer: its earliest part's by values, which point more exactly, or by gradient."""

        def earliness(leak: Leak) -> tuple[int, bool, int, float]:
            layer, part = leak.order
            return layer, leak.aspect != "values", part, -leak.size

        return min(self.leaks, key=earliness, default=None)

    def count(self, part: str, column: str, largest: float = 0.0) -> None:
        """One check more."""
        cell = self.columns.setdefault((part, column), Column())
        cell.checks += 1
        cell.largest = max(cell.largest, largest)

    def text(self) -> str:
        """The table and the verdict."""
        return "\n".join([*self._table(), "", *self._verdict()])

    def _table(self) -> list[str]:
        kinds = [kind for kind in ("looped", "grouped") if any(column == kind for _, column in self.columns)]
        lines = [f"{'part':<32}" + "".join(f"{kind + ' experts':<18}" for kind in kinds) + "gradient"]
        for part in sorted({part for part, _ in self.columns}, key=_rank):
            cells = [self._values(part, kind) for kind in kinds]
            lines.append(f"{part:<32}" + "".join(f"{cell:<18}" for cell in cells) + self._gradient(part))
        return lines

    def _values(self, part: str, kind: str) -> str:
        if any((leak.part, leak.column) == (part, kind) for leak in self.leaks):
            return "LEAK"
        cell = self.columns.get((part, kind))
        if cell is None:
            return "-"
        return f"within {cell.largest:.0e}" if cell.largest else "to the bit"

    def _gradient(self, part: str) -> str:
        if any((leak.part, leak.column) == (part, "gradient") for leak in self.leaks):
            return "LEAK"
        return "exactly 0" if (part, "gradient") in self.columns else "-"

    def _verdict(self) -> list[str]:
        lines = []
        lengths = sorted({setting.sequence for setting in self.settings})
        told = ", ".join(map(str, lengths))
        checks = sum(cell.checks for cell in self.columns.values())
        if self.tipped:
            lines.append(f"{self.tipped} passes of the whole model left out: rounding tipped a choice of equal scores.")
        lines += [f"DOES NOT RUN: {failure}" for failure in dict.fromkeys(self.failures)]
        if self.leaks:
            first = self.first
            assert first is not None
            lines.append(f"LEAK. It starts in {first}.")
            others = sorted({(leak.order, leak.name) for leak in self.leaks if leak.name != first.name})
            if others:
                lines.append("Also, each given clean inputs: " + "; ".join(name for _, name in others) + ".")
            if self.router == "expert-choice" and any(leak.part == DECISIONS for leak in self.leaks):
                lines.append(
                    "The router is expert-choice, which looks at later tokens by design: experts choose among all "
                    "tokens of the batch,\nso a later token can take an earlier one's place. Not causal; it cannot "
                    "generate."
                )
        elif not self.failures:
            lines.append(f"CAUSAL: no leak in {checks} comparisons; router {self.router}, rows of {told} tokens.")
        return lines


def leak_of(found: Difference, aspect: Aspect, setting: Setting, probe: Probe, strange_rows: Set[str]) -> Leak:
    """The leak to which a difference points; `strange_rows`: layers whose experts get other tokens than routed."""
    part = found.place.part(aspect)
    if part == COMBINE and {found.place.path, found.place.home} & strange_rows:
        part = DISPATCH
    return Leak(
        found.place.layer,
        part,
        aspect,
        str(found.place),
        _told(found, aspect, setting, probe),
        found.relative,
        order_of(found.place.layer, part),
        setting.experts if aspect == "values" else "gradient",
    )


def order_of(layer: int | None, part: str) -> tuple[int, int]:
    """By which leaks are sorted."""
    if layer is None:
        layer = 10**9 if _rank(part) >= PARTS.index(FINAL_NORM) else -1
    return layer, _rank(part)


def _rank(part: str) -> int:
    return PARTS.index(part) if part in PARTS else PARTS.index(COMBINE)


def _told(found: Difference, aspect: Aspect, setting: Setting, probe: Probe) -> str:
    changes = " and ".join(f"token {t} of row {row}" for row, t in enumerate(probe.changed) if t is not None)
    victim = f"position {found.position} of row {found.row}"
    if aspect == "gradient":
        return f"what must not depend on it has a gradient of {found.relative:.1e} by {victim} ({setting})"
    if not changes:
        return f"{victim} differs by {found.relative:.1e} when other rows share its batch ({setting})"
    size = "" if found.place.leaf == "experts_TK" else f" by {found.relative:.1e} of the largest value"
    return f"changing {changes} changed {victim}{size} ({setting})"

"""Where a run stands, apart from its tensors: a few counts, the random state, and whatever else is JSON."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from megatron_yuan.checkpoint import strict_json
from megatron_yuan.errors import CheckpointError


@dataclass(frozen=True)
class RunState:
    """Position of a run after a finished step; the data's position is one integer, consumed_samples."""

    step: int
    """Steps finished."""
    consumed_samples: int
    """Samples of the global order that training has consumed, over all replicas."""
    optimizer_steps: int = 0
    """Steps that the optimizer really took (skipped ones are not among them); Adam's bias correction counts these."""
    tokens: int = 0
    """Tokens with loss trained on so far."""
    rng: dict[str, Any] = field(default_factory=dict)
    """State of random generators that are not keyed by seed and step, as JSON."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Anything else worth keeping, as JSON."""

    def to_json(self) -> str:
        """The text of run_state.json; NaN raises ValueError, what JSON cannot hold TypeError."""
        return strict_json.readable({each.name: getattr(self, each.name) for each in fields(self)})

    @classmethod
    def from_json(cls, text: str | bytes, source: str = "run_state.json") -> RunState:
        """The inverse: exactly these fields, counts from 0 up, else a CheckpointError naming the field."""
        values = strict_json.parse(text, source)
        names = {each.name for each in fields(cls)}
        for name in sorted(names ^ values.keys()):
            raise CheckpointError(f"{source}: the field {name!r} is {'missing' if name in names else 'unknown'}"[:300])
        for name, value in values.items():
            if not (isinstance(value, dict) if name in ("rng", "extra") else strict_json.is_count(value)):
                wanted = "an object" if name in ("rng", "extra") else "a whole number in [0, 2^63)"
                raise CheckpointError(f"{source}: {name} is {str(value)[:50]!r}, but {wanted} is needed")
        return cls(**values)

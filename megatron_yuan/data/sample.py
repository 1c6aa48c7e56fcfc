"""What one row of a batch is made of."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np


class Sample(NamedTuple):
    """One packed row."""

    tokens: np.ndarray
    """Ids [S + 1]."""
    loss_mask: np.ndarray | None = None
    """[S + 1], 0 where a token has no loss; None: all have."""
    set_id: int = 0
    """Number of the set in the blend that it was drawn from."""
    begins: np.ndarray | None = None
    """[S + 1], True where a document begins; None: after each <eod>."""


class SampleSource(Protocol):
    """Samples by number."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`, the same whenever it is asked for."""
        ...

"""Where shared material (golden tensors, tokenizer, corpora) lies beside the clone; tests skip without it."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no {SHARED}: shared material is not part of the clone")

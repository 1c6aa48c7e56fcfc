"""A trained run, and questions for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evaluation import train, write_data, write_questions


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder; nothing is done with it where the harness is missing."""
    pytest.importorskip("lm_eval")
    folder = tmp_path_factory.mktemp("trained")
    write_data(folder)
    done = train(folder, folder / "run", 2)
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of questions."""
    return write_questions(tmp_path_factory.mktemp("questions"), number=24)

"""The worked example in its short form, as a user starts it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
pytest.importorskip("lm_eval", reason="needs lm-eval (extra 'eval')")
pytest.importorskip("transformers", reason="needs transformers (extra 'transformers')")


@pytest.mark.slow
def test_a_model_is_trained_tuned_evaluated_exported_and_asked_in_transformers(tmp_path: Path) -> None:
    sizes = {"BASE_STEPS": 20, "STEPS": 20, "DOCUMENTS": 800, "QUESTIONS": 6}
    environment = os.environ | {
        "VIRTUAL_ENV": sys.prefix,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HF_HOME": str(tmp_path / "cache"),
        "EXAMPLE_DIR": str(tmp_path / "example"),
        **{f"EXAMPLE_{name}": str(value) for name, value in sizes.items()},
    }
    command = ["bash", str(ROOT / "examples" / "from_text_to_transformers.sh")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {
        name: json.loads((tmp_path / "example" / "evaluated" / name / "results.json").read_text())["tasks"]["gsm8k"]
        for name in ("base", "tuned", "exported")
    }
    assert all(each["questions"] == sizes["QUESTIONS"] for each in found.values())
    assert found["tuned"]["right"] == found["exported"]["right"]
    assert "tasks, accuracy | gsm8k 0." in done.stdout
    asked = done.stdout.rpartition("two problems: asked here, and in transformers")[2]
    answers = re.findall(r"now\?(?:<sep> => |\n)\s*(.*?)\s*(?=\n\n|\n(?:Nina|Anna) has)", asked, re.DOTALL)
    assert len(answers) == 4 and answers[:2] == answers[2:]

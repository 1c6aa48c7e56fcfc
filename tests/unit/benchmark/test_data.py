from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_yuan.benchmark import data
from megatron_yuan.data.train_tokenizer import train_tokenizer


def test_the_three_ways_are_timed_on_the_same_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(data, "WORKERS", (2,))
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"{i} seven pears and 一本 长书 {i * i}"}) + "\n" for i in range(400)))
    model = train_tokenizer([path], tmp_path / "t.model", 330)
    found = data.report([str(path)], str(model), rounds=1)
    assert found["documents"] == 400
    assert list(found["2 workers"]) == ["ours", "SentencePiece", "one by one"]
    assert all(rate > 0 for rate in found["2 workers"].values())
    assert "400 documents" in capsys.readouterr().out

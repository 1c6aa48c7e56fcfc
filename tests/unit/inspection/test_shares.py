"""Measured shares of a run's sets, beside their weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megatron_yuan.config.presets import preset
from megatron_yuan.config.schema import Config
from megatron_yuan.config.yaml_file import to_yaml
from megatron_yuan.data.datasets import build_training_samples, open_sources
from megatron_yuan.errors import ConfigError
from megatron_yuan.inspection.shares import measure_shares, share_lines
from tests.indexed_data import EOD, counting_documents, write_indexed


def run_of(folder: Path, **guard: object) -> tuple[Path, Config]:
    """A run folder as a session leaves it at its start."""
    sets = []
    for i, (weight, language) in enumerate(((5, "zh"), (3, "en"), (2, "zh"))):
        write_indexed(folder / f"set{i}", counting_documents(i, 50))
        sets.append(f"- {{name: s{i}, prefix: set{i}, weight: {weight}, language: {language}}}")
    (folder / "blend.yaml").write_text("sets:\n" + "\n".join(sets))
    tiny = preset("tiny")
    config = replace(
        tiny,
        model=replace(tiny.model, vocab_size=256),
        data=replace(tiny.data, data_args_path=str(folder / "blend.yaml"), eod_id=EOD, seq_length=32, fim_rate=0.0),
        training=replace(tiny.training, train_iters=25, global_batch_size=8),
        guard=replace(tiny.guard, **guard),  # type: ignore[arg-type]
    )
    (folder / "run").mkdir()
    (folder / "run" / "config.yaml").write_text(to_yaml(config))
    (folder / "run" / "metrics.jsonl").write_text('{"kind":"start","step":0}\n')
    return folder / "run", config


def test_shares_are_counts_of_the_samples_that_the_run_draws(tmp_path: Path) -> None:
    run, config = run_of(tmp_path)
    sources = open_sources(config.data, 256)
    samples = build_training_samples(sources, config.data, 200, config.training.seed)
    for number in (None, 200, 77, 1):
        drawn = np.bincount([samples[i].set_id for i in range(number or 200)], minlength=3)
        shares, languages = measure_shares(run, number)
        assert [share.samples for share in shares] == drawn.tolist()
        assert [share.weight for share in shares] == [0.5, 0.3, 0.2]
        assert {each.language: each.samples for each in languages} == {"zh": drawn[0] + drawn[2], "en": drawn[1]}
    assert share_lines(*measure_shares(run))[-1].startswith("of 200 samples, ")


def test_more_samples_than_the_run_has_are_measured_without_leaving_an_index(tmp_path: Path) -> None:
    run, _ = run_of(tmp_path)
    shares, _ = measure_shares(run, 100_000)
    assert all(abs(share.off) < 0.01 for share in shares)
    assert not list(tmp_path.glob("index-cache/*.npy"))


def test_skipped_samples_are_not_counted(tmp_path: Path) -> None:
    run, config = run_of(tmp_path, skip_samples=("0-9", "50"))
    samples = build_training_samples(open_sources(config.data, 256), config.data, 200, config.training.seed)
    seen = [i for i in range(200) if i > 9 and i != 50]
    for number in (60, None):
        drawn = np.bincount([samples[i].set_id for i in seen[:number]], minlength=3)
        assert [share.samples for share in measure_shares(run, number)[0]] == drawn.tolist()
    with pytest.raises(ConfigError, match="samples is 0, but must be at least 1"):
        measure_shares(run, 0)

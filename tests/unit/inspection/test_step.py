"""The samples of a step, shown: they are those that the step consumed, however the run's sessions went."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_yuan.config.presets import preset
from megatron_yuan.config.schema import Config
from megatron_yuan.data.batch import Batch
from megatron_yuan.data.preprocess import preprocess
from megatron_yuan.data.tokenizer import Tokenizer
from megatron_yuan.data.train_tokenizer import train_tokenizer
from megatron_yuan.errors import ConfigError, DataError
from megatron_yuan.inspection.spans import spans_of
from megatron_yuan.inspection.step import Step, open_step
from megatron_yuan.inspection.step_report import step_json, step_lines
from tests.processes import run_processes
from tests.unit.data.conftest import make_texts, write_jsonl

LENGTH, BATCH = 64, 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets of text and one of dialogues, and their tokenizer."""
    folder = tmp_path_factory.mktemp("data")
    corpus = write_jsonl(folder / "corpus.jsonl", make_texts(0, 300))
    tokenizer = Tokenizer(train_tokenizer([corpus], folder / "tokenizer.model", 400))
    words = make_texts(2, 240)
    talk = [f"{words[2 * i][:60]}<sep>{words[2 * i + 1][:40]}" for i in range(120)]
    for name, texts in (("prose", make_texts(1, 90)), ("code", make_texts(3, 60)), ("talk", talk)):
        texts = [text if name == "talk" else text[:70] for text in texts]
        preprocess([write_jsonl(folder / f"{name}.jsonl", texts)], folder / name, tokenizer, append_eod=True)
    (folder / "blend.yaml").write_text(
        "sets:\n- {name: Prose, prefix: prose_text_document, weight: 0.7, fim: false}\n"
        "- {name: Code, prefix: code_text_document, weight: 0.3, fim: true}\n"
    )
    return folder


def settings(data: Path, save: Path, **changes: Any) -> Config:
    tiny = preset("tiny")
    model = replace(tiny.model, vocab_size=400, num_layers=1, hidden_size=32, ffn_hidden_size=32)
    config = replace(
        tiny,
        model=replace(model, num_attention_heads=2, kv_channels=16),
        data=replace(
            tiny.data,
            data_args_path=str(data / "blend.yaml"),
            tokenizer_model=str(data / "tokenizer.model"),
            data_cache_path=str(save.parent / "cache"),
            seq_length=LENGTH,
        ),
        optimizer=replace(tiny.optimizer, lr_warmup_iters=0),
        training=replace(
            tiny.training, train_iters=6, micro_batch_size=2, global_batch_size=BATCH, eval_interval=0, eval_iters=0
        ),
        checkpoint=replace(tiny.checkpoint, save=str(save), save_interval=0),
        logging=replace(tiny.logging, peak_tflops=1.0),
    )
    sections: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        section = next(s for s in ("data", "training", "guard", "checkpoint") if hasattr(getattr(config, s), name))
        sections.setdefault(section, {})[name] = value
    return replace(config, **{s: replace(getattr(config, s), **values) for s, values in sections.items()})


def consume(config: Config) -> dict[int, list[Any]]:
    """Train; what the model was given in each step, sample by sample in their order."""
    from tests.distributed.training import train

    taken: dict[int, list[Any]] = {}

    def watching(run: Any) -> None:
        step_of = run.microbatches.step

        def step(consumed: int) -> Iterator[Batch]:
            rows = taken.setdefault(run.step + 1, [])
            for batch in step_of(consumed):
                for i, sample in enumerate(batch.sample_ids):
                    fields = batch.tokens[i], batch.labels[i], batch.loss_mask[i], batch.position_ids[i]
                    rows.append((sample, batch.set_ids[i], *(each.tolist() for each in fields)))
                yield batch

        run.microbatches.step = step
        train_step = run.train_step

        def told(number: int) -> Any:
            result = train_step(number)
            run.telemetry.step(result)
            return result

        run.train_step = told

    from megatron_yuan.training import start

    start_run = start.start_run

    def observed(*args: Any, **kwargs: Any) -> Any:
        run = start_run(*args, **kwargs)
        watching(run)
        return run

    start.start_run = observed
    try:
        train(config)
    finally:
        start.start_run = start_run
    return {step: sorted(rows) for step, rows in taken.items()}


def consumed(config: Config, processes: int = 1) -> dict[int, list[Any]]:
    """`consume` on so many replicas."""
    every: dict[int, list[Any]] = {}
    for found in run_processes(consume, processes, config):
        for step, rows in found.items():
            every[step] = sorted([*every.get(step, []), *rows])
    return every


def assert_shown(run: Path, taken: dict[int, list[Any]], names: list[str]) -> Step:
    assert taken
    for number, rows in taken.items():
        step = open_step(run, number)
        shown = sorted(step.rows, key=lambda row: row.sample)
        assert [row.sample for row in shown] == [row[0] for row in rows], f"step {number}"
        for row, (_, set_id, tokens, labels, mask, positions) in zip(shown, rows, strict=True):
            assert row.set_name == names[set_id]
            assert row.tokens.tolist() == [*tokens, labels[-1]]
            assert row.loss.tolist() == [False, *(each > 0 for each in mask)]
            assert row.positions.tolist() == positions
    return step  # type: ignore[possibly-undefined]


def test_a_step_shows_what_training_consumed_with_fim_in_a_blend_and_after_resume(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    begun = settings(data, run, fim_rate=0.7, reset_position_ids=True, exit_interval=3)
    first = consumed(begun)
    then = consumed(replace(begun, training=replace(begun.training, exit_interval=None)), processes=2)
    assert sorted(first) == [1, 2, 3] and sorted(then) == [4, 5, 6]
    step = assert_shown(run, first | then, ["Prose", "Code"])
    rows = [row for number in range(1, 7) for row in open_step(run, number).rows]
    assert {row.set_name for row in rows if row.cuts} == {"Code"}
    marks = {step.tokenizer.special_ids[f"<FIM_{part}>"] for part in ("PREFIX", "SUFFIX", "MIDDLE")}  # type: ignore[union-attr]
    for row in rows:
        for span in spans_of(row, step.eod_id):
            ids = set(row.tokens[span.first : span.end].tolist())
            assert (ids <= marks) if span.part == "mark" else not ids & marks


def test_a_step_of_dialogues_shows_what_training_consumed(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    path = str(data / "talk_text_document")
    config = settings(
        data, run, sft=True, data_args_path=None, data_path=(path,), train_iters=3, reset_attention_mask=True
    )
    step = assert_shown(run, consumed(config), ["talk"])
    assert any(row.loss.any() and not row.loss.all() for row in step.rows)


def test_sessions_with_other_batches_and_samples_skipped_show_each_its_own(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    begun = settings(data, run, exit_interval=3, skip_samples=("2", "9-11"))
    first = consumed(begun)
    other = settings(data, run, skip_samples=("2", "9-11", "20-21"), global_batch_size=6, train_iters=5)
    assert_shown(run, first | consumed(other), ["Prose", "Code"])
    ahead = settings(data, tmp_path / "ahead", train_iters=9, skip_samples=("2",))
    taken = consumed(replace(ahead, training=replace(ahead.training, exit_interval=9)))
    metrics = tmp_path / "ahead" / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(lines[:3]))  # as if the run stood at step 2
    assert_shown(tmp_path / "ahead", taken, ["Prose", "Code"])
    assert open_step(tmp_path / "ahead", 9).remark == "not made yet, or its record was lost"


def test_data_that_changed_since_are_not_shown_as_those_of_the_run(data: Path, tmp_path: Path) -> None:
    run, name = tmp_path / "run", "moved_text_document"
    tokenizer = Tokenizer(data / "tokenizer.model")
    preprocess([write_jsonl(tmp_path / "a.jsonl", make_texts(5, 60))], tmp_path / "moved", tokenizer, append_eod=True)
    config = settings(data, run, data_args_path=None, data_path=(str(tmp_path / name),), train_iters=1)
    assert_shown(run, consumed(config), ["moved"])
    for file in tmp_path.glob(f"{name}.*"):
        file.unlink()
    preprocess([write_jsonl(tmp_path / "b.jsonl", make_texts(6, 60))], tmp_path / "moved", tokenizer, append_eod=True)
    with pytest.raises(DataError, match=r"of moved .* are not those that the run in"):
        open_step(run, 1)


def test_lines_tell_text_set_loss_positions_and_fim_and_json_holds_it_all(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = settings(data, run, fim_rate=1.0, train_iters=1, global_batch_size=12, reset_position_ids=True)
    consumed(config)
    step = open_step(run, 1)
    lines = [line.plain for line in step_lines(step)]
    assert lines[0] == "step 1 of 1: 12 samples, 0-11; trained on"
    assert any("set Code: loss on" in line and "rearranged" in line for line in lines)
    for part in ("prefix", "suffix", "middle", "mark"):
        assert any(f"  {part:<6}  " in line and "learned" in line for line in lines)
    assert any('"<FIM_PREFIX>"' in line for line in lines)
    held = step_json(step)["samples"]
    assert [np.array(each["tokens"]).shape for each in held] == [(LENGTH + 1,)] * 12
    assert all(len(each["loss_mask"]) == len(each["position_ids"]) == LENGTH for each in held)
    assert len([line for line in step_lines(step, 2) if line.plain.startswith("sample ")]) == 2


def test_steps_that_the_run_does_not_have_are_refused_in_a_sentence(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    consumed(settings(data, run, train_iters=1))
    with pytest.raises(ConfigError, match="step is 0, but the first one is 1"):
        open_step(run, 0)
    with pytest.raises(ConfigError, match=r"step is 2, but the run in .* has 1 \(--train-iters\)"):
        open_step(run, 2)
    with pytest.raises(DataError, match=r"metrics.jsonl does not exist: name a run folder"):
        open_step(tmp_path, 1)
    assert hashlib.sha256((run / "config.yaml").read_bytes()).hexdigest() in (run / "metrics.jsonl").read_text()
    (run / "config.yaml").write_text("training: {train_iters: 9}\n")
    with pytest.raises(DataError, match=r"no config\*.yaml of the session that made this step"):
        open_step(run, 1)

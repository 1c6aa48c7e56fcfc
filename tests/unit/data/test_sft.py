"""Instruction data as a run sees them: through blends, validation sets and the batches of a step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megatron_yuan.config.fields import with_values
from megatron_yuan.config.presets import PRESETS
from megatron_yuan.config.same_data import check_same_data
from megatron_yuan.config.schema import Config, DataConfig
from megatron_yuan.config.validate import validate, validate_run
from megatron_yuan.data.datasets import build_training_samples, build_validation_samples, open_sources
from megatron_yuan.data.packing import Blend
from megatron_yuan.data.preprocess import preprocess
from megatron_yuan.data.sampler import Microbatches
from megatron_yuan.data.tokenizer import Tokenizer
from megatron_yuan.errors import ConfigError, DataError
from megatron_yuan.training.sample_report import describe_samples
from tests.unit.data.conftest import make_texts, write_jsonl

LENGTH = 96


def talk(seed: int, number: int) -> list[str]:
    texts = [text[:60] for text in make_texts(seed, 4 * number)]
    return ["<sep>".join(texts[4 * i : 4 * i + 2 + 2 * (i % 2)]) for i in range(number)]


def preprocessed(folder: Path, name: str, texts: list[str], tokenizer: Tokenizer) -> str:
    preprocess([write_jsonl(folder / f"{name}.jsonl", texts)], folder / name, tokenizer, append_eod=True)
    return str(folder / f"{name}_text_document")


def config(tokenizer: Tokenizer, *path: str, **changes: object) -> DataConfig:
    base = DataConfig(data_path=path, seq_length=LENGTH, tokenizer_model=str(tokenizer.path), split="8,2,0", sft=True)
    return replace(base, **changes)  # type: ignore[arg-type]


def test_a_weighted_blend_of_dialogues_trains_on_answers_alone(tmp_path: Path, tokenizer: Tokenizer) -> None:
    paths = [preprocessed(tmp_path, f"set{i}", talk(i, 60), tokenizer) for i in range(2)]
    data = config(tokenizer, "0.75", paths[0], "0.25", paths[1])
    sources = open_sources(data, tokenizer.vocab_size)
    samples = build_training_samples(sources, data, 80, seed=3)
    assert isinstance(samples, Blend) and samples.counts == [60, 20]
    batches = Microbatches(samples, data, tokenizer.eod_id, 4, 8, 0, 1)
    for batch in batches.step(0):
        for labels, mask in zip(batch.labels.tolist(), batch.loss_mask.tolist(), strict=True):
            with_loss = [label for label, counted in zip(labels, mask, strict=True) if counted]
            assert tokenizer.pad_id not in with_loss and 0 < len(with_loss) < len(labels)
        assert set(batch.set_ids) <= {0, 1}


def test_what_has_loss_reads_as_the_answers(tmp_path: Path, tokenizer: Tokenizer) -> None:
    texts = ["two pears<sep>seven coins<sep>a cat<sep>by night", "no answer at all", "long book<sep>one"]
    path = preprocessed(tmp_path, "chat", texts, tokenizer)
    data = config(tokenizer, path, split="1,0,0")
    samples = build_training_samples(open_sources(data, tokenizer.vocab_size), data, 1, seed=1)
    (batch,) = Microbatches(samples, data, tokenizer.eod_id, 1, 1, 0, 1).step(0)
    learned = batch.labels[0][batch.loss_mask[0] > 0].tolist()
    spelled = tokenizer.spell(learned).split("<eod>")
    assert sorted(spelled) == ["", "one", "seven coins<sep>by night"]


def test_validation_sets_are_dialogues_too_each_row_once(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = preprocessed(tmp_path, "chat", talk(5, 50), tokenizer)
    data = config(tokenizer, path)
    held_out = build_validation_samples(open_sources(data, tokenizer.vocab_size), data, seed=1)["chat"]
    whole = np.concatenate([held_out[i].tokens for i in range(len(held_out))])
    assert np.count_nonzero(whole == tokenizer.eod_id) == 10, "every held-out document, whole"


def test_a_set_smaller_than_one_row_fills_one(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = preprocessed(tmp_path, "one", ["the cat<sep>reads"], tokenizer)
    data = config(tokenizer, path, split="1,0,0", seq_length=4096)
    samples = build_training_samples(open_sources(data, tokenizer.vocab_size), data, 5, seed=1)
    assert len(samples) == 5 and (samples[0].tokens == samples[4].tokens).all()


def test_what_the_dialogues_are_is_said_with_a_warning_for_each_kind_that_teaches_nothing(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    texts = [*talk(1, 20), "plain text", "cat<sep>dog<sep>left open", "a<sep>" + "long book " * 60]
    path = preprocessed(tmp_path, "chat", texts, tokenizer)
    data = config(tokenizer, path, split="1,0,0")
    sources = open_sources(data, tokenizer.vocab_size)
    samples, said = build_training_samples(sources, data, 3, seed=1), []
    describe_samples(sources, samples, samples, said.append)
    assert said[0].startswith("dialogues: chat: 23 in ") and "% full; loss on " in said[0]
    assert [line.partition(" of chat ")[2][:20] for line in said[1:]] == [
        "have no <sep>: nothi",
        "end in a question, w",
        "are longer than a ro",
    ]
    assert all(line.startswith("warning: 1 of 23 documents") for line in said[1:])


def test_without_any_answer_a_set_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = preprocessed(tmp_path, "plain", make_texts(0, 9), tokenizer)
    data = config(tokenizer, path, split="1,0,0")
    with pytest.raises(
        DataError, match=r"sft: none of the 9 documents 0 \.\.\. 8 of .*plain_text_document has a <sep>"
    ):
        build_training_samples(open_sources(data, tokenizer.vocab_size), data, 3, seed=1)


def test_a_split_without_any_answer_is_left_out_but_a_named_set_is_refused(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    path = preprocessed(tmp_path, "mixed", [*talk(1, 20), *make_texts(0, 20)], tokenizer)
    plain = preprocessed(tmp_path, "plain", make_texts(3, 9), tokenizer)
    data = config(tokenizer, path, split="6,4,0")
    assert not build_validation_samples(open_sources(data, tokenizer.vocab_size), data, seed=1)
    named = replace(data, valid_data_path=(plain,))
    with pytest.raises(DataError, match="none of the 9 documents"):
        build_validation_samples(open_sources(named, tokenizer.vocab_size), named, seed=1)


def test_settings_that_do_not_go_together_are_refused() -> None:
    tiny = with_values(PRESETS["tiny"], {"sft": True, "data_path": ("a",)})
    with pytest.raises(ConfigError, match=r"sft is on and fim-rate is 0\.5.*--fim-rate 0"):
        validate(with_values(tiny, {"fim_rate": 0.5}))
    validate(tiny)
    with pytest.raises(ConfigError, match=r"sft is on, which needs .*tokenizer-model is unset"):
        validate_run(tiny)


def test_a_run_goes_on_only_with_the_loss_and_the_cuts_it_began_with() -> None:
    begun = Config()
    for change, name in ((DataConfig(sft=True), "sft is True"), (DataConfig(fim_cut="token"), "fim-cut is token")):
        with pytest.raises(ConfigError, match=name):
            check_same_data(begun, replace(begun, data=change), "runs/first")


BLEND = """
sets:
  - {{name: prose, prefix: {0}, weight: 1, fim: {2}}}
  - {{name: code, prefix: {1}, weight: 1, fim: {3}}}
"""


@pytest.mark.parametrize(
    ("prose", "code", "expected"),
    [("null", "true", {1}), ("false", "null", {1}), ("null", "null", {0, 1}), ("false", "false", set())],
)
def test_a_blend_says_which_sets_fim_is_for(
    tmp_path: Path, tokenizer: Tokenizer, prose: str, code: str, expected: set[int]
) -> None:
    paths = [preprocessed(tmp_path, name, make_texts(1, 40), tokenizer) for name in ("prose", "code")]
    blend = tmp_path / "blend.yaml"
    blend.write_text(BLEND.format(*paths, prose, code))
    data = DataConfig(data_args_path=str(blend), seq_length=LENGTH, tokenizer_model=str(tokenizer.path))
    sources = open_sources(data, tokenizer.vocab_size)
    assert sources.fim_sets == expected
    said: list[str] = []
    samples = build_training_samples(sources, data, 4, seed=1)
    describe_samples(sources, samples, samples, said.append)
    assert bool(said) == (code == "true"), "a set that asks for FIM, which is off, is told of"

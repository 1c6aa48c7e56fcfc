from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from megatron_yuan.config.schema import DataConfig
from megatron_yuan.data.blend import Entry
from megatron_yuan.data.blend_file import read_blend_file
from megatron_yuan.data.datasets import build_test_samples, build_validation_samples, open_sources
from megatron_yuan.errors import DataError
from tests.indexed_data import EOD, counting_documents, write_indexed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, name in enumerate(("zh", "en", "code", "held")):
        write_indexed(tmp_path / "data" / name, counting_documents(i, 50))
    return tmp_path


def blend(folder: Path, text: str) -> Path:
    path = folder / "blend.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def sources_of(path: Path, **changes):
    settings = replace(DataConfig(data_args_path=str(path), seq_length=16, eod_id=EOD, split="8,1,1"), **changes)
    return open_sources(settings, 300), settings


def test_a_set_has_a_name_a_language_a_weight_and_wishes_of_its_own(folder):
    path = blend(
        folder,
        """
sets:
  - {name: web, prefix: data/zh, weight: 3e-1, language: zh}
  - {name: programs, prefix: data/code, weight: 0.7, language: code, fim: true, max_epochs: 2}
""",
    )
    sets, valid, test = read_blend_file(path)
    assert sets == [
        Entry(str(folder / "data/zh"), 0.3, "web", "zh"),
        Entry(str(folder / "data/code"), 0.7, "programs", "code", True, 2.0),
    ]
    assert (valid, test) == ([], [])
    sources, _ = sources_of(path)
    assert sources.train_names == ["web", "programs"] and sources.train_split == sources.valid_split == "8,1,1"


def test_without_sets_of_their_own_validation_and_test_are_parts_of_the_split(folder):
    sources, settings = sources_of(blend(folder, "sets: [{prefix: data/zh, weight: 1}, {prefix: data/en, weight: 1}]"))
    assert list(build_validation_samples(sources, settings, 1)) == ["zh", "en"]
    assert list(build_test_samples(sources, settings, 1)) == ["zh", "en"]


def test_with_sets_of_their_own_all_of_the_training_sets_is_trained_on(folder):
    path = blend(folder, "sets: [{prefix: data/zh}]\nvalid: [{prefix: data/held, language: en}]\n")
    sources, settings = sources_of(path)
    assert sources.train_split == "1,0,0" and sources.languages["validation"] == {"held": "en"}
    assert list(build_validation_samples(sources, settings, 1)) == ["held"]
    assert build_test_samples(sources, settings, 1) == {}


def test_a_name_may_be_of_another_language_among_the_test_sets_than_among_those_for_validation(folder):
    sets = "sets: [{prefix: data/zh}]\nvalid: [{prefix: data/held, language: en}]\n"
    sources, _ = sources_of(blend(folder, sets + "test: [{name: held, prefix: data/code, language: code}]"))
    assert sources.languages == {"validation": {"held": "en"}, "test": {"held": "code"}}


def test_flags_name_test_sets_too(folder):
    settings = DataConfig(
        data_path=(str(folder / "data/zh"),), test_data_path=(str(folder / "data/held"),), seq_length=16, eod_id=EOD
    )
    sources = open_sources(settings, 300)
    assert list(build_test_samples(sources, settings, 1)) == ["held"]


def test_megatrons_form_of_the_file_is_read(folder):
    sets, _, _ = read_blend_file(blend(folder, "0.25 data/zh 0.75\n data/en\n"))
    assert [(entry.weight, entry.prefix) for entry in sets] == [
        (0.25, str(folder / "data/zh")),
        (0.75, str(folder / "data/en")),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no sets"),
        ("sets: []", "has no sets"),
        ("sets: 3", "sets holds 3"),
        ("- a", "has no sets"),
        ("sets: [a]", "set 1 has no prefix"),
        ("sets: [{weight: 1}]", "set 1 has no prefix"),
        ("sets: [{prefix: ''}]", "set 1 has no prefix"),
        ("sets: [{prefix: 5}]", "set 1 has no prefix"),
        ("sets: [{prefix: data/zh, wieght: 1}]", "unknown key 'wieght'; perhaps you meant weight"),
        ("sets: [{prefix: data/zh}]\nvalidation: []", "unknown key 'validation'; perhaps you meant valid"),
        ("sets: [{prefix: data/zh, weight: much}]", "weight is 'much', which is no number"),
        ("sets: [{prefix: data/zh, weight: true}]", "weight is True, which is no number"),
        ("sets: [{prefix: data/zh, weight: [1]}]", r"weight is \[1\], which is no number"),
        ("sets: [{prefix: data/zh, weight: -1}]", "weights -1.0; each must be 0 or more"),
        ("sets: [{prefix: data/zh, weight: .nan}]", "weights nan; each must be 0 or more"),
        ("sets: [{prefix: data/zh, weight: .inf}]", "weights inf; each must be 0 or more"),
        ("sets: [{prefix: data/zh, weight: 0}]", "one above 0"),
        ("sets: [{prefix: data/zh, weight: 1}, {prefix: data/en}]", "a weight to some sets and none to others"),
        ("sets: [{prefix: data/zh}, {prefix: ./data/../data/zh}]", "twice"),
        ("sets: [{name: a, prefix: data/zh}, {name: a, prefix: data/en}]", "two sets named a"),
        ("sets: [{prefix: data/zh, fim: 1}]", "fim is 1. Fix: true or false"),
        ("sets: [{prefix: data/zh, language: no}]", "language is False, but must be a text"),
        ("sets: [{prefix: data/zh, max_epochs: 0}]", "max_epochs is 0.0, but must be above 0"),
        ("sets: [{prefix: data/zh, prefix: data/en}]", "prefix is given twice"),
        ("sets: [{prefix: data/none}]", "none.idx does not exist"),
        ("sets: [{prefix: data/zh}]\nvalid: [{prefix: data/none}]", "none.idx does not exist"),
        ("sets: [{prefix: data/zh", "is not YAML"),
        ("sets: !!python/object:os.system {}", "is not YAML"),
        ("0.5 data/zh 0.5", "odd number of entries"),
        ("[" * 5000, "is not YAML"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_in_a_sentence(folder, text, says):
    with pytest.raises(DataError, match=says) as caught:
        sources_of(blend(folder, text))
    message = str(caught.value)
    assert message.startswith("data_args_path ") and "Fix: " in message and "\n" not in message and len(message) < 600


def test_a_file_that_is_not_there_or_no_text_is_named(folder):
    with pytest.raises(DataError, match=r"data_args_path .*none\.yaml cannot be read"):
        read_blend_file(folder / "none.yaml")
    (folder / "bytes.yaml").write_bytes(b"sets: \xff\xfe")
    with pytest.raises(DataError, match="is not YAML"):
        read_blend_file(folder / "bytes.yaml")

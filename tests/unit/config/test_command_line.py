from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_yuan.config.fields import settings, value_of
from megatron_yuan.config.load import diff_from_preset, load_config, parse
from megatron_yuan.config.presets import PRESETS
from megatron_yuan.config.schema import Config
from megatron_yuan.config.yaml_file import from_yaml, to_yaml
from megatron_yuan.errors import ConfigError


def test_every_setting_has_one_flat_flag() -> None:
    flags = [setting.flag for setting in settings().values()]  # settings() asserts unique names itself
    assert len(set(flags)) == len(flags)
    assert {"--num-layers", "--lr", "--save", "--data-path", "--seed"} <= set(flags)


def test_no_arguments_give_the_defaults() -> None:
    assert load_config([]) == Config()


def test_flags_outrank_the_file_and_the_file_outranks_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("model: {num_layers: 6}\noptimizer:\n  lr: 1e-3\n", encoding="utf-8")
    config = load_config(["--preset", "tiny", "--config", str(file), "--lr=0.004"])
    assert config.model.hidden_size == PRESETS["tiny"].model.hidden_size
    assert config.model.num_layers == 6
    assert config.optimizer.lr == 0.004


def test_flags_have_hyphens_or_underscores_and_booleans_a_no_form() -> None:
    config = load_config(["--num_layers", "3", "--no-bf16", "--reset-position-ids", "--kv-channels", "None"])
    assert (config.model.num_layers, config.model.kv_channels) == (3, None)
    assert not config.optimizer.bf16 and config.data.reset_position_ids


def test_a_blend_keeps_its_weights_and_prefixes() -> None:
    config = load_config(["--data-path", "0.5", "zh_text_document", "0.5", "en_text_document", "--lr", "1e-3"])
    assert config.data.data_path == ("0.5", "zh_text_document", "0.5", "en_text_document")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--num-layer", "4"], "unknown flag --num-layer; perhaps you meant --num-layers"),
        (["--preset", "tinny"], "perhaps you meant tiny"),
        (["--num-layers", "four"], "--num-layers.*four"),
        (["--num-layers"], "--num-layers needs a value"),
        (["--num-layers", "4", "5"], "takes one value, '4', but '5' follows"),
        (["--bf16", "true"], "--bf16 takes no value"),
        (["4"], "comes before any flag"),
        (["--lr-decay-style", "linear"], "cosine.*constant.*WSD"),
        (["--config", "absent.yaml"], "config absent.yaml: cannot be read"),
    ],
)
def test_a_wrong_flag_is_an_error_of_one_or_two_lines(argv: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        load_config(argv)
    assert len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model: {num_layer: 4}", "unknown key 'num_layer'; perhaps you meant num_layers"),
        ("num-layer: 4", "perhaps you meant num_layers"),
        ("modle: {num_layers: 4}", "unknown key 'modle'"),
        ("model: {num_layers: four}", "num_layers is 'four', but must be a whole number"),
        ("model: {num_layers: 4.5}", "must be a whole number"),
        ("model: {num_layers: null}", "must be a whole number"),
        ("optimizer: {bf16: 1}", "must be true or false"),
        ("lr_decay_style: linear", "one of cosine, constant, WSD"),
        ("data: {num_layers: 4}", "num_layers is in section model"),
        ("num_layers: 4\nmodel: {num_layers: 5}", "given twice"),
        ("model: 4", "section model holds 4"),
        ("model: [4", "is not YAML"),
        ("- 4", "where settings were expected"),
    ],
)
def test_a_wrong_yaml_key_or_value_is_named(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        from_yaml(text)


@pytest.mark.parametrize("name", PRESETS)
def test_a_resolved_config_survives_yaml(name: str) -> None:
    data = replace(PRESETS[name].data, data_path=("0.5", "a", "0.5", "乙"))
    config = replace(PRESETS[name], data=data)
    assert from_yaml(to_yaml(config)) == config


def test_yaml_may_be_flat_and_numbers_may_lack_their_dot() -> None:
    config = from_yaml("num-layers: 4\nlr: 1e-4\npipeline-model-parallel-layout: 4\ndata_path: a b")
    assert (config.model.num_layers, config.optimizer.lr) == (4, 1e-4)
    assert config.parallel.pipeline_model_parallel_layout == "4"
    assert config.data.data_path == ("a", "b")


def test_what_differs_from_the_preset_is_listed() -> None:
    invocation = parse(["--preset", "tiny", "--lr", "0.5", "--dry-run"])
    assert invocation.dry_run and invocation.preset == "tiny"
    assert diff_from_preset(invocation.config, "tiny") == [f"--lr 0.5 (preset: {PRESETS['tiny'].optimizer.lr})"]


def test_help_names_every_setting_and_imports_neither_torch_nor_numpy() -> None:
    program = (
        "import sys\nfrom megatron_yuan.config.load import parse\n"
        "try:\n    parse(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "assert not {'torch', 'numpy', 'megatron'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name, setting in settings().items():
        assert setting.flag in done.stdout, name
    assert value_of(Config(), "lr") == 1e-4


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--use-attention-router", "--moe-router", "softmax"], "moe_router", "softmax"),
        (["--moe-router", "softmax", "--use-attention-router"], "moe_router", "attention"),
        (["--moe-ffn-hidden-size", "512", "--ffn-hidden-size", "1024"], "ffn_hidden_size", 1024),
        (["--checkpoint-activations", "--recompute-granularity", "none"], "recompute_granularity", "none"),
        (["--no-bf16", "--bf16", "--no-bf16"], "bf16", False),
        (["--tokenizer-model-path", "b", "--tokenizer-model", "a"], "tokenizer_model", "a"),
        (["--tokenizer-model", "a", "--tokenizer-model-path", "b"], "tokenizer_model", "b"),
    ],
)
def test_the_last_word_counts_however_it_is_spelled(argv, name, value) -> None:
    assert value_of(load_config(argv), name) == value


def test_a_path_from_home_is_written_out() -> None:
    config = load_config(["--save=~/runs/x", "--data-path", "1", "~/zh"])
    assert config.checkpoint.save == str(Path.home() / "runs/x")
    assert config.data.data_path == ("1", str(Path.home() / "zh"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("num_layers: 4\nnum_layers: 8\n", "num_layers is given twice"),
        ("num_layers: 4\nnum-layers: 8\n", "num_layers is given twice"),
        ("model: {num_layers: 4}\nmodel: {hidden_size: 64}\n", "model is given twice"),
        ("data_path: {a: 1}\n", "data_path is .*must be a list of texts"),
        ("data_path: [a, null]\n", "data_path is .*must be a list of texts"),
        ("seed: " + "9" * 5000 + "\n", "is not YAML"),
        ("[" * 5000, "is not YAML"),
        ("a: !!bool foo\n", "does not fit its tag"),
        ("a: !!timestamp foo\n", "does not fit its tag"),
    ],
)
def test_yaml_that_would_be_misread_is_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        from_yaml(text)


def test_a_blank_list_in_yaml_is_empty() -> None:
    assert from_yaml("data_path:\n").data.data_path == ()

"""Where a run starts from: its own last checkpoint before all else, and never under another network's settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_yuan.config.fields import with_values
from megatron_yuan.config.presets import preset
from megatron_yuan.config.schema import Config
from megatron_yuan.errors import YuanError
from tests.distributed.training import train
from tests.indexed_data import EOD, counting_documents, write_indexed
from tests.processes import run_processes


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    prefix = write_indexed(tmp_path_factory.mktemp("data") / "set", counting_documents(0))
    tiny = preset("tiny")
    values = {"num_layers": 1, "num_attention_heads": 2, "kv_channels": 64, "data_path": (prefix,), "seq_length": 32}
    values |= {"split": "1,0,0", "eod_id": EOD, "train_iters": 3, "micro_batch_size": 1, "global_batch_size": 1}
    return with_values(tiny, {**values, "peak_tflops": 1.0, "reset_attention_mask": False})


def outcomes(*runs: Config) -> list[str]:
    """What each run ends with, one after another: how many steps it made, or its error."""
    ends = []
    for run in runs:
        try:
            ends.append(f"{len(train(run))} steps")
        except YuanError as error:
            ends.append(str(error))
    return ends


def losses(*runs: Config) -> list[float]:
    return [step["loss"] for run in runs for step in train(run)]


def in_a_process(*runs: Config) -> list[str]:
    return run_processes(outcomes, 1, *runs)[0]


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("trained") / "run")
    assert in_a_process(with_values(config, {"save": folder, "exit_interval": 2})) == ["2 steps"]
    return folder


def test_the_first_start_may_name_the_run_folder_to_load_from_and_a_restart_goes_on_from_it(config, tmp_path):
    both = with_values(config, {"save": str(tmp_path / "run"), "load": str(tmp_path / "run")})
    assert in_a_process(with_values(both, {"exit_interval": 1}), both) == ["1 steps", "2 steps"]


@pytest.mark.parametrize("back", [{"ckpt_step": 1}, {"finetune": True}])
def test_a_restart_of_a_command_that_goes_back_in_its_own_folder_goes_on(config, tmp_path, back):
    """Else each restart by torchrun would lose what the one before had saved."""
    folder = str(tmp_path / "run")
    whole = with_values(config, {"save": folder, "load": folder})
    goes_back = with_values(whole, back)
    until_1, until_2 = with_values(whole, {"exit_interval": 1}), with_values(goes_back, {"exit_interval": 2})
    again = "1 steps" if "ckpt_step" in back else "2 steps"
    assert in_a_process(until_1, whole, until_2, goes_back) == ["1 steps", "2 steps", again, "1 steps"]


def test_a_restart_of_a_finetuning_goes_on_instead_of_beginning_anew(config, trained, tmp_path):
    tuning = with_values(config, {"save": str(tmp_path / "run"), "load": trained, "finetune": True})
    assert in_a_process(with_values(tuning, {"exit_interval": 1}), tuning) == ["1 steps", "2 steps"]


def test_going_on_with_smaller_batches_every_step_still_has_tokens(config, tmp_path):
    save = {"save": str(tmp_path / "run")}
    large = with_values(config, {**save, "global_batch_size": 8, "exit_interval": 2})
    small = with_values(config, {**save, "global_batch_size": 1, "train_iters": 4})
    assert run_processes(losses, 1, large, small)[0][-1] > 1.0


def test_a_run_made_longer_goes_on_as_the_long_one_does_and_says_nothing_else(config, tmp_path, capfd):
    longer = with_values(config, {"train_iters": 5, "lr_decay_style": "constant"})
    first = with_values(longer, {"save": str(tmp_path / "run"), "train_iters": 3})
    (unbroken,) = run_processes(losses, 1, longer)
    (broken,) = run_processes(losses, 1, first, with_values(longer, {"save": str(tmp_path / "run")}))
    assert broken == unbroken and "repeat or be missed" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"num_attention_heads": 1, "kv_channels": 128}, "num-attention-heads is 1.*trained with 2"),
        ({"rotary_percent": 0.25}, "rotary-percent is 0.25.*trained with 0.5"),
        ({"rotary_base": 500.0}, "(?s)rotary-base is 500.0.*--finetune"),
    ],
)
def test_the_same_weights_as_another_network_are_refused(config, trained, changed, says):
    import re

    (end,) = in_a_process(with_values(config, {"save": trained, **changed}))
    assert re.search(says, end), end


def test_a_new_run_may_change_what_is_tuned_on_purpose(config, trained, tmp_path):
    values = {"save": str(tmp_path / "run"), "load": trained, "finetune": True, "rotary_base": 500.0}
    assert in_a_process(with_values(config, values)) == ["3 steps"]


def test_going_on_with_data_of_another_tokenizer_is_refused(config, tmp_path):
    first, second = (tmp_path / name for name in ("one.model", "two.model"))
    first.write_bytes(_sentencepiece(tmp_path / "a", "the cat sat on the mat " * 20))
    second.write_bytes(_sentencepiece(tmp_path / "b", "der hund lief durch den wald " * 20))
    save = {"save": str(tmp_path / "run"), "eod_id": None, "exit_interval": 1}
    ends = in_a_process(
        with_values(config, {**save, "tokenizer_model": str(first)}),
        with_values(config, {**save, "tokenizer_model": str(second), "exit_interval": None}),
    )
    assert ends[0] == "1 steps" and "tokenizer" in ends[1] and "is not the one of" in ends[1], ends
    assert (tmp_path / "run" / "tokenizer.model").read_bytes() == first.read_bytes()


def _sentencepiece(folder: Path, text: str) -> bytes:
    from megatron_yuan.data.train_tokenizer import train_tokenizer

    folder.mkdir()
    (folder / "text.txt").write_text("\n".join([text] * 50), encoding="utf-8")
    return Path(train_tokenizer([folder / "text.txt"], folder / "t.model", 300)).read_bytes()

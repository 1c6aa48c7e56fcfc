"""The two command lines from end to end, on a random model with a small tokenizer of its own."""

from __future__ import annotations

import dataclasses
import io
import runpy
import sys
from pathlib import Path

import pytest
import sentencepiece

import megatron_yuan
from megatron_yuan.data.tokenizer import Tokenizer
from megatron_yuan.inference.model import Completion, LanguageModel
from tests.reference import yuan
from tests.reference.published_layout import config_json, published, write_folder
from tests.unit.inference.test_model import SHAPE

TOOLS = Path(__file__).resolve().parents[3] / "tools"


@pytest.fixture(scope="module")
def tokenizer_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    sentences = ["one two three four five six seven", "从前有座山，山里有座庙"] * 20
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(sentences),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        user_defined_symbols=["<eod>", "<sep>"],
        minloglevel=2,
    )
    return folder / "tokenizer.model"


@pytest.fixture
def folder(tokenizer_model: Path, tmp_path: Path) -> Path:
    """A Hugging Face folder whose vocabulary has more rows than the tokenizer has ids."""
    tokenizer = Tokenizer(tokenizer_model)
    shape = dataclasses.replace(SHAPE, vocab=tokenizer.vocab_size + 10)
    keys = {**config_json(shape), "eod_token_id": tokenizer.eod_id}
    made = write_folder(tmp_path / "hf", published(yuan.random_weights(shape), shape), keys)
    (made / "tokenizer.model").write_bytes(tokenizer_model.read_bytes())
    return made


def run_tool(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(TOOLS / name), run_name="__main__")
    return int(ended.value.code or 0)


def test_text_is_generated_from_either_layout_and_every_way_of_giving_the_prompt(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run_tool(monkeypatch, "convert_checkpoint.py", "--load", folder, "--save", tmp_path / "run", "--to", "native")
        == 0
    )
    model = megatron_yuan.load(folder)
    assert model.tokenizer is not None and model.eod_id == model.tokenizer.eod_id
    prompt = "one two<sep>从前"
    ids = model.tokenizer.encode(prompt)
    (new,) = model.generate_batch([ids], 12)
    expected = model.tokenizer.decode(ids + new)[len(model.tokenizer.decode(ids)) :]
    (tmp_path / "prompt.txt").write_text(prompt + "\n", encoding="utf-8")
    capsys.readouterr()
    for load in (folder, tmp_path / "run"):
        for source in (["--prompt", prompt], ["--prompt-file", tmp_path / "prompt.txt"], []):
            if not source:
                monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{prompt}\n".encode())))
            code = run_tool(
                monkeypatch, "generate.py", "--load", load, "--max-new-tokens", 12, "--device", "cpu", *source
            )
            output = capsys.readouterr()
            assert (code, output.out) == (0, expected + "\n")
            assert output.err.startswith(f"{len(new)} tokens in ") and "tokens/s" in output.err


def test_without_cache_and_with_a_tokenizer_from_elsewhere_the_text_is_the_same(
    folder: Path, tokenizer_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--load", folder, "--max-new-tokens", 12, "--device", "cpu", "--prompt", "one two<sep>从前"]
    arguments += ["--temperature", 5.0, "--seed", 3]  # so hot that any more ids to choose among would change the draws
    assert run_tool(monkeypatch, "generate.py", *arguments) == 0
    expected = capsys.readouterr().out
    assert run_tool(monkeypatch, "generate.py", *arguments, "--no-cache") == 0
    assert capsys.readouterr().out == expected
    (folder / "tokenizer.model").unlink()
    assert run_tool(monkeypatch, "generate.py", *arguments, "--tokenizer-model", tokenizer_model) == 0
    assert capsys.readouterr().out == expected


def test_a_conversion_there_and_back_by_command_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for load, save, to in (("hf", "run", "native"), ("run", "back", "hf")):
        arguments = ("--load", tmp_path / load, "--save", tmp_path / save, "--to", to)
        assert run_tool(monkeypatch, "convert_checkpoint.py", *arguments) == 0
        assert f"wrote {tmp_path / save}" in capsys.readouterr().out
    for name in ("model.safetensors", "tokenizer.model"):
        assert (tmp_path / "back" / name).stat().st_size == (folder / name).stat().st_size


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt", "one", "--temperature", "-1"], "temperature is -1.0"),
        (["--prompt", "one", "--top-p", "0"], "top-p is 0.0"),
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt-file", "nowhere.txt"], "nowhere.txt cannot be read: No such file"),
        (["--prompt", "one", "--tokenizer-model", "nowhere.model"], "nowhere.model cannot be read"),
    ],
)
def test_bad_input_ends_with_two_and_one_message(
    arguments: list[str],
    words: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_tool(monkeypatch, "generate.py", "--load", folder, "--device", "cpu", *arguments) == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: ") and words in output.err and output.out == ""


def test_without_a_tokenizer_the_flag_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "tokenizer.model").unlink()
    assert run_tool(monkeypatch, "generate.py", "--load", folder, "--prompt", "one") == 2
    assert "--tokenizer-model" in capsys.readouterr().err


def test_several_prompts_are_a_batch_with_stop_strings_and_log_probabilities(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    both = ["--prompt", "one two", "--prompt", "从前", "--max-new-tokens", 4, "--device", "cpu"]
    assert run_tool(monkeypatch, "generate.py", "--load", folder, *both, "--logprobs", "--show-experts") == 0
    text = capsys.readouterr().out
    assert "one two => " in text and "从前 => " in text and text.count("experts of each token") == 2
    answer = text.split("one two => ")[1].split("\n")[0]
    assert run_tool(monkeypatch, "generate.py", "--load", folder, *both, "--stop", answer[1:3]) == 0
    assert f"one two => {answer[: answer.find(answer[1:3])]}\n" in capsys.readouterr().out
    code = run_tool(monkeypatch, "generate.py", "--load", folder, *both, "--pipeline-model-parallel-size", 2)
    assert code == 2 and "there are 1 processes" in capsys.readouterr().err


def test_an_answer_that_begins_with_a_space_begins_with_it_in_a_batch_and_with_stop_strings_too(
    folder: Path, tokenizer_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = Tokenizer(tokenizer_model).encode("two three")
    monkeypatch.setattr(LanguageModel, "stream", lambda *_, **__: iter(answer))
    monkeypatch.setattr(
        LanguageModel,
        "complete",
        lambda _, prompts, *__, **___: [Completion(answer, [0.0] * len(answer))] * len(prompts),
    )
    given = ["--load", folder, "--prompt", "one", "--device", "cpu"]
    assert run_tool(monkeypatch, "generate.py", *given) == 0
    assert capsys.readouterr().out == " two three\n"
    assert run_tool(monkeypatch, "generate.py", *given, "--stop", "ree") == 0
    assert capsys.readouterr().out == " two th\n"
    assert run_tool(monkeypatch, "generate.py", *given, "--prompt", "four") == 0
    assert capsys.readouterr().out == "one =>  two three\nfour =>  two three\n"


def test_tokens_with_log_probabilities_and_with_experts_have_their_leading_space(
    folder: Path, tokenizer_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = Tokenizer(tokenizer_model).encode("two three")
    found = [Completion(answer, [0.0] * len(answer))]
    monkeypatch.setattr(LanguageModel, "complete", lambda *_, **__: found)
    flags = ["--prompt", "one", "--logprobs", "--show-experts", "--device", "cpu"]
    assert run_tool(monkeypatch, "generate.py", "--load", folder, *flags) == 0
    logprobs, experts = capsys.readouterr().out.split("experts of each token")
    assert "  ' two'\n" in logprobs and "\n two " in experts

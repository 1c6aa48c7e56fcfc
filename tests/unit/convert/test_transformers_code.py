"""Exports with code, opened by transformers as a user does."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_yuan.convert.hf import import_hf
from megatron_yuan.convert.hf_export import export_hf
from megatron_yuan.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from megatron_yuan.data.train_tokenizer import train_tokenizer
from tests.reference import yuan
from tests.reference.published_layout import config_json, published, write_folder

transformers = pytest.importorskip("transformers", reason="needs transformers (extra 'test')")

TIED = yuan.Shape(
    layers=2, hidden=24, heads=2, head_dim=20, ffn=10, experts=3, chosen=2, vocab=30, rotary_dim=12, rounding="all"
)
SHAPES = {
    "tied": TIED,
    "untied, one layer": dataclasses.replace(TIED, layers=1, tied=False),
    "three narrow heads": dataclasses.replace(TIED, hidden=36, heads=3, head_dim=8, rotary_dim=6),
    "sizes that grouped_mm takes": dataclasses.replace(TIED, hidden=32, ffn=16),
    "softmax router": dataclasses.replace(TIED, router="softmax"),
    "exact positions": dataclasses.replace(TIED, rounding="none"),
    "rounded frequencies": dataclasses.replace(TIED, rounding="frequencies"),
}
TEXTS = [
    "The sun is up.",
    "太阳升起来了。",
    "def add(a, b):\n    return a + b\n",
    "Question<sep>answer<eod> <mask>x<pad>",
]


@pytest.fixture(autouse=True, scope="module")
def cache_of_modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:  # where transformers copies an export's code, to import it
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield


def open_export(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, torch_dtype=dtype).eval()


def export(path: Path, shape: yuan.Shape, dtype: torch.dtype = torch.float32) -> tuple[Path, dict[str, Tensor]]:
    weights = yuan.random_weights(shape)
    folder = write_folder(path / "published", published(weights, shape, dtype), config_json(shape, dtype))
    import_hf(folder, path / "run")
    return export_hf(path / "run", path / "export", with_code=True), weights


@pytest.fixture(scope="module")
def tokenizer_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    text = folder / "text.txt"
    text.write_text("\n".join([*TEXTS[:2], "the quick brown fox", "天地玄黄宇宙洪荒"]), encoding="utf-8")
    return train_tokenizer([text], folder / "tokenizer.model", 340)


def prompts_of(shape: yuan.Shape) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(2, shape.vocab, (length,), generator=generator) for length in (1, 7, 2, 12)]


def padded(prompts: list[Tensor]) -> dict[str, Tensor]:
    longest = max(map(len, prompts))
    ids = torch.stack([torch.cat((torch.zeros(longest - len(p), dtype=torch.int64), p)) for p in prompts])
    mask = torch.stack([(torch.arange(longest) >= longest - len(p)).long() for p in prompts])
    return {"input_ids": ids, "attention_mask": mask}


def continue_greedily(model: Any, inputs: dict[str, Tensor], **how: Any) -> Tensor:
    found = model.generate(**inputs, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0, **how)
    return found[:, inputs["input_ids"].shape[1] :]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_logits_and_loss_are_those_of_the_reference(tmp_path: Path, shape: yuan.Shape) -> None:
    folder, weights = export(tmp_path, shape)
    ids = torch.randint(0, shape.vocab, (2, 9), generator=torch.Generator().manual_seed(1))
    found = open_export(folder)(ids, labels=ids)
    expected = yuan.logits(weights, shape, ids)
    torch.testing.assert_close(found.logits, expected, rtol=1e-4, atol=1e-4)
    loss = torch.nn.functional.cross_entropy(expected[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(found.loss, loss, rtol=1e-5, atol=1e-5)


def test_a_padded_batch_continues_as_each_prompt_alone_with_and_without_a_cache(tmp_path: Path) -> None:
    model, prompts = open_export(export(tmp_path, TIED)[0]), prompts_of(TIED)
    together = continue_greedily(model, padded(prompts))
    alone = torch.cat([continue_greedily(model, padded([prompt])) for prompt in prompts])
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(continue_greedily(model, padded(prompts), use_cache=False), together)


def test_beams_carry_the_filters_states_with_them(tmp_path: Path) -> None:
    model, inputs = open_export(export(tmp_path, TIED)[0]), padded(prompts_of(TIED))
    cached = continue_greedily(model, inputs, num_beams=3)
    torch.testing.assert_close(cached, continue_greedily(model, inputs, num_beams=3, use_cache=False))


def test_generation_reads_each_token_once_and_a_cache_may_be_passed_on(tmp_path: Path) -> None:
    model, inputs = open_export(export(tmp_path, TIED)[0]), padded(prompts_of(TIED))
    read: list[int] = []
    hook = model.model.layers[0].register_forward_pre_hook(lambda _, given: read.append(given[0].shape[1]))
    continue_greedily(model, inputs)
    hook.remove()
    assert set(read[1:]) == {1}, read
    ids = inputs["input_ids"][-1:]
    for name in ("cache", "past_key_values"):  # its names from transformers 5.24 on, and before
        begun = {name: model(ids[:, :-2], use_cache=True).past_key_values}
        rest = model(ids[:, -2:], use_cache=True, **begun)
        torch.testing.assert_close(rest.logits, model(ids).logits[:, -2:])


def test_a_cache_that_is_given_counts_even_where_none_is_asked_for_or_is_refused(tmp_path: Path) -> None:
    model, ids = open_export(export(tmp_path, TIED)[0]), prompts_of(TIED)[3][None]
    begun = model(ids[:, :-2], use_cache=True).past_key_values
    rest = model(ids[:, -2:], past_key_values=begun, use_cache=False)
    torch.testing.assert_close(rest.logits, model(ids).logits[:, -2:])
    model.train().gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="gradient checkpointing cannot go on from"):
        model(ids[:, -2:], past_key_values=begun)


def test_a_cache_that_lost_tokens_is_refused_however_they_were_taken(tmp_path: Path) -> None:
    model, ids = open_export(export(tmp_path, TIED)[0]), prompts_of(TIED)[3][None]
    begun = model(ids[:, :-2], use_cache=True).past_key_values
    shorter = model(ids[:, :-4], use_cache=True).past_key_values
    name = "layers" if hasattr(begun, "layers") else "key_cache"
    setattr(begun, name, getattr(shorter, name))  # what crop() would leave
    with pytest.raises(NotImplementedError, match="cannot be shortened"):
        model(ids[:, -4:], past_key_values=begun)


def test_transformers_trainer_trains_and_evaluates_an_export(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    ids = prompts_of(TIED)[3]
    rows: Any = [{"input_ids": ids, "labels": ids}] * 4
    how = {"max_steps": 2, "report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
    arguments = transformers.TrainingArguments(str(tmp_path / "trainer"), learning_rate=1e-2, **how)
    model = open_export(export(tmp_path, TIED)[0])
    trainer = transformers.Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before


def test_a_prompt_of_embeddings_continues_as_its_tokens_do(tmp_path: Path) -> None:
    model, inputs = open_export(export(tmp_path, TIED)[0]), padded(prompts_of(TIED))
    embedded = {"inputs_embeds": model.get_input_embeddings()(inputs["input_ids"])}
    how = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    mask = {"attention_mask": inputs["attention_mask"]}
    torch.testing.assert_close(model.generate(**embedded, **mask, **how), continue_greedily(model, inputs))
    inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    torch.testing.assert_close(model.generate(**embedded, **how), continue_greedily(model, inputs))


def test_what_generation_is_asked_to_tell_it_tells(tmp_path: Path) -> None:
    model = open_export(export(tmp_path, TIED)[0])
    ids = padded(prompts_of(TIED))["input_ids"]
    found = model.generate(ids, max_new_tokens=2, return_dict_in_generate=True, output_hidden_states=True)
    assert len(found.hidden_states[0]) == TIED.layers + 1
    positions = torch.tensor([0, 5])
    torch.testing.assert_close(model(ids, logits_to_keep=positions).logits, model(ids).logits[:, positions])


def test_weights_that_accelerate_keeps_elsewhere_are_brought_when_they_are_needed(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    folder = export(tmp_path, SHAPES["sizes that grouped_mm takes"])[0]
    ids = padded(prompts_of(TIED))["input_ids"]
    expected = open_export(folder)(ids).logits
    model = accelerate.cpu_offload(open_export(folder), execution_device="cpu")
    torch.testing.assert_close(model(ids).logits, expected)


def test_gradients_are_the_same_with_checkpointing_and_reach_every_expert_that_was_visited(tmp_path: Path) -> None:
    model = open_export(export(tmp_path, TIED)[0]).train()
    ids = torch.randint(0, TIED.vocab, (2, 9), generator=torch.Generator().manual_seed(1))

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    plain = gradients()
    assert all(grad.abs().max() > 0 for grad in plain.values())
    model.gradient_checkpointing_enable()
    for name, grad in gradients().items():
        torch.testing.assert_close(grad, plain[name], rtol=1e-6, atol=1e-7)


def test_products_without_grouped_mm_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_export(export(tmp_path, SHAPES["sizes that grouped_mm takes"])[0])
    ids = torch.randint(0, TIED.vocab, (2, 9), generator=torch.Generator().manual_seed(1))
    grouped = model(ids).logits
    monkeypatch.delattr(torch.nn.functional, "grouped_mm", raising=False)
    torch.testing.assert_close(model(ids).logits, grouped, rtol=1e-5, atol=1e-5)


def test_what_is_saved_again_has_the_published_names_and_opens_again(tmp_path: Path) -> None:
    model = open_export(export(tmp_path, TIED)[0])
    ids = torch.randint(0, TIED.vocab, (1, 9), generator=torch.Generator().manual_seed(1))
    before = model(ids).logits
    model.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "modeling_yuan.py").is_file()
    torch.testing.assert_close(open_export(tmp_path / "again")(ids).logits, before)
    import_hf(tmp_path / "again", tmp_path / "native")


def test_weights_stay_in_the_type_asked_for_and_move_with_their_model(tmp_path: Path) -> None:
    folder, _ = export(tmp_path, TIED, torch.bfloat16)
    model = open_export(folder, torch.bfloat16)
    ids = torch.randint(0, TIED.vocab, (1, 9), generator=torch.Generator().manual_seed(1))
    assert model(ids).logits.dtype == torch.bfloat16
    wide = model.float()(ids).logits  # a cast moves each expert apart
    torch.testing.assert_close(wide, open_export(folder)(ids).logits)


def test_a_published_folder_opens_as_it_is_with_its_own_keys_and_torch_files(tmp_path: Path) -> None:
    from megatron_yuan.convert.hf_code.modeling_yuan import YuanForCausalLM

    weights = yuan.random_weights(TIED)
    write_folder(tmp_path / "p", published(weights, TIED), config_json(TIED, torch.float32))
    torch.save(published(weights, TIED), tmp_path / "p" / "pytorch_model.bin")
    for file in (tmp_path / "p").glob("*.safetensors*"):
        file.unlink()
    model = YuanForCausalLM.from_pretrained(tmp_path / "p", torch_dtype=torch.float32).eval()
    ids = torch.randint(0, TIED.vocab, (2, 9), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(ids).logits, yuan.logits(weights, TIED, ids), rtol=1e-4, atol=1e-4)


def test_the_tokenizer_is_ours_with_eod_as_end_and_padding_at_the_left(tmp_path: Path, tokenizer_model: Path) -> None:
    ours = Tokenizer(tokenizer_model)
    shape = dataclasses.replace(TIED, vocab=ours.vocab_size)
    folder = write_folder(tmp_path / "p", published(yuan.random_weights(shape), shape), config_json(shape))
    shutil.copy(tokenizer_model, folder / "tokenizer.model")
    import_hf(folder, tmp_path / "run")
    exported = export_hf(tmp_path / "run", tmp_path / "export", with_code=True)
    theirs = transformers.AutoTokenizer.from_pretrained(exported, trust_remote_code=True)
    for text in TEXTS:
        ids = ours.encode(text)
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == ours.decode(ids)
    assert theirs.decode([len(theirs) + 3]) == ""  # of the padding of the vocabulary
    assert {token: theirs.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS} == ours.special_ids
    batch = theirs(["a", "The sun is up."], padding=True, return_tensors="pt")
    assert batch["input_ids"][0, 0] == ours.pad_id and batch["attention_mask"][0, 0] == 0
    assert theirs.eos_token_id == ours.eod_id and theirs.bos_token is None
    generation = transformers.GenerationConfig.from_pretrained(exported)
    assert generation.eos_token_id == [ours.eod_id, ours.special_ids["<sep>"]]


def test_ids_that_the_tokenizer_does_not_spell_are_never_generated(tmp_path: Path, tokenizer_model: Path) -> None:
    spelt = Tokenizer(tokenizer_model).vocab_size
    shape = dataclasses.replace(TIED, vocab=spelt + 12, tied=False)
    folder = write_folder(tmp_path / "p", published(yuan.random_weights(shape), shape), config_json(shape))
    shutil.copy(tokenizer_model, folder / "tokenizer.model")
    import_hf(folder, tmp_path / "run")
    model = open_export(export_hf(tmp_path / "run", tmp_path / "export", with_code=True))
    model.lm_head.weight.data[:spelt] *= 1e-3  # all but the padding of the vocabulary is unlikely
    inputs = padded(prompts_of(TIED))
    assert model(**inputs).logits[:, -1].argmax(-1).min() >= spelt
    for how in ({"do_sample": False}, {"do_sample": True, "num_beams": 2}):
        assert model.generate(**inputs, **how, max_new_tokens=6, pad_token_id=0).max() < spelt


def test_without_a_tokenizer_the_padding_of_the_vocabulary_is_never_generated_either(tmp_path: Path) -> None:
    shape = dataclasses.replace(TIED, vocab=32, tied=False)
    keys = {"unpadded_vocab_size": 20, "make_vocab_size_divisible_by": 16, "eos_token_id": 3, "pad_token_id": 0}
    weights = yuan.random_weights(shape)
    folder = write_folder(tmp_path / "p", published(weights, shape), {**config_json(shape), **keys})
    import_hf(folder, tmp_path / "run")
    model = open_export(export_hf(tmp_path / "run", tmp_path / "export", with_code=True))
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (3, 0)
    model.lm_head.weight.data[:20] *= 1e-3
    inputs = padded(prompts_of(dataclasses.replace(shape, vocab=20)))
    assert model(**inputs).logits[:, -1].argmax(-1).min() >= 20
    assert model.generate(**inputs, do_sample=False, max_new_tokens=6).max() < 20


def test_decoding_does_not_go_through_the_vocabulary(tokenizer_model: Path) -> None:
    from megatron_yuan.convert.hf_code.tokenization_yuan import YuanTokenizer

    class Vocabulary(dict):
        def __iter__(self) -> Iterator[str]:
            raise AssertionError("of the published one, that takes 20 ms")

    tokenizer = YuanTokenizer(str(tokenizer_model))
    ids = tokenizer(TEXTS[0])["input_ids"]
    tokenizer._ids = Vocabulary(tokenizer._ids)
    assert tokenizer.decode(ids) == TEXTS[0]


def test_contrastive_search_is_refused_by_its_name(tmp_path: Path) -> None:
    model = open_export(export(tmp_path, TIED)[0])
    with pytest.raises(Exception, match=r"(?i)contrastive.search"):
        model.generate(**padded(prompts_of(TIED)), max_new_tokens=3, penalty_alpha=0.6, top_k=4, pad_token_id=0)


def test_a_chat_is_questions_and_answers_apart_by_sep(tmp_path: Path, tokenizer_model: Path) -> None:
    from megatron_yuan.convert.hf_code.tokenization_yuan import YuanTokenizer
    from megatron_yuan.convert.hf_code_files import CHAT_TEMPLATE

    tokenizer = YuanTokenizer(str(tokenizer_model), chat_template=CHAT_TEMPLATE)
    turns = [{"role": role, "content": text} for role, text in (("user", "q1"), ("assistant", "a1"), ("user", "q2"))]
    system = {"role": "system", "content": "be kind"}

    def chat(messages: list[dict[str, str]], prompt: bool) -> Any:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)

    assert chat(turns, True) == "q1<sep>a1<sep>q2<sep>"
    assert chat(turns[:2], False) == "q1<sep>a1<eod>"
    assert chat([system, *turns[:1]], True) == "be kind\nq1<sep>"

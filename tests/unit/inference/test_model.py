"""Loading and generating, against the slow oracle's own greedy loop."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import megatron_yuan
from megatron_yuan.checkpoint.agreement import ALONE
from megatron_yuan.checkpoint.saver import save_checkpoint
from megatron_yuan.checkpoint.state import RunState
from megatron_yuan.config.schema import Config, DataConfig
from megatron_yuan.config.yaml_file import to_yaml
from megatron_yuan.convert.hf import import_hf
from megatron_yuan.errors import CheckpointError, ConfigError, DataError
from megatron_yuan.inference import decoding
from megatron_yuan.inference.model import LanguageModel
from megatron_yuan.model.attention import attend_to_past
from megatron_yuan.model.initialize import initialize
from tests.reference import yuan
from tests.reference.published_layout import config_json, published, write_folder
from tests.unit.model.test_model_against_reference import config_of

# Untied: a random model with a tied head only repeats its last token.
SHAPE = yuan.Shape(
    layers=2, hidden=24, heads=2, head_dim=16, ffn=20, experts=4, chosen=2, vocab=50, rotary_dim=8, tied=False
)
WEIGHTS = yuan.random_weights(SHAPE)
EOD = 7
PROMPTS = [[3], [11, 5, 30, 2, 8, 44, 19], [1, 2], [9, 9, 9], [40, 41, 42, 43]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "hf", published(WEIGHTS, SHAPE), config_json(SHAPE))


@pytest.fixture
def model(folder: Path) -> LanguageModel:
    return megatron_yuan.load(folder)


@torch.no_grad()
def oracle_greedy(prompt: list[int], count: int) -> list[int]:
    """New tokens, up to and without EOD, each from a whole forward pass of the oracle."""
    ids = list(prompt)
    for _ in range(count):
        best = int(yuan.logits(WEIGHTS, SHAPE, torch.tensor([ids]))[0, -1].argmax())
        if best == EOD:
            break
        ids.append(best)
    return ids[len(prompt) :]


@pytest.mark.parametrize("router", ["softmax", "noisy-top-k", "expert-choice"])
def test_a_router_that_looks_ahead_scores_but_does_not_generate_and_others_do_both(router: str) -> None:
    config = Config(model=dataclasses.replace(config_of(SHAPE), moe_router=router, num_shared_experts=1))
    model = LanguageModel(config)
    initialize(model, config.model, seed=1)
    ids_BS = torch.tensor([PROMPTS[1]])
    assert model(ids_BS).isfinite().all()
    if router == "expert-choice":
        for use_cache in (True, False):
            with pytest.raises(ConfigError, match="looks at later tokens"):
                model.generate(ids_BS, 2, use_cache=use_cache)
        with pytest.raises(ConfigError, match="cannot generate"):
            model.generate_batch(PROMPTS, 2)
    else:
        assert torch.equal(
            model.generate(ids_BS, 4, stop_ids=()), model.generate(ids_BS, 4, stop_ids=(), use_cache=False)
        )


def test_a_folder_of_either_kind_gives_the_oracles_scores(folder: Path, model: LanguageModel, tmp_path: Path) -> None:
    import_hf(folder, tmp_path / "run")
    ids_BS = torch.tensor([PROMPTS[1], PROMPTS[1][::-1]])
    expected = yuan.logits(WEIGHTS, SHAPE, ids_BS)
    for each in (model, megatron_yuan.load(tmp_path / "run"), megatron_yuan.load(str(tmp_path / "run"), device="auto")):
        assert not each.training and each.eod_id == EOD and each.tokenizer is None
        torch.testing.assert_close(each(ids_BS).cpu(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("chunk", [1, 3, 4096])
def test_prompts_of_any_lengths_together_give_what_the_oracle_gives_for_each_alone(
    model: LanguageModel, use_cache: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "PREFILL_CHUNK", chunk)
    found = model.generate_batch(PROMPTS, max_new_tokens=10, use_cache=use_cache)
    assert found == [oracle_greedy(prompt, 10) for prompt in PROMPTS]


@pytest.mark.parametrize("use_cache", [True, False])
@torch.no_grad()
def test_positions_count_from_a_rows_first_true_token(use_cache: bool, tmp_path: Path) -> None:
    """Seen where angles are rounded: else attention depends on distances alone, and any start would do."""
    shape = dataclasses.replace(SHAPE, rounding="all")
    model = megatron_yuan.load(write_folder(tmp_path / "hf", published(WEIGHTS, shape), config_json(shape)))
    assert model.config.rotary_rounding == "all"
    ids_BP, first_B = decoding.pad_left(PROMPTS, model.device)
    found = decoding.Decoder(model, ids_BP, first_B, 7, use_cache, shape.vocab).next_logits()
    for prompt, logits_V in zip(PROMPTS, found, strict=True):
        expected_V = yuan.logits(WEIGHTS, shape, torch.tensor([prompt]))[0, -1]
        torch.testing.assert_close(logits_V, expected_V, atol=1e-5, rtol=1e-5)


def test_generating_appends_to_the_ids_given(model: LanguageModel) -> None:
    ids_BS = torch.tensor([PROMPTS[1]])
    output = model.generate(ids_BS, max_new_tokens=5, stop_ids=())
    assert output.shape == (1, 12) and torch.equal(output[:, :7], ids_BS)
    assert torch.equal(model.generate(ids_BS, max_new_tokens=0), ids_BS)
    assert list(model.stream(PROMPTS[1], 5)) == oracle_greedy(PROMPTS[1], 5)


def test_tokens_are_handed_over_as_they_come(model: LanguageModel) -> None:
    seen: list[list[int]] = []

    def on_token(ids_B: torch.Tensor) -> None:
        assert not torch.is_inference_mode_enabled()  # the caller's own computing is left as it was
        seen.append(ids_B.tolist())

    ids_BS = torch.tensor([PROMPTS[3], PROMPTS[4][:3]])
    output = model.generate(ids_BS, max_new_tokens=4, stop_ids=(), on_token=on_token)
    assert torch.tensor(seen).T.tolist() == output[:, 3:].tolist()


def test_a_row_that_has_stopped_repeats_its_stop_and_all_stopped_ends_early(model: LanguageModel) -> None:
    first, other = (oracle_greedy(prompt, 10) for prompt in (PROMPTS[3], PROMPTS[4][:3]))
    stop = first[0]
    assert stop not in other[:2]
    ids_BS = torch.tensor([PROMPTS[3], PROMPTS[4][:3]])
    output = model.generate(ids_BS, max_new_tokens=3, stop_ids=[stop, other[1]])[:, 3:]
    assert output.tolist() == [[stop, stop], other[:2]]
    assert model.generate_batch(ids_BS.tolist(), 3, stop_ids=[stop, other[1]]) == [[], other[:1]]


def test_the_same_seed_gives_the_same_tokens_with_cache_or_without(model: LanguageModel) -> None:
    def drawn(seed: int, use_cache: bool = True) -> list[list[int]]:
        return model.generate_batch(
            PROMPTS, 8, temperature=1.5, top_k=40, top_p=0.95, seed=seed, stop_ids=(), use_cache=use_cache
        )

    assert drawn(1) == drawn(1) == drawn(1, use_cache=False) != drawn(2)


def test_ids_beyond_the_vocabulary_in_use_are_never_chosen(model: LanguageModel) -> None:
    model.config = dataclasses.replace(model.config, vocab_size=10, make_vocab_size_divisible_by=50)
    output = model.generate(torch.tensor(PROMPTS[4:]), 20, temperature=5.0, stop_ids=())
    assert output.shape == (1, 24) and int(output[:, 4:].max()) < 10


def test_float32_takes_the_master_weights_of_a_bfloat16_checkpoint(tmp_path: Path) -> None:
    config = Config(
        model=dataclasses.replace(config_of(SHAPE), max_position_embeddings=4096), data=DataConfig(eod_id=2)
    )
    exact = {name: tensor.detach() for name, tensor in WEIGHTS.items()}
    optimizer = {name: {"master": tensor} for name, tensor in exact.items()}
    rounded = {name: tensor.bfloat16() for name, tensor in exact.items()}
    save_checkpoint(tmp_path, ALONE, RunState(3, 3), rounded, optimizer, to_yaml(config))
    as_saved, exactly = megatron_yuan.load(tmp_path), megatron_yuan.load(tmp_path, dtype=torch.float32)
    assert as_saved.eod_id == 2 and as_saved.final_norm.weight.dtype == torch.bfloat16
    ids_BS = torch.tensor(PROMPTS[1:2])
    expected = yuan.logits(WEIGHTS, SHAPE, ids_BS)
    torch.testing.assert_close(exactly(ids_BS), expected, atol=1e-5, rtol=1e-5)
    assert as_saved.generate(ids_BS, 4, stop_ids=()).shape == (1, 11)


def test_caches_grow_where_the_answer_outgrows_their_room(model: LanguageModel, monkeypatch) -> None:
    prompt = torch.tensor([[1, 2, 3]])
    whole = model.generate(prompt, 12, stop_ids=())
    padded = model.generate_batch(PROMPTS, 12, stop_ids=())
    monkeypatch.setattr(decoding, "ROOM", 2)
    assert torch.equal(model.generate(prompt, 12, stop_ids=()), whole)
    assert model.generate_batch(PROMPTS, 12, stop_ids=()) == padded


@torch.inference_mode()
def test_of_a_prompt_the_filter_keeps_its_last_tokens_state_and_no_more(model: LanguageModel) -> None:
    decoder = decoding.Decoder(model, torch.tensor([PROMPTS[1]]), None, 20, True, model.vocabulary_in_use)
    decoder.next_logits()
    for cache in decoder.caches:
        assert cache.filter is not None
        for state in cache.filter:
            assert state.untyped_storage().nbytes() == state.numel() * state.element_size()


def test_bad_ids_and_settings_are_refused(model: LanguageModel) -> None:
    with pytest.raises(DataError, match="run from 50 to 50"):
        model.generate(torch.tensor([[50]]), 1)
    with pytest.raises(DataError, match="run from -1 to 3"):
        model(torch.tensor([[-1, 3]]))
    with pytest.raises(DataError, match="at least one row and a token in it"):
        model.generate(torch.zeros(1, 0, dtype=torch.long), 1)
    with pytest.raises(DataError, match="prompt 1 is empty"):
        model.generate_batch([[1], []], 1)
    for ids in (torch.zeros(0, 3, dtype=torch.long), torch.ones(1, 3, dtype=torch.bool), torch.ones(1, 3)):
        with pytest.raises(DataError, match="input ids are"):
            model.generate(ids, 1)
    with pytest.raises(ConfigError, match="max-new-tokens is -1"):
        model.generate(torch.tensor([[1]]), -1)
    with pytest.raises(ConfigError, match="temperature"):
        model.generate(torch.tensor([[1]]), 1, temperature=-1)
    assert model.generate_batch([], 5) == []


@pytest.mark.parametrize("how", [{}, {"temperature": 1.0, "seed": 3}])
def test_a_model_whose_scores_are_no_numbers_says_so(model: LanguageModel, how: dict[str, float]) -> None:
    with torch.no_grad():
        model.final_norm.weight[3] = float("nan")
    for generate in (model.generate_batch, lambda prompts, new, **more: list(model.stream(prompts[0], new))):
        with pytest.raises(CheckpointError, match=r"scores are not finite at new token 1.*--dtype fp32"):
            generate(PROMPTS, 4, **how)


def test_what_cannot_be_loaded_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere is not there"):
        megatron_yuan.load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="neither a checkpoint nor a Hugging Face folder"):
        megatron_yuan.load(tmp_path)
    with pytest.raises(ConfigError, match=r"dtype is torch\.int8"):
        megatron_yuan.load(folder, dtype=torch.int8)
    with pytest.raises(ConfigError, match="dtype is 'int8'"):
        megatron_yuan.load(folder, dtype="int8")
    for device in ("warp", "mps", "meta", torch.device("xpu")):
        with pytest.raises(ConfigError, match=f"device is '{device}', but must be auto, cpu, cuda"):
            megatron_yuan.load(folder, device=device)


@pytest.mark.parametrize("firsts", [None, [0, 5, 16]])
def test_one_token_in_bfloat16_attends_to_its_past_as_in_float32(firsts: list[int] | None) -> None:
    q, k, v = (torch.randn(3, 2, n, 8).bfloat16() for n in (1, 17, 17))
    first_B = None if firsts is None else torch.tensor(firsts)
    found = attend_to_past(q, k, v, 16, first_B)
    visible = None if first_B is None else torch.arange(17) >= first_B.view(-1, 1, 1, 1)
    expected = torch.nn.functional.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=visible)
    torch.testing.assert_close(found.float(), expected, atol=1e-2, rtol=1e-2)

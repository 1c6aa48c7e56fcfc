"""Scores of continuations, against whole forward passes of the slow oracle, one continuation at a time."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import megatron_yuan
from megatron_yuan.config.schema import Config, ModelConfig
from megatron_yuan.inference import decoding, scoring
from megatron_yuan.inference.model import LanguageModel
from megatron_yuan.inference.scoring import Question, Score, score
from tests.reference import yuan
from tests.reference.published_layout import config_json, published, write_folder

SHAPE = yuan.Shape(
    layers=2, hidden=24, heads=2, head_dim=16, ffn=20, experts=4, chosen=2, vocab=50, rotary_dim=8, tied=False
)
WEIGHTS = yuan.random_weights(SHAPE)
QUESTIONS = [
    Question([3], [[5], [6]]),
    Question([11, 5, 30, 2, 8, 44, 19], [[1, 2, 3], [9], [4, 4]]),
    Question([1, 2], [[40, 41, 42, 43, 44]]),
    Question([9, 9, 9], [[7], [8], [9], [10]]),
    Question([9, 9], [[7]]),
]


@pytest.fixture
def model(tmp_path: Path) -> LanguageModel:
    return megatron_yuan.load(write_folder(tmp_path / "hf", published(WEIGHTS, SHAPE), config_json(SHAPE)))


@torch.no_grad()
def oracle(question: Question) -> list[Score]:
    scores = []
    for continuation in question.continuations:
        ids = [*question.context, *continuation]
        logprobs = yuan.logits(WEIGHTS, SHAPE, torch.tensor([ids]))[0].log_softmax(-1)[len(question.context) - 1 : -1]
        target = torch.tensor(list(continuation))
        total = float(logprobs.gather(1, target.unsqueeze(1)).sum())
        scores.append(Score(total, bool((logprobs.argmax(-1) == target).all())))
    return scores


def assert_scores(found: list[list[Score]], expected: list[list[Score]]) -> None:
    assert [[each.greedy for each in row] for row in found] == [[each.greedy for each in row] for row in expected]
    for row, wanted in zip(found, expected, strict=True):
        assert [each.logprob for each in row] == pytest.approx([each.logprob for each in wanted], abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
@pytest.mark.parametrize(("chunk", "logits"), [(4096, 2**26), (2, 60)])
def test_scores_are_the_oracles_whatever_is_batched_and_cut(
    model: LanguageModel, batch_size: int, chunk: int, logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "PREFILL_CHUNK", chunk)
    monkeypatch.setattr(scoring, "LOGITS", logits)
    assert_scores(score(model, QUESTIONS, batch_size), [oracle(question) for question in QUESTIONS])


def test_a_router_that_looks_at_all_tokens_scores_a_text_as_if_nothing_else_were_asked() -> None:
    shape = {"num_layers": 2, "hidden_size": 24, "num_attention_heads": 2, "kv_channels": 8, "ffn_hidden_size": 8}
    config = Config(model=ModelConfig(**shape, vocab_size=50, num_experts=4, moe_router="expert-choice"))
    model = LanguageModel(config).eval()
    random = torch.Generator().manual_seed(0)
    for _, parameter in sorted(model.named_parameters()):
        parameter.data.normal_(0, 0.3, generator=random)
    found = score(model, QUESTIONS, 16)
    for question, scores in zip(QUESTIONS, found, strict=True):
        for continuation, each in zip(question.continuations, scores, strict=True):
            assert each == score(model, [Question(question.context, [continuation])], 1)[0][0]
    # As one pass over the text without its last token, which is only predicted, has it.
    with torch.no_grad():
        logits_V = model(torch.tensor([QUESTIONS[3].context]))[0, -1, :50]
    assert found[3][0].logprob == pytest.approx(float(logits_V.log_softmax(-1)[7]), abs=1e-5)


def test_a_greedy_answer_is_seen_to_be_greedy(model: LanguageModel) -> None:
    prompt = [11, 5, 30]
    answer = model.generate_batch([prompt], 4, stop_ids=())[0]
    ((best, other),) = score(model, [Question(prompt, [answer, [*answer[:-1], (answer[-1] + 1) % 50]])])
    assert best.greedy and not other.greedy and best.logprob > other.logprob


def test_what_is_known_is_told_as_it_comes(model: LanguageModel) -> None:
    told: dict[int, list[Score]] = {}
    found = score(model, QUESTIONS, 2, told.__setitem__)
    assert [told[i] for i in range(len(QUESTIONS))] == found


def test_log_probabilities_of_a_completion_are_its_scores(model: LanguageModel) -> None:
    prompts = [[3], [11, 5, 30, 2], [1, 2]]
    for prompt, completion in zip(prompts, model.complete(prompts, 5, stop_ids=()), strict=True):
        expected = [
            oracle(Question(prompt + completion.ids[:i], [[token]]))[0] for i, token in enumerate(completion.ids)
        ]
        assert completion.logprobs == pytest.approx([each.logprob for each in expected], abs=1e-5)


def test_a_row_stops_at_its_own_stop_string_or_id(model: LanguageModel) -> None:
    class Letters:
        vocab_size = 50

        def decode(self, ids: list[int]) -> str:
            return "".join(chr(ord("A") + each) for each in ids)

    prompts = [[3], [11, 5, 30, 2], [1, 2]]
    free = model.complete(prompts, 6, stop_ids=())
    model.tokenizer = Letters()  # type: ignore[assignment]
    texts = [Letters().decode(each.ids) for each in free]
    stop = texts[0][1:3]
    found = model.complete(prompts, 6, stop_ids=(), stop_strings=[stop])
    for each, ids, text in zip(found, free, texts, strict=True):
        end = text.find(stop)
        assert each.ids == (ids.ids if end < 0 else ids.ids[: end + len(stop)])
        assert len(each.logprobs) == len(each.ids)
    stop_id = free[1].ids[2]
    by_id = model.complete(prompts, 6, stop_ids=[stop_id])
    assert by_id[1].ids == free[1].ids[: free[1].ids.index(stop_id)]


def test_padding_of_the_vocabulary_has_no_share_in_a_score(model: LanguageModel) -> None:
    model.config = dataclasses.replace(model.config, vocab_size=40, make_vocab_size_divisible_by=50)
    ((found,),) = score(model, [Question([3, 4], [[5]])])
    logits = yuan.logits(WEIGHTS, SHAPE, torch.tensor([[3, 4]]))[0, -1, :40].detach()
    assert found.logprob == pytest.approx(float(logits.log_softmax(-1)[5]), abs=1e-5)

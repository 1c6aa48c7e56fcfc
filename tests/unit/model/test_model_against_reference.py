"""The fast model against the slow oracle: scores and gradients, documents apart, and every way of caching."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from megatron_yuan.config.schema import ModelConfig
from megatron_yuan.model.attention import AttentionCache
from megatron_yuan.model.context import token_context
from megatron_yuan.model.model import YuanModel
from tests.reference import yuan

ORDINARY = yuan.Shape(
    layers=2, hidden=24, heads=2, head_dim=16, ffn=20, experts=4, chosen=2, vocab=50, rotary_dim=8, tied=True
)
SHAPES = {
    "ordinary": ORDINARY,
    "one layer, untied, all rotated": dataclasses.replace(ORDINARY, layers=1, tied=False, rotary_dim=16),
    "heads wider than hidden, 3 of 3 experts": dataclasses.replace(
        ORDINARY, hidden=12, heads=3, head_dim=12, rotary_dim=6, experts=3, chosen=3
    ),
    "heads narrower than hidden, top 1": dataclasses.replace(
        ORDINARY, hidden=36, heads=1, head_dim=6, rotary_dim=4, chosen=1
    ),
    "softmax router": dataclasses.replace(ORDINARY, router="softmax"),
    "context extension": dataclasses.replace(ORDINARY, ntk_factor=4.0, rotary_base=500.0),
    "rounded frequencies": dataclasses.replace(ORDINARY, rounding="frequencies"),
    "all rounded": dataclasses.replace(ORDINARY, rounding="all"),
}


def config_of(shape: yuan.Shape, kind: str = "grouped") -> ModelConfig:
    return ModelConfig(
        num_layers=shape.layers,
        hidden_size=shape.hidden,
        num_attention_heads=shape.heads,
        kv_channels=shape.head_dim,
        ffn_hidden_size=shape.ffn,
        vocab_size=shape.vocab,
        make_vocab_size_divisible_by=1,
        untie_embeddings_and_output_weights=not shape.tied,
        norm_epsilon=shape.eps,
        rotary_base=shape.rotary_base,
        rotary_percent=shape.rotary_dim / shape.head_dim,
        rotary_ntk_factor=shape.ntk_factor,
        rotary_rounding=shape.rounding,  # type: ignore[arg-type]
        num_experts=shape.experts,
        moe_router=shape.router,  # type: ignore[arg-type]
        moe_router_topk=shape.chosen,
        moe_experts=kind,  # type: ignore[arg-type]
    )


def fast_model(shape: yuan.Shape, weights: yuan.Weights, kind: str = "grouped") -> YuanModel:
    model = YuanModel(config_of(shape, kind))
    model.load_state_dict({name: tensor.detach().clone() for name, tensor in weights.items()})
    return model


def some_ids(batch: int, length: int, shape: yuan.Shape = ORDINARY) -> Tensor:
    return torch.randint(shape.vocab, (batch, length), generator=torch.Generator().manual_seed(1))


def positions(batch: int, begin: int, end: int) -> Tensor:
    return torch.arange(begin, end).expand(batch, -1)


def full_logits(model: YuanModel, ids_BS: Tensor) -> Tensor:
    context = token_context(model.config, positions(ids_BS.shape[0], 0, ids_BS.shape[1]), torch.float32)
    return model.logits(model(ids_BS, context).hidden_BSH)


@pytest.mark.parametrize("kind", ["grouped", "looped"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_scores_and_gradients_are_the_oracles(shape: yuan.Shape, kind: str) -> None:
    weights = yuan.random_weights(shape)
    model = fast_model(shape, weights, kind)
    ids_BS = some_ids(2, 9, shape)
    expected, found = yuan.logits(weights, shape, ids_BS), full_logits(model, ids_BS)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    yuan.next_token_loss(expected, ids_BS).backward()
    yuan.next_token_loss(found, ids_BS).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, weights[name].grad, atol=1e-5, rtol=1e-4, msg=name)


def test_isolated_documents_are_what_each_is_alone_forward_and_backward() -> None:
    weights = yuan.random_weights(ORDINARY)
    model = fast_model(ORDINARY, weights)
    ids_BS = some_ids(2, 12)
    lengths = [[12], [1, 4, 2, 5]]
    starts_BS = torch.tensor([[sum(row[:d]) for d, n in enumerate(row) for _ in range(n)] for row in lengths])
    positions_BS = torch.arange(12) - starts_BS
    context = token_context(model.config, positions_BS, torch.float32, document_start_BS=starts_BS)
    found = model.logits(model(ids_BS, context).hidden_BSH)
    expected = torch.stack(
        [
            torch.cat([yuan.logits(weights, ORDINARY, ids[None])[0] for ids in row.split(sizes)])
            for row, sizes in zip(ids_BS, lengths, strict=True)
        ]
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    yuan.next_token_loss(expected, ids_BS).backward()
    yuan.next_token_loss(found, ids_BS).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, weights[name].grad, atol=1e-5, rtol=1e-4, msg=name)


def test_without_isolation_reset_positions_alone_change_what_is_seen() -> None:
    weights = yuan.random_weights(ORDINARY)
    model = fast_model(ORDINARY, weights)
    ids_BS, positions_BS = some_ids(1, 7), torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
    found = model.logits(model(ids_BS, token_context(model.config, positions_BS, torch.float32)).hidden_BSH)
    torch.testing.assert_close(found, yuan.logits(weights, ORDINARY, ids_BS, positions_BS), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, full_logits(model, ids_BS), atol=1e-3)


@pytest.mark.parametrize("pieces", [[8], [1] * 8, [5, 1, 1, 1], [1, 7], [3, 2, 3], [2, 6]])
@torch.no_grad()
def test_any_cut_into_prefill_chunks_and_single_tokens_gives_the_full_forward(pieces: list[int]) -> None:
    weights = yuan.random_weights(ORDINARY)
    model = fast_model(ORDINARY, weights)
    ids_BS = some_ids(3, 8)
    caches = [AttentionCache.empty(model.config, 3, 8, weights["embedding.weight"]) for _ in model.layers]
    parts, begin = [], 0
    for size in pieces:
        context = token_context(model.config, positions(3, begin, begin + size), torch.float32)
        parts.append(model.logits(model(ids_BS[:, begin : begin + size], context, caches).hidden_BSH))
        begin += size
    torch.testing.assert_close(torch.cat(parts, dim=1), yuan.logits(weights, ORDINARY, ids_BS), atol=1e-5, rtol=1e-5)


def test_a_token_never_sees_what_comes_after_it() -> None:
    model = fast_model(ORDINARY, yuan.random_weights(ORDINARY))
    ids_BS = some_ids(1, 8)
    changed_BS = ids_BS.clone()
    changed_BS[:, 5] = (changed_BS[:, 5] + 1) % ORDINARY.vocab
    torch.testing.assert_close(full_logits(model, changed_BS)[:, :5], full_logits(model, ids_BS)[:, :5])

"""What must not change what the model computes: recompute, cutting it into parts, and who shares a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from megatron_yuan.model.context import token_context
from megatron_yuan.model.loss import linear_cross_entropy
from megatron_yuan.model.model import YuanModel
from tests.reference import yuan
from tests.unit.model.test_model_against_reference import SHAPES, config_of, some_ids

SHAPE = dataclasses.replace(SHAPES["ordinary"], layers=3)
WEIGHTS = yuan.random_weights(SHAPE)
DROPOUTS = {"attention_dropout": 0.3, "hidden_dropout": 0.2}
IDS = some_ids(3, 8, SHAPE)
KEYS = [101, 202, 303]
DOCUMENTS = torch.tensor([[0, 0, 0, 3, 3, 5, 5, 5], [0] * 8, [0, 1, 2, 2, 2, 2, 2, 2]])


def model_of(
    layers: Sequence[int] | None = None, recompute: int = 0, products: bool = False, **values: float
) -> YuanModel:
    """The whole model, or the part of it that holds these layers."""
    config = dataclasses.replace(config_of(SHAPE), **values)  # type: ignore[arg-type]
    first, last = layers is None or 0 in layers, layers is None or SHAPE.layers - 1 in layers
    model = YuanModel(config, layers, first, last, recompute_layers=recompute, recompute_products=products)
    model.load_state_dict({name: WEIGHTS[name].detach().clone() for name in model.state_dict()})
    return model


def hidden_of(
    parts: Sequence[YuanModel], rows: Sequence[int], keys: Sequence[int] | None, isolated: bool = False
) -> Tensor:
    start_BS = DOCUMENTS[list(rows)] if isolated else None
    position_BS = torch.arange(8).expand(len(rows), -1) - (0 if start_BS is None else start_BS)
    x = IDS[list(rows)]
    for part in parts:
        x = part(x, token_context(part.config, position_BS, torch.float32, start_BS, keys)).hidden_BSH
    return x


def gradients_of(parts: Sequence[YuanModel], isolated: bool = False) -> dict[str, Tensor]:
    hidden_BSH = hidden_of(parts, range(3), KEYS, isolated)
    labels_T = IDS.roll(-1, dims=1).flatten()
    linear_cross_entropy(hidden_BSH.flatten(0, 1), parts[-1].output_weight, labels_T, torch.ones(24))[0].backward()
    summed: dict[str, Tensor] = {}
    for part in parts:
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None
            summed[name] = summed[name] + parameter.grad if name in summed else parameter.grad
    return summed


@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize(("recompute", "products"), [(1, False), (3, False), (0, True), (1, True)])
def test_recompute_gives_the_same_gradients_to_the_bit_dropout_included(
    recompute: int, products: bool, isolated: bool
) -> None:
    plain = gradients_of([model_of(**DROPOUTS)], isolated)
    again = gradients_of([model_of(recompute=recompute, products=products, **DROPOUTS)], isolated)
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        assert torch.equal(gradient, again[name]), name


@pytest.mark.parametrize("cut", [[[0], [1, 2]], [[0], [1], [2]]])
def test_parts_one_after_another_are_the_whole(cut: list[list[int]]) -> None:
    whole, parts = [model_of(**DROPOUTS)], [model_of(layers, **DROPOUTS) for layers in cut]
    assert torch.equal(hidden_of(parts, range(3), KEYS), hidden_of(whole, range(3), KEYS))
    expected = gradients_of(whole)
    found = gradients_of(parts)  # the tied embedding's gradient is the sum of its two copies'
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize("dropouts", [{"attention_dropout": 0.3}, {"hidden_dropout": 0.3}, DROPOUTS])
def test_a_sample_draws_the_same_wherever_it_stands_in_whatever_batch(
    dropouts: dict[str, float], isolated: bool
) -> None:
    parts = [model_of(**dropouts)]
    together = hidden_of(parts, [0, 1, 2], KEYS, isolated)
    for rows in ([0], [1], [2], [2, 0], [1, 2, 0]):
        apart = hidden_of(parts, rows, [KEYS[row] for row in rows], isolated)
        torch.testing.assert_close(apart, together[rows], atol=1e-5, rtol=1e-5)


def test_dropout_follows_the_key_and_leaves_the_default_generator_alone() -> None:
    parts, rows = [model_of(**DROPOUTS)], [0, 0]
    state = torch.get_rng_state()
    twice = hidden_of(parts, rows, [7, 7])
    apart = hidden_of(parts, rows, [7, 8])
    assert torch.equal(state, torch.get_rng_state())
    torch.testing.assert_close(twice[0], twice[1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(apart[0], apart[1], atol=1e-2)


def test_without_keys_nothing_is_dropped() -> None:
    assert torch.equal(hidden_of([model_of(**DROPOUTS)], range(3), None), hidden_of([model_of()], range(3), None))


def test_every_layers_rows_are_counted() -> None:
    model = model_of()
    context = token_context(model.config, torch.arange(8).expand(3, -1), torch.float32)
    load_LE = model(IDS, context).stats.load_E
    assert load_LE.shape == (3, SHAPE.experts)
    assert load_LE.sum(dim=1).tolist() == [3 * 8 * SHAPE.chosen] * 3

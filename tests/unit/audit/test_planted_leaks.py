"""Leaks planted in one layer of three, each named by its layer and part."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron_yuan.audit import Report, audit_causality
from megatron_yuan.data import batch as batches
from megatron_yuan.inference.model import LanguageModel
from megatron_yuan.model import context as contexts
from megatron_yuan.model.attention import LocalizedFilteringAttention
from megatron_yuan.model.layer import YuanLayer
from megatron_yuan.model.moe import layer as moe_layer
from megatron_yuan.model.moe.layer import MoELayer
from tests.unit.audit.test_causality import LENGTH, model_of


def audit(model: LanguageModel, length: int = LENGTH) -> Report:
    return audit_causality(model, [length], experts=["grouped"])


def plant(model: LanguageModel, path: str, method: str, change: Callable[[Any], Any]) -> None:
    """Put `change(the method)` in the place of a method."""
    owner = model.get_submodule(path)
    setattr(owner, method, change(getattr(owner, method)))


def ahead(x: Tensor) -> Tensor:
    """Each position has what belongs to the next."""
    return torch.cat((x[:, 1:], x[:, -1:]), dim=1)


def test_the_published_routers_heads_that_are_not_the_sequence_length() -> None:
    """[S, B, E] is taken for [E, B, heads, S / heads]: where heads are not S, neighbours share a head."""
    model, heads = model_of(), 4
    router = model.layers["1"].moe.router  # type: ignore[union-attr]

    def logits(x_TH: Tensor) -> Tensor:
        q, k, v = (
            each.view(-1, LENGTH, router.num_experts)
            .permute(2, 0, 1)
            .reshape(router.num_experts, -1, heads, LENGTH // heads)
            .permute(1, 2, 0, 3)
            for each in F.linear(x_TH, router.weight).float().chunk(3, dim=-1)
        )
        mixed = torch.softmax(q @ k.transpose(-1, -2), dim=-1) @ v
        return mixed.permute(2, 0, 1, 3).reshape(router.num_experts, -1, LENGTH).permute(1, 2, 0).flatten(0, 1)

    router.logits = logits
    report = audit(model)
    assert report.first is not None and report.first.name == "layer 1, router scores"
    assert {leak.layer for leak in report.leaks} == {1}  # what follows it leaks nothing by itself
    assert "LEAK. It starts in layer 1, router scores (values): changing token" in report.text()


def test_a_filter_that_looks_one_token_ahead() -> None:
    model = model_of()
    plant(model, "layers.1.attention.filter", "forward", lambda f: lambda u, *rest: f(ahead(u), *rest))
    report = audit(model)
    assert {leak.name for leak in report.leaks} == {"layer 1, localized filter"}
    assert {leak.aspect for leak in report.leaks} == {"values", "gradient"}


@pytest.mark.parametrize("heads", [1, 2])
def test_attention_without_its_mask_in_a_layer_or_in_one_head_of_it(heads: int) -> None:
    model = model_of()

    def attend(q: Tensor, k: Tensor, v: Tensor, *_rest: object) -> Tensor:
        unmasked = F.scaled_dot_product_attention(q[:, :heads], k[:, :heads], v[:, :heads])
        masked = F.scaled_dot_product_attention(q[:, heads:], k[:, heads:], v[:, heads:], is_causal=True)
        return torch.cat((unmasked, masked), dim=1)

    plant(model, "layers.1.attention", "_attend", lambda _: attend)
    assert {leak.name for leak in audit(model).leaks} == {"layer 1, attention"}


def test_a_filter_whose_state_crosses_the_end_of_a_document() -> None:
    model = model_of()
    plant(model, "layers.1.attention.filter", "forward", lambda f: lambda u, state, _starts: f(u, state, None))
    report = audit(model)
    assert {leak.name for leak in report.leaks} == {"layer 1, localized filter"}
    assert "documents apart" in report.text()


def test_attention_that_crosses_the_end_of_a_document() -> None:
    model = model_of()
    attention = model.layers["1"].attention  # type: ignore[union-attr]
    assert isinstance(attention, LocalizedFilteringAttention)

    def as_one_row(q: Tensor, k: Tensor, v: Tensor, _documents: object, keys: Any) -> Tensor:
        return attention._attend(q, k, v, keys)

    plant(model, "layers.1.attention", "_attend_documents", lambda _: as_one_row)
    assert {leak.name for leak in audit(model).leaks} == {"layer 1, attention"}


class _MixedBackward(torch.autograd.Function):
    """The identity, whose gradient runs along `axis`."""

    @staticmethod
    def forward(ctx, x: Tensor, axis: int) -> Tensor:
        ctx.axis = axis
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad + 0.1 * grad.roll(1, ctx.axis), None


@pytest.mark.parametrize(
    ("path", "method", "axis", "name"),
    [
        ("layers.1.attention.filter.norm", "forward", 1, "layer 1, localized filter"),
        ("layers.1.attention", "forward", 1, "layer 1, attention"),
        ("layers.1.moe_norm", "forward", 1, "layer 1, norm before experts"),
        ("layers.1.moe.router", "logits", 0, "layer 1, router scores"),
        ("layers.1.moe.experts", "forward", 0, "layer 1, experts"),
        ("layers.1.moe", "mix", 0, "layer 1, combine"),
        ("final_norm", "forward", 1, "final norm"),
    ],
)
def test_a_leak_in_the_gradient_alone(path: str, method: str, axis: int, name: str) -> None:
    model = model_of()
    plant(model, path, method, lambda f: lambda *args: _MixedBackward.apply(f(*args), axis))
    report = audit(model)
    assert {(leak.name, leak.aspect) for leak in report.leaks} == {(name, "gradient")}


def test_a_norm_over_the_sequence() -> None:
    model = model_of()
    plant(model, "layers.1.input_norm", "forward", lambda _: lambda x: F.layer_norm(x, x.shape[1:]))
    assert {leak.name for leak in audit(model).leaks} == {"layer 1, norm before attention"}


def test_batch_statistics_in_the_router() -> None:
    model = model_of(moe_router="softmax")
    plant(model, "layers.1.moe.router", "logits", lambda f: lambda x: f(x) - f(x).mean(dim=0))
    assert {leak.name for leak in audit(model).leaks} == {"layer 1, router scores"}


def test_decisions_that_depend_on_the_batch() -> None:
    model = model_of()
    plant(model, "layers.1.moe.router", "choose", lambda f: lambda logits: f(logits - logits.amax(dim=0)))
    assert {leak.name for leak in audit(model).leaks} == {"layer 1, router decisions"}


@pytest.mark.parametrize(("field", "part"), [("token_R", "dispatch"), ("pair_R", "dispatch"), ("row_R", "combine")])
def test_a_permutation_off_by_one(field: str, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = moe_layer.plan_dispatch

    def wrong(*args: Any) -> Any:
        dispatch = right(*args)
        return dispatch._replace(**{field: getattr(dispatch, field).roll(1)})

    monkeypatch.setattr(moe_layer, "plan_dispatch", wrong)
    first = audit(model_of()).first
    assert first is not None and first.name == f"layer 0, {part}"


def test_a_residual_from_the_next_token() -> None:
    model = model_of()
    layer = model.layers["1"]
    assert isinstance(layer, YuanLayer)

    def leaky(forward: Callable[..., Any]) -> Callable[..., Any]:
        def leaking(x: Tensor, *rest: Any) -> Any:
            y, stats = forward(x, *rest)
            return y + 0.1 * ahead(x), stats

        return leaking

    plant(model, "layers.1", "forward", leaky)
    first = audit(model).first
    assert first is not None and first.name == "layer 1, residual after experts"


def test_rotary_positions_that_depend_on_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    right = contexts.rotary_tables

    def by_row(ids_BS: Tensor, *rest: Any) -> Any:
        return right(ids_BS + torch.arange(len(ids_BS)).unsqueeze(1), *rest)

    monkeypatch.setattr(contexts, "rotary_tables", by_row)
    assert {leak.name for leak in audit(model_of()).leaks} == {"positions and documents"}


def test_dropout_keyed_by_the_place_in_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron_yuan.model import layer as layers

    right = layers.dropout
    monkeypatch.setattr(layers, "dropout", lambda x, p, keys, *site: right(x, p, keys and range(len(keys)), *site))
    first = audit(model_of()).first
    assert first is not None and first.name == "layer 0, residual after attention" and "training" in first.told


def test_a_head_that_shifts() -> None:
    model = model_of()
    plant(model, "", "logits", lambda f: lambda hidden: f(ahead(hidden)))
    assert {leak.name for leak in audit(model).leaks} == {"head"}


def test_labels_that_are_the_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    right = batches.make_batch

    def wrong(*args: Any) -> batches.Batch:
        batch = right(*args)
        return dataclasses.replace(batch, labels=batch.tokens)

    monkeypatch.setattr(batches, "make_batch", wrong)
    assert {leak.name for leak in audit(model_of()).leaks} == {"loss"}


class _Wrapped(nn.Module):
    """A module of which the audit knows nothing."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, *rest: Any) -> Any:
        y = self.inner(x, *rest)
        return y + 0.1 * y.flip(1)


def test_a_leak_in_an_unknown_module() -> None:
    model = model_of()
    model.layers["1"].attention = _Wrapped(model.layers["1"].attention)  # type: ignore[union-attr]
    assert {leak.name for leak in audit(model).leaks} == {"layer 1, attention"}


def test_two_leaks_are_both_named_the_earlier_first() -> None:
    model = model_of()
    plant(model, "layers.2.moe_norm", "forward", lambda f: lambda x: f(ahead(x)))
    plant(model, "layers.1.attention.filter", "forward", lambda f: lambda u, *rest: f(ahead(u), *rest))
    report = audit(model)
    assert report.first is not None and report.first.name == "layer 1, localized filter"
    assert "Also, each given clean inputs: layer 2, norm before experts." in report.text()


def test_a_part_that_takes_only_some_lengths_is_told_and_hides_nothing_at_others() -> None:
    model = model_of(num_layers=1)
    plant(model, "layers.0.moe_norm", "forward", lambda f: lambda x: f(ahead(x.view(3, 8, 24))))
    report = audit_causality(model, [7, 8], experts=["grouped"])
    assert report.failures and report.first is not None and report.first.name == "layer 0, norm before experts"
    assert "DOES NOT RUN: 7 tokens a row" in report.text()


def test_experts_that_are_fused_into_their_layer_are_no_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that never calls its experts as a module: their rounding comes out of the layer."""
    right = MoELayer.mix

    def fused(self: MoELayer, x_TH: Tensor, routing: Any) -> Tensor:
        experts = self.experts
        unseen = type("Unseen", (), {"__call__": lambda _, *args: experts.forward(*args)})()
        self.__dict__["experts"] = unseen
        try:
            return right(self, x_TH, routing)
        finally:
            del self.__dict__["experts"]

    monkeypatch.setattr(MoELayer, "mix", fused)
    report = audit(model_of(num_layers=2))
    assert report.clean, report.text()


def test_a_leak_at_one_position_alone() -> None:
    """As at the border of a tile."""

    def halo(forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(u_BSH: Tensor, *rest: Any) -> Any:
            y_BSH, state = forward(u_BSH, *rest)
            border_S1 = (torch.arange(y_BSH.shape[1]) == 4).unsqueeze(1)
            return y_BSH + 0.1 * border_S1 * ahead(y_BSH), state

        return call

    model = model_of()
    plant(model, "layers.1.attention.filter", "forward", halo)
    report = audit(model, 11)
    assert {leak.name for leak in report.leaks} == {"layer 1, localized filter"}


def test_a_leak_in_training_mode_alone() -> None:
    model = model_of()
    router = model.layers["1"].moe.router  # type: ignore[union-attr]
    logits = router.logits
    router.logits = lambda x_TH: logits(x_TH) - (logits(x_TH).mean(dim=0) if router.training else 0.0)
    report = audit(model)
    assert report.first is not None and report.first.name == "layer 1, router scores"
    assert not any(module.training for module in model.modules())


def test_a_leak_where_balance_losses_are_made() -> None:
    def mixed(forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(x_BSH: Tensor, context: contexts.TokenContext) -> Any:
            y_BSH, stats = forward(x_BSH, context)
            return y_BSH if context.balance is None else y_BSH + 0.1 * ahead(y_BSH), stats

        return call

    model = model_of()
    plant(model, "layers.1.moe", "forward", mixed)
    report = audit(model)
    assert report.first is not None and report.first.layer == 1


def test_a_model_that_looks_ahead_as_a_whole_is_not_taken_for_one_of_tipped_choices() -> None:
    model = model_of()
    forward = model.forward
    model.forward = lambda ids_BS, *rest: forward(ids_BS.flip(1), *rest)
    report = audit(model)
    assert {leak.name for leak in report.leaks} == {"whole model"} and report.tipped == 0

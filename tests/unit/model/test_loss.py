from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_yuan.model import loss
from megatron_yuan.model.loss import linear_cross_entropy

T, H, V = 13, 8, 21
MASKS = {
    "all": torch.ones(T),
    "none": torch.zeros(T),
    "every third": (torch.arange(T) % 3 == 0).float(),
    "true or false": torch.arange(T) > 4,
    "weights": torch.linspace(0, 2, T),
}


def inputs(scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    hidden, weight = (scale * torch.randn(n, H, generator=random) for n in (T, V))
    return hidden.requires_grad_(), weight.requires_grad_(), torch.randint(V, (T,), generator=random)


@pytest.mark.parametrize("chunk", [1, 4, 12, 13, 100])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_any_chunks_give_torchs_masked_cross_entropy_and_its_gradients(
    mask: Tensor, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(loss.CHUNK_TOKENS, "cpu", chunk)
    hidden, weight, labels = inputs()
    expected = (F.cross_entropy(hidden @ weight.T, labels, reduction="none") * mask).sum()
    expected_grads = torch.autograd.grad(0.3 * expected, (hidden, weight))
    found, each_T = linear_cross_entropy(hidden, weight, labels, mask)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(each_T, F.cross_entropy(hidden @ weight.T, labels, reduction="none") * mask)
    for a, b in zip(torch.autograd.grad(0.3 * found, (hidden, weight)), expected_grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_without_gradients_the_sum_is_the_same_and_nothing_is_kept() -> None:
    hidden, weight, labels = inputs()
    expected = linear_cross_entropy(hidden, weight, labels, MASKS["all"])[0]
    with torch.no_grad():
        found = linear_cross_entropy(hidden, weight, labels, MASKS["all"])[0]
    assert torch.equal(found, expected) and found.grad_fn is None


def test_extreme_scores_stay_finite() -> None:
    hidden, weight, labels = inputs(scale=200.0)
    found = linear_cross_entropy(hidden, weight, labels, MASKS["all"])[0]
    torch.testing.assert_close(found, F.cross_entropy(hidden @ weight.T, labels, reduction="sum"))
    assert all(each.isfinite().all() for each in torch.autograd.grad(found, (hidden, weight)))


def test_bfloat16_is_summed_in_float32_and_gradients_keep_their_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loss.CHUNK_TOKENS, "cpu", 2)
    hidden, weight, labels = inputs()
    exact = linear_cross_entropy(hidden, weight, labels, MASKS["all"])[0]
    exact_grads = torch.autograd.grad(exact, (hidden, weight))
    low = [each.detach().bfloat16().requires_grad_() for each in (hidden, weight)]
    found = linear_cross_entropy(*low, labels, MASKS["all"])[0]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=0.02, atol=0)
    for a, b in zip(torch.autograd.grad(found, low), exact_grads, strict=True):
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a.float(), b, rtol=0.05, atol=0.1)

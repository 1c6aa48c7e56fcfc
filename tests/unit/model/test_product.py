"""Products and norms give in inference what they give in training, whatever the processor has."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from megatron_yuan.model import product as products
from megatron_yuan.model.norm import CHUNK_ELEMENTS, RMSNorm
from megatron_yuan.model.product import Linear, product

STEPS = {torch.float32: 1e-5, torch.bfloat16: 0.02}
NORM_STEPS = {**STEPS, torch.float64: 1e-14}


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize("tiles", [True, False])
@pytest.mark.parametrize("dtype", STEPS)
@pytest.mark.parametrize("shape", [(48,), (1, 48), (1, 1, 48), (5, 48), (2, 3, 48), (0, 48)])
def test_a_product_is_the_linear_function(shape, dtype, tiles, monkeypatch):
    monkeypatch.setattr(products, "_has_tiles", lambda: tiles)
    x, weight = random(*shape, dtype=dtype), random(32, 48, dtype=dtype)
    expected = F.linear(x.double(), weight.double()).to(dtype)
    assert torch.equal(product(x, weight), F.linear(x, weight))  # in training, to the bit
    with torch.inference_mode():
        torch.testing.assert_close(product(x, weight), expected, atol=STEPS[dtype], rtol=STEPS[dtype])
        torch.testing.assert_close(product(x, weight[8:16]), expected[..., 8:16], atol=STEPS[dtype], rtol=STEPS[dtype])


def test_one_row_under_autocast_is_as_before(monkeypatch):
    monkeypatch.setattr(products, "_has_tiles", lambda: True)
    x, weight = random(1, 48), random(32, 48)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(product(x.bfloat16(), weight), F.linear(x.bfloat16(), weight))


def test_the_linear_module_has_a_weight_and_no_bias_and_learns():
    linear = Linear(48, 32)
    assert {name: tuple(p.shape) for name, p in linear.named_parameters()} == {"weight": (32, 48)}
    linear(random(1, 48)).sum().backward()
    assert linear.weight.grad is not None and linear.weight.grad.any()


@pytest.mark.parametrize("dtype", NORM_STEPS)
@pytest.mark.parametrize("rows", [1, 3, CHUNK_ELEMENTS // 48, 2 * CHUNK_ELEMENTS // 48 + 7])
def test_rows_in_chunks_are_normed_as_all_at_once(rows, dtype):
    norm = RMSNorm(48, 1e-6)
    norm.weight.data = random(48)
    norm.to(dtype)
    x = 30 * random(1, rows, 48, dtype=dtype)
    step, kept = NORM_STEPS[dtype], x.clone()
    expected = norm(x).detach()
    with torch.inference_mode():
        torch.testing.assert_close(norm(x), expected, atol=step, rtol=step)
        torch.testing.assert_close(norm(x.expand(2, -1, -1))[1:], expected, atol=step, rtol=step)
    assert torch.equal(x, kept)

"""Triton kernels against torch's forms: under Triton's interpreter on a CPU, compiled where there is a GPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
ON_GPU = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
runs_kernels = pytest.mark.skipif(not (ON_GPU or INTERPRETED), reason="needs a GPU, or TRITON_INTERPRET=1")


@pytest.mark.skipif(ON_GPU or INTERPRETED, reason="the tests below run by themselves")
def test_the_kernels_hold_under_the_interpreter() -> None:
    """The interpreter is chosen when triton is first imported, so it gets a process of its own."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-3000:]
    assert "passed" in run.stdout


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


@runs_kernels
@pytest.mark.parametrize("experts", [1, 2, 5, 8, 32, 33])
@pytest.mark.parametrize("tokens", [1, 7, 66])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_expert_attention_is_torchs_forward_and_backward(tokens: int, experts: int, dtype: torch.dtype) -> None:
    from megatron_yuan.model.moe.kernels import expert_attention as kernel
    from megatron_yuan.model.moe.routers.attention import expert_attention

    values, upstream = normal(tokens, 3 * experts, dtype=dtype) * 2, normal(tokens, experts, seed=1)
    fused, plain = values.clone().requires_grad_(), values.clone().requires_grad_()
    found, expected = kernel.expert_attention(fused), expert_attention(*plain.float().chunk(3, dim=-1))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    found.backward(upstream)
    expected.backward(upstream)
    assert fused.grad is not None and fused.grad.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(fused.grad, plain.grad, atol=tolerance, rtol=tolerance)


@runs_kernels
def test_extreme_scores_stay_finite_and_within_the_values() -> None:
    from megatron_yuan.model.moe.kernels import expert_attention as kernel

    q, k = torch.tensor([3e18, -3e18, 1.0, 0.0]), torch.tensor([1e18, 1e18, -1e18, 1.0])
    qkv = torch.cat((q, k, torch.tensor([1.0, -2.0, 3.0, 4.0]))).unsqueeze(0).to(DEVICE).requires_grad_()
    scores = kernel.expert_attention(qkv)
    assert scores.isfinite().all() and (scores >= -2).all() and (scores <= 4).all()
    scores.sum().backward()
    assert qkv.grad is not None and qkv.grad.isfinite().all()


@runs_kernels
@pytest.mark.parametrize(("rows", "ffn"), [(0, 8), (1, 1), (3, 24), (5, 1024), (2, 1500)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swiglu_is_torchs_forward_and_backward(rows: int, ffn: int, dtype: torch.dtype) -> None:
    from megatron_yuan.model.moe.kernels import swiglu

    h, p, g = (
        normal(rows, 2 * ffn, dtype=dtype) * 3,
        normal(rows, dtype=dtype, seed=1),
        normal(rows, ffn, dtype=dtype, seed=2),
    )
    leaves = h.float().requires_grad_(), p.float().requires_grad_()
    gate, up = leaves[0].chunk(2, dim=-1)
    expected = torch.nn.functional.silu(gate) * up * leaves[1].unsqueeze(1)
    expected.backward(g.float())
    a, grad_h, grad_p = swiglu.activation_backward(g, h, p)
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 2e-2, "rtol": 2e-2}
    for found, exact in (
        (swiglu.activation(h, p), expected),
        (a, expected),
        (grad_h, leaves[0].grad),
        (grad_p, leaves[1].grad),
    ):
        assert exact is not None and found.dtype == dtype
        if exact is leaves[1].grad and dtype == torch.bfloat16:
            tolerance = {"atol": 0.3, "rtol": 2e-2}  # a sum over the row
        torch.testing.assert_close(found.float(), exact, **tolerance)


@pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
def test_on_a_gpu_the_router_takes_the_kernel_and_keeps_no_matrix() -> None:
    from megatron_yuan.config.schema import ModelConfig
    from megatron_yuan.model.moe.routers import build_router

    router = build_router(ModelConfig(hidden_size=64, num_experts=32), 0).to(DEVICE)
    torch.nn.init.normal_(router.weight)
    x = normal(8192, 64).requires_grad_()
    before = torch.cuda.memory_allocated()
    scores = router.logits(x)
    assert scores.grad_fn is not None and "kernels" in type(scores.grad_fn)._forward_cls.__module__  # type: ignore[attr-defined]
    assert torch.cuda.memory_allocated() - before < 8192 * 32 * 32 * 4 / 4


def test_on_a_cpu_torchs_forms_are_taken() -> None:
    from megatron_yuan.model.moe.kernels import usable

    assert not usable(torch.zeros(1))


def test_the_switch_turns_kernels_off(monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron_yuan.model.moe import kernels

    kernels._wanted_and_there.cache_clear()
    monkeypatch.setenv("MEGATRON_YUAN_KERNELS", "torch")
    assert not kernels._wanted_and_there()
    kernels._wanted_and_there.cache_clear()

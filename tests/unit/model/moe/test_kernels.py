"""Triton kernels against torch's forms: under Triton's interpreter on a CPU, compiled where there is a GPU."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from megatron_yuan.config.schema import ModelConfig
from megatron_yuan.errors import ConfigError
from megatron_yuan.model.moe import grouped_swiglu, kernels
from megatron_yuan.model.moe.routers import build_router
from megatron_yuan.model.moe.routers.attention import expert_attention

ON_GPU = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
HAS_TRITON = importlib.util.find_spec("triton") is not None
with_triton = pytest.mark.skipif(not HAS_TRITON, reason="needs triton")
runs_kernels = pytest.mark.skipif(
    not (HAS_TRITON and (ON_GPU or INTERPRETED)), reason="needs triton, and a GPU or TRITON_INTERPRET=1"
)
on_gpu = pytest.mark.skipif(not (HAS_TRITON and ON_GPU), reason="needs triton and a GPU")
TYPES = [torch.float32, torch.bfloat16]
# Both forms are float32 inside, so in bfloat16 they differ by a rounding of the result.
TOLERANCE = {torch.float32: {"atol": 1e-5, "rtol": 1e-5}, torch.bfloat16: {"atol": 1e-5, "rtol": 2**-7}}


@with_triton
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
@pytest.mark.parametrize(
    ("tokens", "experts"), [*((t, e) for t in (0, 1, 7, 130) for e in (1, 2, 5, 8, 32, 33)), (3, 64), (2, 128)]
)
@pytest.mark.parametrize("dtype", TYPES)
def test_expert_attention_is_torchs_forward_and_backward(tokens: int, experts: int, dtype: torch.dtype) -> None:
    from megatron_yuan.model.moe.kernels import expert_attention as kernel

    values, upstream = normal(tokens, 3 * experts, dtype=dtype) * 2, normal(tokens, experts, seed=1)
    fused, plain = values.clone().requires_grad_(), values.clone().requires_grad_()
    found, expected = kernel.expert_attention(fused), expert_attention(*plain.float().chunk(3, dim=-1))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=2e-6)
    found.backward(upstream)
    expected.backward(upstream)
    assert fused.grad is not None and fused.grad.dtype == dtype
    torch.testing.assert_close(fused.grad, plain.grad, **TOLERANCE[dtype])


@runs_kernels
def test_expert_attention_is_the_formula_in_double_precision() -> None:
    from megatron_yuan.model.moe.kernels import expert_attention as kernel

    values, upstream = normal(9, 24), normal(9, 8, seed=1)
    fused, exact = values.clone().requires_grad_(), values.double().requires_grad_()
    q, k, v = exact.chunk(3, dim=-1)
    expected = ((q.unsqueeze(2) * k.unsqueeze(1)).softmax(dim=-1) * v.unsqueeze(1)).sum(dim=-1)
    found = kernel.expert_attention(fused)
    found.backward(upstream)
    expected.backward(upstream.double())
    assert fused.grad is not None and exact.grad is not None
    torch.testing.assert_close(found.double(), expected, atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(fused.grad.double(), exact.grad, atol=1e-5, rtol=1e-5)


@runs_kernels
def test_extreme_scores_stay_finite_and_within_the_values() -> None:
    from megatron_yuan.model.moe.kernels import expert_attention as kernel

    big = torch.tensor([[3e18, -3e18, 1.0, 0.0], [1e18, 1e18, 1e18, 1e18], [1.7e9, -1.1e9, 1.3e9, 3.0]])
    v = torch.tensor([1.0, -2.0, 3.0, 4.0]).expand(3, 4)
    qkv = torch.cat((big, big.flip(1), v), dim=1).to(DEVICE)
    qkv[2, :8] /= 1.0000001  # products that float32 must round
    fused, plain = qkv.clone().requires_grad_(), qkv.clone().requires_grad_()
    found, expected = kernel.expert_attention(fused), expert_attention(*plain.chunk(3, dim=-1))
    assert found.isfinite().all() and (found >= -2).all() and (found <= 4).all()
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    expected.sum().backward()
    assert fused.grad is not None and fused.grad.isfinite().all()
    torch.testing.assert_close(fused.grad, plain.grad)


@runs_kernels
def test_a_tokens_scores_do_not_change_by_a_bit_when_its_neighbours_change() -> None:
    from megatron_yuan.model.moe.kernels import expert_attention as kernel

    values = normal(9, 15)
    for t in range(9):
        others = normal(9, 15, seed=t + 1) * 50
        others[t] = values[t]
        assert torch.equal(kernel.expert_attention(others)[t], kernel.expert_attention(values)[t])


@runs_kernels
@pytest.mark.parametrize(("rows", "ffn"), [(0, 8), (1, 1), (3, 24), (5, 1024), (2, 1500)])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("scale", [3.0, 100.0])
def test_swiglu_is_the_formula_forward_and_backward(rows: int, ffn: int, dtype: torch.dtype, scale: float) -> None:
    from megatron_yuan.model.moe.kernels import swiglu

    h = normal(rows, 2 * ffn, dtype=dtype) * scale
    p, g = normal(rows, dtype=dtype, seed=1), normal(rows, ffn, dtype=dtype, seed=2)
    h_exact, p_exact = h.double().requires_grad_(), p.double().requires_grad_()
    gate, up = h_exact.chunk(2, dim=-1)
    expected = torch.nn.functional.silu(gate) * up * p_exact.unsqueeze(1)
    expected.backward(g.double())
    a, grad_h, grad_p = swiglu.activation_backward(g, h, p)
    assert torch.equal(a, swiglu.activation(h, p))
    assert h_exact.grad is not None and p_exact.grad is not None
    assert a.dtype == grad_h.dtype == grad_p.dtype == dtype
    # The sum over a row may cancel, so what it may be off by goes by the size of its terms.
    terms = (g.double() * expected / p_exact.unsqueeze(1)).abs().sum(dim=1)
    assert ((grad_p.double() - p_exact.grad).abs() <= 1e-6 * terms + p_exact.grad.abs() * 2**-7).all()
    torch.testing.assert_close(a.double(), expected.detach(), **TOLERANCE[dtype])
    torch.testing.assert_close(grad_h.double(), h_exact.grad, **TOLERANCE[dtype])


@runs_kernels
@pytest.mark.parametrize("dtype", TYPES)
def test_swiglu_is_torchs_form(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron_yuan.model.moe.kernels import swiglu

    h, p, g = normal(7, 48, dtype=dtype), normal(7, dtype=dtype, seed=1), normal(7, 24, dtype=dtype, seed=2)
    found = swiglu.activation(h, p), *swiglu.activation_backward(g, h, p)
    monkeypatch.setattr(grouped_swiglu, "kernel_for", lambda name, x: None)
    expected = grouped_swiglu.activation(h, p), *grouped_swiglu.activation_backward(g, h, p)
    # torch's form rounds between its operations.
    tolerance = TOLERANCE[dtype] if dtype == torch.float32 else {"atol": 0.1, "rtol": 0.05}
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, **tolerance)


@runs_kernels
def test_rows_that_do_not_lie_one_after_another_are_taken_too() -> None:
    from megatron_yuan.model.moe.kernels import expert_attention as kernel
    from megatron_yuan.model.moe.kernels import swiglu

    wide = normal(5, 24)
    torch.testing.assert_close(kernel.expert_attention(wide[:, :12]), kernel.expert_attention(wide[:, :12].clone()))
    one = torch.ones((), device=DEVICE)
    parts = one.expand(5, 6), wide[:, :12], one.expand(5)
    for found, expected in zip(
        swiglu.activation_backward(*parts), swiglu.activation_backward(*(x.clone() for x in parts)), strict=True
    ):
        assert torch.equal(found, expected)


@with_triton
@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", ["expert_attention", "swiglu"])
def test_the_kernels_compile_for_gpus_that_are_not_at_hand(name: str, capability: int) -> None:
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module = importlib.import_module(f"megatron_yuan.model.moe.kernels.{name}")
    sizes, options = ({"T": "i32", "E": "i32"}, dict(module._launch(8, 32)[1])) if name == "expert_attention" else (
        {"F": "i32"}, dict(module._options(1024)))  # fmt: skip
    blocks = {key: options.pop(key) for key in ("Z", "X") if key in options}
    in_float32 = {"p_of", "g_of", "out"}
    for kernel in (module._forward, module._backward):
        types = {arg: "*fp32" if arg in in_float32 else "*bf16" for arg in kernel.arg_names}
        source = ASTSource(
            fn=kernel,
            signature={**types, **sizes, **dict.fromkeys(blocks, "constexpr")},
            constexprs={(kernel.arg_names.index(key),): value for key, value in blocks.items()},
        )
        compiled = compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        assert compiled.asm["cubin"]
        # A score fused into the subtraction of the maximum would be rounded otherwise than the maximum was.
        assert "fma.rn" not in compiled.asm["ptx"]


@on_gpu
@pytest.mark.gpu
def test_on_a_gpu_the_router_takes_the_kernel_and_makes_no_matrix() -> None:
    T, E = 8192, 32
    router = build_router(ModelConfig(hidden_size=64, num_experts=E), 0).to(DEVICE)
    torch.nn.init.normal_(router.weight)
    x = normal(T, 64).requires_grad_()
    router.logits(x).sum().backward()  # the first time compiles
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    scores = router.logits(x)
    assert scores.grad_fn is not None and "kernels" in type(scores.grad_fn)._forward_cls.__module__  # type: ignore[attr-defined]
    assert torch.cuda.memory_allocated() - before < T * E * E * 4 / 4
    scores.sum().backward()
    assert torch.cuda.max_memory_allocated() - before < T * E * E * 4 / 2


@pytest.mark.skipif(INTERPRETED, reason="not the interpreter's")
def test_on_a_cpu_torchs_forms_are_taken_and_triton_is_not_even_imported() -> None:
    assert kernels.kernel_for("swiglu", torch.zeros(1, 2)) is None
    code = "import megatron_yuan.model.moe.layer, sys; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the kernels' choice says, with nothing remembered from before or after."""
    lines: list[str] = []

    def take(level: int, message: str, *values: object) -> None:
        lines.append(f"{logging.getLevelName(level)} {message % values}")

    monkeypatch.setattr(kernels.logger, "info", lambda *args: take(logging.INFO, *args))
    monkeypatch.setattr(kernels.logger, "warning", lambda *args: take(logging.WARNING, *args))
    caches = kernels._load, kernels._say_unused
    for each in caches:
        each.cache_clear()
    yield lines
    for each in caches:
        each.cache_clear()


def cuda_tensor(columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """What the choice looks at of a tensor on CUDA."""
    return cast(Tensor, SimpleNamespace(is_cuda=True, device=DEVICE, shape=(4, columns), dtype=dtype))


def test_the_switch_turns_kernels_off_and_that_is_said_once(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    monkeypatch.setenv("MEGATRON_YUAN_KERNELS", "torch")
    assert [kernels.kernel_for("swiglu", cuda_tensor(4)) for _ in range(3)] == [None] * 3
    assert said == ["INFO kernel swiglu not used: MEGATRON_YUAN_KERNELS=torch"]


def test_a_misspelled_switch_is_refused(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    monkeypatch.setenv("MEGATRON_YUAN_KERNELS", "troch")
    with pytest.raises(ConfigError, match="MEGATRON_YUAN_KERNELS=troch: only 'torch'"):
        kernels.kernel_for("swiglu", cuda_tensor(4))


def test_without_triton_torchs_form_is_taken_and_that_is_said_once(
    monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    assert [kernels.kernel_for("swiglu", cuda_tensor(4)) for _ in range(3)] == [None] * 3
    assert said == ["INFO kernel swiglu not used: triton is not installed"]


def test_a_triton_that_does_not_work_is_warned_of_once(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    def fail(device: torch.device) -> None:
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(kernels, "find_spec", lambda name: object())
    monkeypatch.setattr(kernels, "import_module", lambda name: SimpleNamespace(trial=fail))
    assert [kernels.kernel_for("swiglu", cuda_tensor(4)) for _ in range(3)] == [None] * 3
    assert said == [f"WARNING kernel swiglu not used on {DEVICE}: RuntimeError: no C compiler"]


@with_triton
def test_what_a_kernel_cannot_take_goes_to_torchs_form_and_that_is_said_once(
    monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    from megatron_yuan.model.moe.kernels import expert_attention as kernel

    monkeypatch.setattr(kernel, "trial", lambda device: None)
    for _ in range(3):
        assert kernels.kernel_for("expert_attention", cuda_tensor(3 * 129)) is None
        assert kernels.kernel_for("expert_attention", cuda_tensor(3 * 8, torch.float64)) is None
    assert kernels.kernel_for("expert_attention", cuda_tensor(3 * 128, torch.bfloat16)) is kernel
    beginning = "INFO kernel expert_attention not used: "
    assert said == [beginning + "129 experts, and it takes at most 128", beginning + "torch.float64"]

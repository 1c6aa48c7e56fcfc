from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from megatron_yuan import log
from megatron_yuan.report.peak import Peak
from megatron_yuan.report.result import StepResult
from megatron_yuan.report.throughput import Arithmetic


@pytest.fixture
def arithmetic() -> Arithmetic:
    return Arithmetic(flops_per_token=2e9, peak=Peak(1e13, "given by --peak-tflops"), devices=2)


@pytest.fixture
def make_step() -> Callable[..., StepResult]:
    def make(step: int = 1, **changes) -> StepResult:
        load = [[30, 10, 0, 0], [10, 10, 10, 10]]
        fields = dict(loss=2.5, grad_norm=0.5, lr=1e-4, tokens=1000, seconds=0.5, samples=8 * step)
        return StepResult(**(dict(step=step, expert_load=load, memory_bytes=2**30) | fields | changes))

    return make


@pytest.fixture
def said(capsys) -> Iterator[Callable[[], str]]:
    """Speak as rank 0 on a plain pipe; calling it gives what was said since the last call."""
    log.console.cache_clear()
    log.configure()
    yield lambda: capsys.readouterr().out
    log.console.cache_clear()

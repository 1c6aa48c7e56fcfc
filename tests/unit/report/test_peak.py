from __future__ import annotations

import pytest
import torch

from megatron_yuan.errors import ConfigError
from megatron_yuan.report import peak as peak_module
from megatron_yuan.report.peak import device_peak, known_tflops, measured_peak

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA A10", 125.0),
        ("NVIDIA A1000", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("Tesla K80", None),
    ],
)
def test_gpus_are_known_by_their_whole_names(name, tflops):
    assert known_tflops(name, torch.bfloat16) == tflops


def test_fp32_has_a_peak_of_its_own():
    assert known_tflops("NVIDIA H100 80GB HBM3", torch.float32) == 67.0


def test_the_users_figure_wins():
    assert device_peak(CPU, torch.bfloat16, 12.5).flops == 12.5e12


@pytest.mark.parametrize("figure", [0.0, -1.0, float("nan")])
def test_a_peak_that_is_not_above_zero_is_refused(figure):
    with pytest.raises(ConfigError, match="peak-tflops is"):
        device_peak(CPU, torch.bfloat16, figure)


def test_a_processor_without_bfloat16_arithmetic_says_how_much_slower_it_is(monkeypatch: pytest.MonkeyPatch):
    speeds = {torch.bfloat16: 1e9, torch.float32: 6e10}
    monkeypatch.setattr(peak_module, "_fastest_gemm", lambda device, dtype, seconds: (speeds[dtype], dtype, 256))
    assert measured_peak(CPU, torch.bfloat16).slowdown == 60.0
    assert measured_peak(CPU, torch.float32).slowdown == 1.0


def test_a_cpu_is_measured_and_says_how():
    peak = measured_peak(CPU, torch.float32, seconds=0.05)
    assert peak.flops > 1e8
    assert "measured GEMM" in peak.source
    assert "float32" in peak.source

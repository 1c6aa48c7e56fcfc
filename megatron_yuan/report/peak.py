"""The most arithmetic a device could do in a second: stated by the user, known by the GPU's name, or measured.

MFU divides by it, so it says where it comes from.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

import torch

from megatron_yuan.errors import ConfigError

# Dense TFLOP/s (without sparsity) of one GPU in bfloat16 with fp32 accumulation, and in fp32 without TF32. From the
# vendors' datasheets: NVIDIA H100 (SXM, PCIe, NVL columns), H200 (SXM, NVL), A100, A30, A40, A10, L4, L40, L40S and
# HGX B200 (figures printed "with sparsity" halved); GeForce from the Ada and Ampere GA102 whitepapers; AMD MI300X's.
# The first name that appears as whole words in the device's name counts, so the special stands before the general.
KNOWN_TFLOPS: tuple[tuple[str, float, float], ...] = (
    ("B200", 2250.0, 75.0),
    ("H200 NVL", 835.0, 60.0),
    ("H200", 989.0, 67.0),
    ("H100 PCIe", 756.0, 51.0),
    ("H100 NVL", 835.0, 60.0),
    ("H100", 989.0, 67.0),
    ("H800", 989.0, 67.0),
    ("A100", 312.0, 19.5),
    ("A800", 312.0, 19.5),
    ("A40", 149.7, 37.4),
    ("A30", 165.0, 10.3),
    ("A10", 125.0, 31.2),
    ("L40S", 362.0, 91.6),
    ("L40", 181.0, 90.5),
    ("L4", 121.0, 30.3),
    ("RTX 4090", 165.2, 82.6),
    ("RTX 3090", 71.0, 35.6),
    ("MI300X", 1307.4, 163.4),
)


@dataclass(frozen=True)
class Peak:
    """Peak arithmetic of one device."""

    flops: float
    """FLOP/s."""
    source: str
    """Where the figure comes from, for people."""
    slowdown: float = 1.0
    """Times that float32 is as fast as the dtype of the run here; 1 where nothing was measured."""


def device_peak(device: torch.device, dtype: torch.dtype, peak_tflops: float | None = None) -> Peak:
    """Peak of `device` for a run that computes in `dtype`; `peak_tflops` (--peak-tflops) wins over what is known.

    Without either a GEMM is measured, which takes about a second. Ranks that share a machine's cores should measure at
    the same time: each then sees its own share.
    """
    if peak_tflops is not None:
        if not peak_tflops > 0:
            raise ConfigError(
                f"peak-tflops is {peak_tflops}: give the TFLOP/s of one device, above 0, or leave it out."
            )
        return Peak(peak_tflops * 1e12, "given by --peak-tflops")
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        known = known_tflops(name, dtype)
        if known is not None:
            return Peak(known * 1e12, f"datasheet of {name}, {_name(dtype)} dense")
    return measured_peak(device, dtype)


def known_tflops(device_name: str, dtype: torch.dtype) -> float | None:
    """Datasheet TFLOP/s of the GPU called `device_name`; None for one that is unknown, or a MIG slice of one."""
    if re.search(r"\bMIG\b", device_name):
        return None
    for name, bf16, fp32 in KNOWN_TFLOPS:
        if re.search(rf"\b{re.escape(name)}\b", device_name, re.IGNORECASE):
            return fp32 if dtype == torch.float32 else bf16
    return None


def measured_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.5) -> Peak:
    """The fastest square GEMM seen in about `seconds` a dtype.

    For a reduced `dtype` fp32 is tried as well: on a CPU without bfloat16 instructions it is the faster, and the honest
    peak.
    """
    candidates = [_fastest_gemm(device, d, seconds) for d in dict.fromkeys((dtype, torch.float32))]
    flops, best, size = max(candidates, key=lambda found: found[0])
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return Peak(flops, f"measured GEMM of {size} x {size}, {_name(best)}{threads}", flops / candidates[0][0])


def _fastest_gemm(device: torch.device, dtype: torch.dtype, seconds: float) -> tuple[float, torch.dtype, int]:
    """(FLOP/s, dtype, size). Sizes double while a product is short, so that a slow dtype ends in time too."""
    best, best_size, size = 0.0, 0, 256
    end = time.perf_counter() + seconds
    while True:
        a, b = (torch.ones(size, size, device=device, dtype=dtype) / size for _ in range(2))
        for _ in range(3):
            elapsed = _time_product(a, b)
            flops = 2 * size**3 / elapsed
            if flops > best:
                best, best_size = flops, size
            if time.perf_counter() > end:
                return best, dtype, best_size
        if elapsed < seconds / 24 and size < 8192:
            size *= 2


def _time_product(a: torch.Tensor, b: torch.Tensor) -> float:
    start = time.perf_counter()
    torch.mm(a, b)
    if a.is_cuda:
        torch.cuda.synchronize(a.device)
    return time.perf_counter() - start


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

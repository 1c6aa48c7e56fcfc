"""From tokens a second to TFLOP/s and MFU, with the convention said."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_yuan.report.peak import Peak


@dataclass(frozen=True)
class Arithmetic:
    """What a token costs, and what the devices could do.

    Model FLOPs: forward and backward of the mathematics once; activation recompute does not count as work done.
    """

    flops_per_token: float
    """Forward and backward: 6 x the parameters of the matrices a token meets, and, if counted, causal scores."""
    peak: Peak
    """Of one device."""
    devices: int = 1
    """Number of processes that compute."""
    scores_counted: bool = True
    """Whether `flops_per_token` holds the causal attention scores (q.k and probabilities.v over the tokens seen)."""

    def tflops(self, tokens_per_second: float) -> float:
        """TFLOP/s of one device where all do `tokens_per_second` together."""
        return tokens_per_second * self.flops_per_token / self.devices / 1e12

    def mfu(self, tokens_per_second: float) -> float:
        """Model FLOPs utilisation: the share of the peak that is in use, 1.0 is all."""
        return self.tflops(tokens_per_second) * 1e12 / self.peak.flops

    @property
    def mfu_label(self) -> str:
        """Short name that carries the convention."""
        return "MFU(+attn)" if self.scores_counted else "MFU(-attn)"

    @property
    def convention(self) -> str:
        """The convention in a sentence."""
        scores = "plus causal attention scores" if self.scores_counted else "without attention scores"
        return (
            f"{self.mfu_label}: model FLOPs, 6 x active matrix parameters {scores}, "
            f"{self.flops_per_token / 1e9:.4g} GFLOP a token, over a peak of {self.peak.flops / 1e12:.4g} TFLOP/s "
            f"a device ({self.peak.source}), {self.devices} device{'s' if self.devices > 1 else ''}"
        )

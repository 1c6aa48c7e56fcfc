from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from megatron_yuan.model.rotary import rotary_tables, rotate

POSITIONS = torch.tensor([[0, 1, 2, 255, 256, 257, 1000, 4095]])


def angles(cos: Tensor, sin: Tensor) -> Tensor:
    return torch.atan2(sin, cos)


def test_angles_are_position_times_frequency_each_twice() -> None:
    cos, sin = rotary_tables(POSITIONS, 16, 10_000.0)
    for s, position in enumerate(POSITIONS[0].tolist()):
        for i in range(8):
            angle = position * 10_000.0 ** (-2 * i / 16)
            for channel in (i, i + 8):
                assert abs(cos[0, s, channel].item() - math.cos(angle)) < 5e-4
                assert abs(sin[0, s, channel].item() - math.sin(angle)) < 5e-4


def test_the_context_factor_of_four_is_the_published_base() -> None:
    """10000 x 4^(128/126) = 40890 (M32 paper, section 4.2)."""
    stretched = rotary_tables(POSITIONS, 128, 10_000.0, ntk_factor=4.0)
    named = rotary_tables(POSITIONS, 128, 10_000.0 * 4 ** (128 / 126))
    assert round(10_000.0 * 4 ** (128 / 126)) == 40_890
    assert all(torch.equal(a, b) for a, b in zip(stretched, named, strict=True))


def test_frequencies_alone_are_rounded_as_the_published_training_code_does() -> None:
    """Their bfloat16 error moves the angle at position 256 by about 0.3, and no more than that."""
    exact, rounded = (rotary_tables(POSITIONS, 128, 10_000.0, rounding=each) for each in ("none", "frequencies"))
    frequencies = (1 / 10_000.0 ** (torch.arange(0, 128, 2).float() / 128)).bfloat16().float()
    torch.testing.assert_close(rounded[0][0, 7, :64], (4095 * frequencies).cos())
    apart = torch.remainder(angles(*rounded) - angles(*exact) + math.pi, 2 * math.pi) - math.pi
    assert 0.25 < apart[0, 4].abs().max() < 0.35


def test_everything_is_rounded_as_the_published_hf_code_does() -> None:
    """Positions past 256 are not whole in bfloat16 (257 is 256), and cos and sin are bfloat16 numbers."""
    cos, sin = rotary_tables(POSITIONS, 16, 10_000.0, rounding="all")
    assert torch.equal(cos[:, 4], cos[:, 5]) and torch.equal(sin[:, 4], sin[:, 5])
    assert torch.equal(cos, cos.bfloat16().float()) and torch.equal(sin, sin.bfloat16().float())
    assert not torch.equal(cos, rotary_tables(POSITIONS, 16, 10_000.0, rounding="frequencies")[0])


def test_rotation_keeps_lengths_and_leaves_the_rest_of_the_head_alone() -> None:
    cos, sin = (each[:, :, None] for each in rotary_tables(POSITIONS, 8, 10_000.0))
    x = torch.randn(1, 8, 3, 20, generator=torch.Generator().manual_seed(0))
    y = rotate(x, cos, sin)
    assert torch.equal(y[..., 8:], x[..., 8:]) and torch.equal(y[:, 0], x[:, 0])
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1))


@pytest.mark.parametrize("shift", [1, 100])
def test_products_of_queries_and_keys_depend_on_their_distance_alone(shift: int) -> None:
    q, k = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    near = torch.tensor([[3, 8]])

    def product(positions: Tensor) -> Tensor:
        cos, sin = rotary_tables(positions, 16, 10_000.0)
        return rotate(q, cos[0, 0], sin[0, 0]) @ rotate(k, cos[0, 1], sin[0, 1])

    torch.testing.assert_close(product(near + shift), product(near), atol=1e-4, rtol=1e-4)

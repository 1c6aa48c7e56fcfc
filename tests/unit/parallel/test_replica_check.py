"""A checksum that no single difference escapes."""

from __future__ import annotations

import pytest
import torch

from megatron_yuan.parallel.replica_check import checksum


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8])
def test_any_single_bit_changes_it(dtype):
    tensor = torch.arange(5, dtype=torch.float64).to(dtype)
    before = checksum(tensor).item()
    size = tensor.element_size()
    for place in range(5 * size * 8):
        flipped = tensor.clone()
        flipped.view(torch.uint8)[place // 8] ^= 1 << (place % 8)
        assert checksum(flipped).item() != before


def test_it_does_not_depend_on_how_a_tensor_lies_in_memory_and_does_on_the_order():
    tensor = torch.randn(4, 6)
    assert checksum(tensor.t().contiguous().t()).item() == checksum(tensor).item()
    assert checksum(tensor.flip(0)).item() != checksum(tensor).item()


def test_pieces_make_the_same_as_the_whole(monkeypatch):
    tensor = torch.randn(1000)
    whole = checksum(tensor).item()
    monkeypatch.setattr("megatron_yuan.parallel.replica_check._CHUNK", 7)
    assert checksum(tensor).item() == whole

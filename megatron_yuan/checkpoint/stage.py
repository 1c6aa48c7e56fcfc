"""A snapshot of tensors in host memory, so that training may go on changing them while they are written."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Files = Mapping[str, Mapping[str, Tensor]]


class HostBuffers:
    """Memory on the host, kept from one snapshot to the next: a fresh gigabyte costs more than its copy.

    Pinned where tensors come from a GPU, so that all copies run at the bus's speed, one behind the other.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, str], Tensor] = {}

    @property
    def nbytes(self) -> int:
        """Host memory held."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    @torch.no_grad()
    def snapshot(self, files: Files) -> dict[str, dict[str, Tensor]]:
        """Copies of all `files`' tensors (file -> name -> tensor), good until the next snapshot."""
        wanted = {(file, name): tensor for file, tensors in files.items() for name, tensor in tensors.items()}
        for gone in self._buffers.keys() - wanted.keys():
            del self._buffers[gone]
        for key, tensor in wanted.items():
            self._buffer(key, tensor).copy_(tensor, non_blocking=True)
        for device in {tensor.device for tensor in wanted.values() if tensor.is_cuda}:
            torch.cuda.synchronize(device)
        return {file: {name: self._buffers[file, name] for name in tensors} for file, tensors in files.items()}

    def _buffer(self, key: tuple[str, str], tensor: Tensor) -> Tensor:
        buffer = self._buffers.get(key)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._buffers[key] = buffer
        return buffer

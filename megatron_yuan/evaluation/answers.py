"""Answers that were given before: a file of lines in the output folder, so that a broken evaluation goes on.

A line is known by a hash of the model's weights and of the request; nothing else can take its place.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import IO, Any

import torch

from megatron_yuan.errors import DataError
from megatron_yuan.inference.model import LanguageModel
from megatron_yuan.log import logger
from megatron_yuan.parallel.replica_check import checksum


class Answers:
    """What this process and those before it found, by key. `path` None keeps nothing."""

    def __init__(self, path: Path | None = None) -> None:
        self.known: dict[str, Any] = {}
        self._file: IO[str] | None = None
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for other in sorted(path.parent.glob("answers-*.jsonl")):
                self._read(other)
            self._file = path.open("a", encoding="utf-8")
            self._file.write("\n")  # ends a line that a killed process left half written
        except OSError as error:
            raise DataError(f"output {path.parent} cannot be used: {error}.") from None

    def note(self, key: str, value: Any) -> None:
        """Keep an answer, on disk too."""
        self.known[key] = value
        if self._file is None:
            return
        try:
            self._file.write(json.dumps([key, value]) + "\n")
            self._file.flush()
        except OSError as error:
            logger.warning("answers can no longer be kept (%s): a new start would ask them again.", error)
            self._file = None

    def close(self) -> None:
        """No more will be noted."""
        if self._file is not None:
            self._file.close()

    def _read(self, path: Path) -> None:
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                key, value = json.loads(line)
                self.known[key] = value
            except (ValueError, TypeError):
                continue  # half a line


def request_key(model: str, kind: str, *parts: Any) -> str:
    """What a request is known by."""
    return hashlib.sha256(json.dumps([model, kind, *parts]).encode()).hexdigest()


@torch.no_grad()
def fingerprint(model: LanguageModel) -> str:
    """What a model is known by: checksums of all its weights, its settings and its tokenizer. Collective."""
    mine = hashlib.sha256()
    for name, tensor in sorted(model.named_parameters()):
        mine.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {int(checksum(tensor))}".encode())
    tokenizer = model.tokenizer.sha256 if model.tokenizer is not None else None
    everyone = [repr(model.config), tokenizer, *model.relay.gather_stages(mine.hexdigest())]
    return hashlib.sha256(json.dumps(everyone).encode()).hexdigest()[:32]

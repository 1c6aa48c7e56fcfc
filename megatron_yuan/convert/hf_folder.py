"""A folder in the published Hugging Face layout, read tensor by tensor: safetensors or torch .bin, in one file or many.

Tensors are mapped from the disk, not read ahead: what is not asked for costs no memory. Nothing in the folder is
executed (torch files are opened with weights_only), and file names in an index may not leave it.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from megatron_yuan.checkpoint import store, strict_json
from megatron_yuan.checkpoint.store import TensorSpec
from megatron_yuan.config.schema import Config
from megatron_yuan.convert.hf_config import read_config
from megatron_yuan.errors import CheckpointError

CONFIG = "config.json"
TOKENIZER = "tokenizer.model"
_SINGLE = ("model.safetensors", "pytorch_model.bin")
_INDEX = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def is_hf_folder(path: Path | str) -> bool:
    """Whether `path` looks like one: config.json, and weights under one of the usual names."""
    path = Path(path)
    return (path / CONFIG).is_file() and any((path / name).is_file() for name in (*_SINGLE, *_INDEX))


@dataclass(frozen=True)
class HfFolder:
    """An opened folder: its config, and where each tensor lies."""

    path: Path
    keys: dict[str, Any]
    """config.json as it is."""
    files: dict[str, Path]
    """Tensor name -> file that holds it."""
    specs: dict[str, TensorSpec]
    """Tensor name -> type and shape."""
    _open: dict[Path, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def config(self) -> Config:
        """Our config of the model in it."""
        attention = not any(name.endswith("mlp.gate.weight") for name in self.specs)
        return read_config(self.keys, str(self.path / CONFIG), attention)

    @property
    def tokenizer(self) -> Path | None:
        """Its SentencePiece model, if it has one."""
        return self.path / TOKENIZER if (self.path / TOKENIZER).is_file() else None

    def tensor(self, name: str) -> Tensor:
        """One tensor, backed by the file."""
        path = self.files[name]
        if path not in self._open:
            self._open[path] = _open(path)
        opened = self._open[path]
        return opened[name] if isinstance(opened, dict) else opened.get_tensor(name)


def open_hf_folder(path: Path | str) -> HfFolder:
    """Open a folder and read what its files say they hold; CheckpointError names what is missing or damaged."""
    path = Path(path)
    keys = _read_json(path / CONFIG)
    files: dict[str, Path] = {}
    specs: dict[str, TensorSpec] = {}
    opened: dict[Path, Any] = {}
    weight_files, listed = _weight_files(path)
    for file in weight_files:
        for name, spec in _specs(file, opened).items():
            if name in files:
                raise CheckpointError(f"{path}: the tensor {name} is in {files[name].name} and in {file.name}")
            files[name], specs[name] = file, spec
    for name, file in listed.items():
        if name not in files:
            raise CheckpointError(f"{path}: the tensor {name} is missing; the index says it is in {file}")
    return HfFolder(path, keys, files, specs, opened)


def _weight_files(path: Path) -> tuple[list[Path], dict[str, str]]:
    """The files with weights, safetensors before .bin; and, with an index, which tensor it says is where."""
    for single, index in zip(_SINGLE, _INDEX, strict=True):
        if (path / index).is_file():
            listed = _read_json(path / index).get("weight_map")
            if not isinstance(listed, dict) or not all(map(_is_plain, listed.values())):
                raise CheckpointError(
                    f"{path / index}: weight_map must say for each tensor the name of a file beside it"
                )
            found = [path / name for name in sorted(set(listed.values()))]
            for file in found:
                if not file.is_file():
                    raise CheckpointError(f"{path}: the file {file.name} that {index} names is missing")
            return found, listed
        if (path / single).is_file():
            return [path / single], {}
    raise CheckpointError(f"{path} holds no weights: none of {', '.join((*_SINGLE, *_INDEX))}")


def _is_plain(name: Any) -> bool:
    return isinstance(name, str) and Path(name).name == name and name.endswith((".safetensors", ".bin"))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return strict_json.parse(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: not a folder in the Hugging Face layout") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None


def _specs(path: Path, opened: dict[Path, Any]) -> Mapping[str, TensorSpec]:
    if path.suffix == ".safetensors":
        return store.read_specs(path)
    opened[path] = _open(path)
    return {name: TensorSpec.of(tensor) for name, tensor in opened[path].items()}


def _open(path: Path) -> Any:
    """A file of tensors, mapped: a safetensors handle, or a dict for a torch file."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.safe_open(path, framework="pt")
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, safetensors.SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"{path} cannot be read as a file of tensors: {reason}") from None
    if not isinstance(loaded, dict) or not all(isinstance(tensor, Tensor) for tensor in loaded.values()):
        raise CheckpointError(f"{path} holds something else than tensors by name")
    return loaded


def _is_zip(path: Path) -> bool:
    # Files of torch < 1.6 are bare pickles, which cannot be mapped.
    with open(path, "rb") as file:
        return file.read(2) == b"PK"

"""A checkpoint that was opened: what it holds, and any tensor of it by global name, whatever layout has written it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from megatron_yuan.checkpoint import layout, store
from megatron_yuan.checkpoint.damage import DamagedError
from megatron_yuan.checkpoint.manifest import Manifest
from megatron_yuan.checkpoint.state import RunState
from megatron_yuan.checkpoint.store import TensorSpec
from megatron_yuan.checkpoint.work import Progress, on_threads
from megatron_yuan.errors import CheckpointError

Targets = dict[str, dict[str, Tensor]]  # file -> name in the file -> tensor to fill

_SHOWN = 10  # differing tensors named in one error


@dataclass(frozen=True)
class Checkpoint:
    """A finished checkpoint whose manifest and small files have been verified; tensors are verified when read."""

    path: Path
    manifest: Manifest
    run_state: RunState
    config_text: str
    verify: bool = True
    """Take and compare the sha256 of each file that is read."""

    @property
    def tokenizer(self) -> Path | None:
        """The tokenizer model saved with it, if any."""
        return self.path / layout.TOKENIZER if layout.TOKENIZER in self.manifest.files else None

    @property
    def tokenizer_sha256(self) -> str | None:
        """Of that model."""
        return self.manifest.files[layout.TOKENIZER].sha256 if self.tokenizer is not None else None

    @property
    def has_optimizer(self) -> bool:
        """Whether it holds the optimizer's state, or weights alone."""
        return bool(self.manifest.tensors("optimizer"))

    def tensor_names(self) -> list[str]:
        """Global names of all weights."""
        return sorted(self.manifest.tensors("model"))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every weight."""
        return {name: spec.shape for name, (_, spec) in self.manifest.tensors("model").items()}

    def dtypes(self) -> dict[str, torch.dtype]:
        """Type of every weight."""
        return {name: spec.dtype for name, (_, spec) in self.manifest.tensors("model").items()}

    def check_model(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """CheckpointError, tensor by tensor, unless the checkpoint is of exactly the model of these shapes."""
        found = self.shapes()
        extra = [
            f"{name}: {list(found[name])} in the checkpoint, not in the model" for name in sorted(found.keys() - shapes)
        ]
        self._refuse_differences(self._differences(found, shapes) + extra, len(found.keys() | shapes.keys()))

    def load_weights(self, into: Mapping[str, Tensor], *, cast: bool = False) -> None:
        """Copy weights into the given tensors, in place; others of the checkpoint are left alone.

        A type other than the saved one is an error unless `cast`. Then float32 comes from the optimizer's master
        weights where there are any, so that nothing is lost; other types are rounded.
        """
        self.read(self.places_of_weights(into, cast=cast))

    def places_of_weights(self, into: Mapping[str, Tensor], *, cast: bool = False) -> Targets:
        """Where in the files the weights of `load_weights` are."""
        weights, optimizer = self.manifest.tensors("model"), self.manifest.tensors("optimizer")
        wanted = {name: tuple(tensor.shape) for name, tensor in into.items()}
        self._refuse_differences(self._differences(self.shapes(), wanted), len(wanted))
        targets: Targets = {}
        for name, tensor in into.items():
            file, spec = weights[name]
            master = optimizer.get(f"{name}.master")
            if tensor.dtype == torch.float32 and spec.dtype != torch.float32 and cast and master is not None:
                targets.setdefault(master[0], {})[f"{name}.master"] = tensor
                continue
            self._check_type(name, spec, tensor, cast)
            targets.setdefault(file, {})[name] = tensor
        return targets

    def load_optimizer(self, into: Mapping[str, Mapping[str, Tensor]], *, cast: bool = False) -> None:
        """Copy optimizer state into the given tensors (name -> slot -> tensor), in place.

        Master weights that are wanted but were not saved come from the weights: exactly where those are float32, else
        only with `cast`. A slot that is missing, or saved and not wanted (but for the master), is an error.
        """
        self.read(self.places_of_optimizer(into, cast=cast))

    def places_of_optimizer(self, into: Mapping[str, Mapping[str, Tensor]], *, cast: bool = False) -> Targets:
        """Where in the files the tensors of `load_optimizer` are."""
        if not self.has_optimizer:
            raise CheckpointError(
                f"{self.path} holds no optimizer state: start from its weights with --finetune or --no-load-optim"
            )
        weights, optimizer = self.manifest.tensors("model"), self.manifest.tensors("optimizer")
        wanted = {f"{name}.{slot}": tensor for name, slots in into.items() for slot, tensor in slots.items()}
        sources: dict[str, tuple[str, TensorSpec, str]] = {}
        for key in wanted:
            name, _, slot = key.rpartition(".")
            if key in optimizer:
                sources[key] = (*optimizer[key], key)
            elif slot == "master" and name in weights:
                sources[key] = (*weights[name], name)
        extra = [
            f"optimizer state {key}: in the checkpoint, not wanted by the optimizer"
            for key in sorted(optimizer.keys() - wanted.keys())
            if key.rpartition(".")[0] in into and not key.endswith(".master")
        ]
        shapes = {key: tuple(tensor.shape) for key, tensor in wanted.items()}
        different = self._differences({key: spec.shape for key, (_, spec, _) in sources.items()}, shapes)
        self._refuse_differences(different + extra, len(wanted))
        targets: Targets = {}
        for key, tensor in wanted.items():
            file, spec, saved_as = sources[key]
            self._check_type(key, spec, tensor, cast)
            targets.setdefault(file, {})[saved_as] = tensor
        return targets

    def read_weights(self, names: Iterable[str], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Weights as new tensors on the CPU, in the saved type or, cast, in `dtype`."""
        weights = self.manifest.tensors("model")
        chosen = list(names)
        unknown = [f"{name}: not in the checkpoint" for name in chosen if name not in weights]
        self._refuse_differences(unknown, len(chosen))
        into = {name: torch.empty(weights[name][1].shape, dtype=dtype or weights[name][1].dtype) for name in chosen}
        self.load_weights(into, cast=True)
        return into

    def verify_files(self) -> None:
        """Hash every file, several at once; a damaged one is a DamagedError naming it."""

        def verify(file: str) -> None:
            if store.sha256_of(self.path / file, progress.count) != self.manifest.files[file].sha256:
                raise DamagedError(damaged(self.path, f"{file} does not agree with its recorded sha256"))

        files = sorted(self.manifest.files, key=self._size, reverse=True)
        progress = Progress(f"verifying {self.path.name}", sum(map(self._size, files)))
        on_threads({file: partial(verify, file) for file in files}, progress)

    def read(self, *several: Targets, alive: Callable[[], None] | None = None) -> None:
        """Fill all targets from their files, several at once; see `Progress` for `alive`."""

        def read_file(file: str, into: Mapping[str, Tensor]) -> None:
            record = self.manifest.files[file]
            if store.read_specs(self.path / file) != record.tensors:
                raise DamagedError(damaged(self.path, f"{file} holds other tensors than the manifest says"))
            store.read_tensors(self.path / file, into, record.sha256 if self.verify else None, progress.count)

        work = [(file, into) for targets in several for file, into in targets.items()]
        work.sort(key=lambda item: (-self._size(item[0]), item[0]))
        progress = Progress(f"reading {self.path.name}", sum(self._size(file) for file, _ in work), alive)
        on_threads({f"{at} {file}": partial(read_file, file, into) for at, (file, into) in enumerate(work)}, progress)

    def _size(self, file: str) -> int:
        return self.manifest.files[file].size

    def _check_type(self, name: str, spec: TensorSpec, tensor: Tensor, cast: bool) -> None:
        if spec.dtype != tensor.dtype and not cast:
            saved, wanted = (str(each).removeprefix("torch.") for each in (spec.dtype, tensor.dtype))
            raise CheckpointError(
                f"{self.path} holds {name} in {saved}, the run wants {wanted}: keep the precision that it was saved in "
                "(--bf16 or not), or take the weights alone with --finetune"
            )

    @staticmethod
    def _differences(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> list[str]:
        lines = []
        for name, shape in sorted(wanted.items()):
            if name not in found:
                lines.append(f"{name}: {list(shape)} in the model, not in the checkpoint")
            elif found[name] != tuple(shape):
                lines.append(f"{name}: {list(found[name])} in the checkpoint, {list(shape)} in the model")
        return lines

    def _refuse_differences(self, lines: list[str], total: int) -> None:
        if lines:
            more = [f"... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
            head = f"{self.path} is of another model (see its config.yaml), {len(lines)} of {total} tensors differ:"
            raise CheckpointError("\n  ".join([head, *lines[:_SHOWN], *more]))


def damaged(path: Path, reason: str) -> str:
    """The words for it."""
    return f"the checkpoint {path} is damaged: {reason}"

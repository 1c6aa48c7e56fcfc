"""Load: any rank reads the tensors it needs, by global name, so that any layout opens what any other has written."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from megatron_yuan.checkpoint import layout, store
from megatron_yuan.checkpoint.agreement import ALONE, Ranks, together
from megatron_yuan.checkpoint.manifest import Manifest
from megatron_yuan.checkpoint.state import RunState
from megatron_yuan.checkpoint.store import TensorSpec
from megatron_yuan.errors import CheckpointError

log = logging.getLogger(__name__)

_SHOWN = 10  # differing tensors named in one error
_MAX_SMALL = 100 << 20  # bytes of a manifest, config or run state that are believed
_Targets = dict[str, dict[str, Tensor]]  # file -> name in the file -> tensor to fill


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
        weights, optimizer = self.manifest.tensors("model"), self.manifest.tensors("optimizer")
        wanted = {name: tuple(tensor.shape) for name, tensor in into.items()}
        self._refuse_differences(self._differences(self.shapes(), wanted), len(wanted))
        targets: _Targets = {}
        for name, tensor in into.items():
            file, spec = weights[name]
            master = optimizer.get(f"{name}.master")
            if tensor.dtype == torch.float32 and spec.dtype != torch.float32 and cast and master is not None:
                targets.setdefault(master[0], {})[f"{name}.master"] = tensor
                continue
            self._check_type(name, spec, tensor, cast)
            targets.setdefault(file, {})[name] = tensor
        self._read(targets)

    def load_optimizer(self, into: Mapping[str, Mapping[str, Tensor]], *, cast: bool = False) -> None:
        """Copy optimizer state into the given tensors (name -> slot -> tensor), in place.

        Master weights that are wanted but were not saved come from the weights: exactly where those are float32, else
        only with `cast`. A slot that is missing, or saved and not wanted (but for the master), is an error.
        """
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
        targets: _Targets = {}
        for key, tensor in wanted.items():
            file, spec, saved_as = sources[key]
            self._check_type(key, spec, tensor, cast)
            targets.setdefault(file, {})[saved_as] = tensor
        self._read(targets)

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
        """Hash every file; the first damaged one is a CheckpointError naming it."""
        for file, record in self.manifest.files.items():
            if store.sha256_of(self.path / file) != record.sha256:
                raise CheckpointError(_damaged(self.path, f"{file} does not agree with its recorded sha256"))

    def _read(self, targets: _Targets) -> None:
        for file, into in sorted(targets.items()):
            record = self.manifest.files[file]
            if store.read_specs(self.path / file) != record.tensors:
                raise CheckpointError(_damaged(self.path, f"{file} holds other tensors than the manifest says"))
            store.read_tensors(self.path / file, into, record.sha256 if self.verify else None)

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


def is_checkpoint(path: Path | str) -> bool:
    """Whether `path` is a checkpoint, or a run or checkpoints folder with at least one; it may still prove damaged."""
    path = Path(path)
    return (path / layout.MANIFEST).is_file() or any(layout.list_checkpoints(each) for each in _holders(path))


def find_checkpoint(path: Path | str, ckpt_step: int | None = None) -> Path:
    """The checkpoint that `path` means: itself, or of a run or checkpoints folder step `ckpt_step`, else the latest."""
    path = Path(path)
    if (path / layout.MANIFEST).is_file():
        return path
    for folder in _holders(path):
        found = layout.list_checkpoints(folder)
        if not found:
            continue
        if ckpt_step is not None and ckpt_step not in found:
            raise CheckpointError(f"{folder} has no checkpoint of --ckpt-step {ckpt_step}; it has {_listed(found)}")
        step = layout.read_latest(folder) if ckpt_step is None else ckpt_step
        if step not in found:
            log.warning("%s: `latest` names %s; taking the newest checkpoint, %s", folder, step, max(found))
            step = max(found)
        return found[step]
    if not path.exists():
        raise CheckpointError(f"there is no {path} to load a checkpoint from")
    raise CheckpointError(
        f"{path} holds no finished checkpoint: no {layout.MANIFEST} and no checkpoints/iter_… with one"
    )


def open_checkpoint(
    path: Path | str, ckpt_step: int | None = None, ranks: Ranks = ALONE, *, verify: bool = True
) -> Checkpoint:
    """Open a run folder, its checkpoints folder or one checkpoint, and verify all but the tensors' values.

    Every file must be there with its recorded size, and the small ones with their sha256; else a CheckpointError names
    the file. With `ranks`, the main rank chooses the checkpoint for all, and all succeed or fail together.
    """
    main = ranks.rank == 0
    chosen = together(ranks, f"opening {path}", lambda: find_checkpoint(path, ckpt_step) if main else None)[0]
    assert chosen is not None
    kept: list[Checkpoint] = []
    together(ranks, f"opening {chosen}", lambda: kept.append(_open(chosen, ckpt_step, verify)))
    return kept[0]


def load_checkpoint(
    checkpoint: Checkpoint,
    ranks: Ranks,
    weights: Mapping[str, Tensor],
    optimizer: Mapping[str, Mapping[str, Tensor]] | None = None,
    *,
    cast: bool = False,
) -> None:
    """Fill this rank's weights and optimizer state (None: weights alone), on all ranks or, with one error, on none.

    Before anything is read, the weights of all ranks together are held against the checkpoint, tensor by tensor.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for part in ranks.gather({name: tuple(tensor.shape) for name, tensor in weights.items()}):
        shapes.update(part)
    checkpoint.check_model(shapes)

    def read() -> None:
        checkpoint.load_weights(weights, cast=cast)
        if optimizer is not None:
            checkpoint.load_optimizer(optimizer, cast=cast)

    together(ranks, f"loading {checkpoint.path}", read)


def _holders(path: Path) -> tuple[Path, Path]:
    return layout.checkpoints_folder(path), path


def _listed(found: Mapping[int, Path]) -> str:
    steps = [str(step) for step in found]
    return ", ".join(steps if len(steps) <= 6 else [*steps[:3], "...", *steps[-2:]])


def _open(path: Path, ckpt_step: int | None, verify: bool) -> Checkpoint:
    if not (path / layout.MANIFEST).is_file():
        raise CheckpointError(_damaged(path, f"{layout.MANIFEST} is missing"))
    manifest = Manifest.from_json(_read_small(path / layout.MANIFEST), str(path / layout.MANIFEST))
    if ckpt_step not in (None, manifest.step):
        raise CheckpointError(f"{path} is of step {manifest.step}, not of --ckpt-step {ckpt_step}")
    for file, record in manifest.files.items():
        if not (path / file).is_file():
            raise CheckpointError(_damaged(path, f"{file} is missing"))
        size = (path / file).stat().st_size
        if size != record.size:
            state = "truncated" if size < record.size else "too long"
            raise CheckpointError(_damaged(path, f"{file} is {state}, {size} bytes instead of {record.size}"))
    for file in (layout.RUN_STATE, layout.CONFIG, layout.TOKENIZER):
        if file in manifest.files and store.sha256_of(path / file) != manifest.files[file].sha256:
            raise CheckpointError(_damaged(path, f"{file} does not agree with its recorded sha256"))
    run_state = RunState.from_json(_read_small(path / layout.RUN_STATE), str(path / layout.RUN_STATE))
    if run_state.step != manifest.step:
        raise CheckpointError(_damaged(path, f"{layout.RUN_STATE} is of step {run_state.step}, not {manifest.step}"))
    config_text = _read_small(path / layout.CONFIG).decode(errors="replace")
    return Checkpoint(path, manifest, run_state, config_text, verify)


def _damaged(path: Path, reason: str) -> str:
    return f"the checkpoint {path} is damaged: {reason}. Choose an earlier one with --ckpt-step"


def _read_small(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(_MAX_SMALL + 1)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    if len(content) > _MAX_SMALL:
        raise CheckpointError(f"{path} is larger than {_MAX_SMALL} bytes: refused")
    return content

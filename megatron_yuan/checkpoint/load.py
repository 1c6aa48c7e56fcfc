"""Load: find, open and read a checkpoint, on all ranks alike; set a damaged one aside and take the one before it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from torch import Tensor

from megatron_yuan.checkpoint import layout, store
from megatron_yuan.checkpoint.agreement import ALONE, Ranks, together
from megatron_yuan.checkpoint.damage import DamagedError, set_aside
from megatron_yuan.checkpoint.manifest import Manifest
from megatron_yuan.checkpoint.opened import Checkpoint, damaged
from megatron_yuan.checkpoint.state import RunState
from megatron_yuan.errors import CheckpointError

log = logging.getLogger(__name__)

_MAX_SMALL = 100 << 20  # bytes of a manifest, config or run state that are believed


def is_checkpoint(path: Path | str) -> bool:
    """Whether `path` is a checkpoint, or a run or checkpoints folder with at least one; it may still prove damaged."""
    path = Path(path)
    return (path / layout.MANIFEST).is_file() or any(layout.list_checkpoints(each) for each in _holders(path))


def find_checkpoint(path: Path | str, ckpt_step: int | None = None) -> Path:
    """The checkpoint that `path` means: itself, or of a run or checkpoints folder step `ckpt_step`, else the latest.

    Where `latest` names none that is there, it is the newest before, or the newest of all.
    """
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
            newest = max((at for at in found if step is None or at < step), default=max(found))
            log.warning("%s: `latest` names %s; taking the newest checkpoint, %s", folder, step, newest)
            step = newest
        return found[step]
    refuse_only_damaged(path)
    if not path.exists():
        raise CheckpointError(f"there is no {path} to load a checkpoint from")
    raise CheckpointError(
        f"{path} holds no finished checkpoint: no {layout.MANIFEST} and no checkpoints/iter_… with one"
    )


def refuse_only_damaged(path: Path | str) -> None:
    """CheckpointError where checkpoints in the run folder `path` were set aside as damaged and none is left: to begin
    anew there in silence would bury them."""
    path = Path(path)
    aside = [name for folder in _holders(path) for name in layout.list_damaged(folder)]
    if aside and not is_checkpoint(path):
        raise CheckpointError(
            f"{path} holds no undamaged checkpoint, only {', '.join(aside)}. Restore one of them from a copy, or, "
            "to begin anew, delete them or name another --save"
        )


def open_checkpoint(
    path: Path | str,
    ckpt_step: int | None = None,
    ranks: Ranks = ALONE,
    *,
    verify: bool = True,
    fall_back: bool = False,
) -> Checkpoint:
    """Open a run folder, its checkpoints folder or one checkpoint, and verify all but the tensors' values.

    Every file must be there with its recorded size, and the small ones with their sha256; else a DamagedError names
    the file. With `fall_back`, for a run's own folder, such a checkpoint is set aside instead and the newest before it
    opened. With `ranks`, the main rank chooses the checkpoint for all, and all succeed or fail together.
    """
    main = ranks.rank == 0
    while True:
        chosen = together(ranks, f"opening {path}", lambda: find_checkpoint(path, ckpt_step) if main else None)[0]
        assert chosen is not None
        try:
            return _open_on_all(ranks, partial(_open, chosen, ckpt_step, verify), f"opening {chosen}")
        except DamagedError as damage:
            if not fall_back:
                raise DamagedError(f"{damage}. Choose an earlier one with --ckpt-step") from None
            aside = partial(set_aside, chosen, damage)
            together(ranks, f"setting {chosen} aside", lambda aside=aside: str(aside()) if main else None)


def set_aside_damaged(checkpoint: Checkpoint, ranks: Ranks, damage: DamagedError) -> None:
    """Set `checkpoint` aside, in which some rank met `damage` while reading, if the main rank finds damage there too.

    Else it is a CheckpointError: that rank's host, not the checkpoint, is at fault. Called by all ranks together.
    """

    def look() -> None:
        if ranks.rank == 0:
            try:
                checkpoint.verify_files()
            except DamagedError as seen:
                set_aside(checkpoint.path, seen)
                return
            raise CheckpointError(f"{damage}. But rank 0 reads it undamaged: suspect that rank's host")

    together(ranks, f"setting {checkpoint.path} aside", look)


def load_checkpoint(
    checkpoint: Checkpoint,
    ranks: Ranks,
    weights: Mapping[str, Tensor],
    optimizer: Mapping[str, Mapping[str, Tensor]] | None = None,
    *,
    cast: bool = False,
    alive: Callable[[], None] | None = None,
) -> None:
    """Fill this rank's weights and optimizer state (None: weights alone), on all ranks or, with one error, on none.

    Before anything is read, the weights of all ranks together are held against the checkpoint, tensor by tensor.
    `alive` is called now and then while reading goes on.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for part in ranks.gather({name: tuple(tensor.shape) for name, tensor in weights.items()}):
        shapes.update(part)
    checkpoint.check_model(shapes)

    def read() -> None:
        places = [checkpoint.places_of_weights(weights, cast=cast)]
        if optimizer is not None:
            places.append(checkpoint.places_of_optimizer(optimizer, cast=cast))
        checkpoint.read(*places, alive=alive)

    together(ranks, f"loading {checkpoint.path}", read)


def _open_on_all(ranks: Ranks, action: Callable[[], Checkpoint], what: str) -> Checkpoint:
    """The main rank looks first: what it finds whole and another does not is no damage, but a folder not shared."""
    kept: list[Checkpoint] = []

    def open_too() -> None:
        try:
            kept.append(action())
        except DamagedError as error:
            shared = "rank 0 finds it whole: --save and --load must name folders that all hosts share"
            raise CheckpointError(f"on the host {os.uname().nodename} {error}. But {shared}") from None

    main = ranks.rank == 0
    together(ranks, what, lambda: kept.append(action()) if main else None)
    together(ranks, what, lambda: open_too() if not main else None)
    return kept[0]


def _holders(path: Path) -> tuple[Path, Path]:
    return layout.checkpoints_folder(path), path


def _listed(found: Mapping[int, Path]) -> str:
    steps = [str(step) for step in found]
    return ", ".join(steps if len(steps) <= 6 else [*steps[:3], "...", *steps[-2:]])


def _open(path: Path, ckpt_step: int | None, verify: bool) -> Checkpoint:
    if not (path / layout.MANIFEST).is_file():
        raise DamagedError(damaged(path, f"{layout.MANIFEST} is missing"))
    manifest = Manifest.from_json(_read_small(path / layout.MANIFEST), str(path / layout.MANIFEST))
    if ckpt_step not in (None, manifest.step):
        raise CheckpointError(f"{path} is of step {manifest.step}, not of --ckpt-step {ckpt_step}")
    for file, record in manifest.files.items():
        # What leads to the checkpoint may be a link of the user's; what is inside it is the checkpoint's.
        inside = [each for each in (path / file, (path / file).parent) if each != path]
        for link in filter(Path.is_symlink, inside):
            raise CheckpointError(f"{link} is a link, which no checkpoint has: refused. Copy what it points to")
        if not (path / file).is_file():
            raise DamagedError(damaged(path, f"{file} is missing"))
        size = (path / file).stat().st_size
        if size != record.size:
            state = "truncated" if size < record.size else "too long"
            raise DamagedError(damaged(path, f"{file} is {state}, {size} bytes instead of {record.size}"))
    for file in (layout.RUN_STATE, layout.CONFIG, layout.TOKENIZER):
        if file in manifest.files and store.sha256_of(path / file) != manifest.files[file].sha256:
            raise DamagedError(damaged(path, f"{file} does not agree with its recorded sha256"))
    run_state = RunState.from_json(_read_small(path / layout.RUN_STATE), str(path / layout.RUN_STATE))
    if run_state.step != manifest.step:
        raise DamagedError(damaged(path, f"{layout.RUN_STATE} is of step {run_state.step}, not {manifest.step}"))
    config_text = _read_small(path / layout.CONFIG).decode(errors="replace")
    return Checkpoint(path, manifest, run_state, config_text, verify)


def _read_small(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(_MAX_SMALL + 1)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    if len(content) > _MAX_SMALL:
        raise CheckpointError(f"{path} is larger than {_MAX_SMALL} bytes: refused")
    return content

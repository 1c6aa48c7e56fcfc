"""Names and places: which file a tensor lives in, where checkpoints lie in a run folder, which is the latest, which go.

RUN/checkpoints/latest                              the text 'iter_0000100'
RUN/checkpoints/iter_0000100/manifest.json          size and sha256 of all that follows
                             run_state.json  config.yaml  tokenizer.model
                             model/embedding.safetensors  model/layers.0007.safetensors  model/head.safetensors
                             optimizer/ the same three kinds
RUN/checkpoints/iter_0000100.tmp-1a2b3c4d           being written, or left by a run that was killed
RUN/checkpoints/iter_0000100.old-1a2b3c4d           on its way out while a new save of the same step takes its name
RUN/checkpoints/iter_0000100.damaged-1a2b3c4d       found damaged and set aside; nothing deletes it
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
from pathlib import Path

from megatron_yuan.errors import CheckpointError

MANIFEST = "manifest.json"
RUN_STATE = "run_state.json"
CONFIG = "config.yaml"
TOKENIZER = "tokenizer.model"
LATEST = "latest"

_TENSOR_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
_FILE = re.compile(
    r"(model|optimizer)/(embedding|head|layers\.\d{4,9})\.safetensors|run_state\.json|config\.yaml|tokenizer\.model"
)
_FOLDER = re.compile(r"iter_(\d{7,15})")
_REPLACED = re.compile(r"(iter_\d{7,15})\.old-[0-9a-f]+")
_UNFINISHED = re.compile(r"iter_\d{7,15}\.tmp-[0-9a-f]+")
_DAMAGED = re.compile(r"iter_\d{7,15}\.damaged-[0-9a-f]+")

log = logging.getLogger(__name__)


def file_of(name: str, kind: str = "model") -> str:
    """Path, inside a checkpoint, of the file that holds the tensor of global `name`; `kind` is model or optimizer."""
    if not _TENSOR_NAME.fullmatch(name):
        raise CheckpointError(f"{name!r} cannot name a tensor: letters, digits and _ joined by dots can")
    first, _, rest = name.partition(".")
    if first == "layers":
        number = rest.partition(".")[0]
        if not number.isdigit() or len(number) > 9:
            raise CheckpointError(f"{name!r} names no layer: layers.NUMBER.… was expected")
        return f"{kind}/layers.{int(number):04d}.safetensors"
    return f"{kind}/{'embedding' if first == 'embedding' else 'head'}.safetensors"


def is_own_file(path: str) -> bool:
    """Whether `path` is one that a checkpoint may hold: nothing absolute, nothing above, nothing unknown."""
    return _FILE.fullmatch(path) is not None


def folder_name(step: int) -> str:
    """Name of the folder that holds the checkpoint of `step`."""
    return f"iter_{step:07d}"


def checkpoints_folder(run_folder: Path) -> Path:
    """Where a run folder keeps its checkpoints."""
    return run_folder / "checkpoints"


def temporary_folder(folder: Path, step: int, token: str) -> Path:
    """Where the checkpoint of `step` is put together before it gets its name."""
    return folder / f"{folder_name(step)}.tmp-{token}"


def new_token() -> str:
    """What tells two attempts at the same name apart."""
    return secrets.token_hex(4)


def list_checkpoints(folder: Path) -> dict[int, Path]:
    """Finished checkpoints in a checkpoints folder, step -> path, in order of steps; {} where the folder is missing.

    One that a newer save of the same step was about to replace counts while the newer one has not taken its name.
    """
    found: dict[int, Path] = {}
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    for name in names:
        replaced = _REPLACED.fullmatch(name)
        match = _FOLDER.fullmatch(replaced.group(1) if replaced else name)
        if match and (folder / name).is_dir() and not (replaced and int(match.group(1)) in found):
            found[int(match.group(1))] = folder / name
    return dict(sorted(found.items()))


def list_damaged(folder: Path) -> list[str]:
    """Names of the checkpoints in a checkpoints folder that were found damaged and set aside."""
    return sorted(filter(_DAMAGED.fullmatch, os.listdir(folder))) if folder.is_dir() else []


def read_latest(folder: Path) -> int | None:
    """The step that `latest` names; None where it names none, being damaged or not there."""
    try:
        text = (folder / LATEST).read_bytes()[:100].decode("ascii", "replace").strip()
    except (FileNotFoundError, IsADirectoryError):
        return None
    match = _FOLDER.fullmatch(text)
    return int(match.group(1)) if match else None


def write_latest(folder: Path, step: int) -> None:
    """Point `latest` at `step`: whoever reads it at any moment, or after a power cut, finds the old name or the new."""
    temporary = folder / f"{LATEST}.tmp-{new_token()}"
    try:
        write_durably(temporary, folder_name(step) + "\n")
        os.replace(temporary, folder / LATEST)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(folder)


def write_durably(path: Path, content: str | bytes) -> None:
    """Write a new small file and wait until the disk has it."""
    with open(path, "xb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the names in `folder`, as a rename or a new file needs to outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def discard(path: Path) -> None:
    """Delete a checkpoint such that a crash half-way leaves no folder that looks like a whole one."""
    if path.is_symlink():
        path.unlink()  # the link is ours to drop; what it points to is not
        return
    doomed = path.with_name(f"{path.name.partition('.')[0]}.tmp-{new_token()}")
    os.rename(path, doomed)
    shutil.rmtree(doomed)


def retain(folder: Path, step: int, count: int | None, interval: int | None = None) -> None:
    """Keep the `count` newest checkpoints up to and with `step`, the one just saved, and all of every `interval`-th
    step; delete the rest. Without `count` all are kept, or, where there is an `interval`, those and the newest.

    Later ones, of a run that was since taken back to an earlier step, are not touched: the run replaces them as it
    reaches their steps. One that cannot be deleted is warned of: the save itself has succeeded.
    """
    if count is None and interval is None:
        return
    older = {at: path for at, path in list_checkpoints(folder).items() if at < step}
    newest = sorted(older)[len(older) - min(len(older), (count or 1) - 1) :]
    for at, path in older.items():
        if at in newest or (interval and at % interval == 0):
            continue
        try:
            discard(path)
        except OSError as error:
            log.warning("cannot delete the old checkpoint %s: %s", path, error)


def remove_leftovers(folder: Path) -> None:
    """Delete what killed saves left behind, and give back its name to a checkpoint whose replacement never came."""
    for name in sorted(os.listdir(folder)) if folder.is_dir() else []:
        path = folder / name
        replaced = _REPLACED.fullmatch(name)
        if replaced and not (folder / replaced.group(1)).exists():
            os.rename(path, folder / replaced.group(1))
        elif replaced:
            discard(path)
        elif _UNFINISHED.fullmatch(name) and not path.is_symlink():
            log.warning("removing %s, left unfinished by a process that was cut off", path)
            shutil.rmtree(path)
        elif name.startswith(f"{LATEST}.tmp-"):
            path.unlink()

"""How a checkpoint comes to exist: put together under a temporary name, made durable, renamed, then pointed at.

A crash at any point leaves `latest` and what it names as they were; what is left under a temporary name is deleted by
the next save.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from megatron_yuan.checkpoint import layout, store
from megatron_yuan.checkpoint.manifest import FileRecord, Manifest
from megatron_yuan.checkpoint.store import Count, Pieces
from megatron_yuan.errors import CheckpointError

log = logging.getLogger(__name__)

_RECORD = re.compile(r"part-(\d+)\.json")
_PER_FILE = 64 << 10  # bytes allowed for each file's header and the file system's own needs


@dataclass(frozen=True)
class Pending:
    """A checkpoint on its way: every rank builds the same one."""

    folder: Path
    """The checkpoints folder."""
    step: int
    token: str
    """Tells this attempt from others."""
    nbytes: int
    """Space that it needs, all ranks together."""

    @property
    def path(self) -> Path:
        """Where it is put together."""
        return layout.temporary_folder(self.folder, self.step, self.token)

    @property
    def final(self) -> Path:
        """Where it goes."""
        return self.folder / layout.folder_name(self.step)


def space_needed(tensor_bytes: int, files: int) -> int:
    """Bytes to be free on the disk for so many bytes of tensors in so many files."""
    return tensor_bytes + files * _PER_FILE + (1 << 20)


def begin(pending: Pending) -> None:
    """Make the temporary folder, by one rank; checks first that all will fit on the disk."""
    with explained(pending):
        pending.folder.mkdir(parents=True, exist_ok=True)
        layout.remove_leftovers(pending.folder)
        if _free(pending.folder) < pending.nbytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        try:
            for kind in ("model", "optimizer"):
                (pending.path / kind).mkdir(parents=True)
        except BaseException:
            abandon(pending)
            raise


def write_small(
    pending: Pending, state_text: str, config_text: str, tokenizer: Path | None
) -> dict[str, tuple[int, str]]:
    """Write the small files into the temporary folder, by one rank; returns size and sha256 of each."""
    with explained(pending):
        small = {layout.RUN_STATE: state_text.encode(), layout.CONFIG: config_text.encode()}
        if tokenizer is not None:
            small[layout.TOKENIZER] = tokenizer.read_bytes()
        for name, content in small.items():
            layout.write_durably(pending.path / name, content)
        return {name: (len(content), hashlib.sha256(content).hexdigest()) for name, content in small.items()}


def write_file(
    pending: Pending, file: str, tensors: Mapping[str, Tensor | Pieces], count: Count | None = None
) -> tuple[int, str]:
    """Write one file of tensors into the temporary folder; returns its size and sha256."""
    with explained(pending):
        if not pending.path.is_dir():
            raise CheckpointError(
                f"{pending.path} cannot be seen from the host {os.uname().nodename}: "
                "--save must name a folder that all hosts share"
            )
        return store.write_tensors(pending.path / file, tensors, count=count)


def leave_record(pending: Pending, rank: int, text: str) -> None:
    """Tell the main rank's writer that this rank's files are durable; `text` says which they are."""
    with explained(pending):
        path = pending.path / f"part-{rank}.json"
        path.with_suffix(".tmp").write_text(text)
        os.replace(path.with_suffix(".tmp"), path)


def records_left(pending: Pending) -> set[int]:
    """The ranks whose records are there."""
    with explained(pending):
        # A listing, since a shared file system may go on for long to say of a name that it is missing.
        return {int(match[1]) for name in os.listdir(pending.path) if (match := _RECORD.fullmatch(name))}


def take_record(pending: Pending, rank: int) -> tuple[str, str]:
    """Text and path of a rank's record, which is then gone: a checkpoint has no such file."""
    with explained(pending):
        path = pending.path / f"part-{rank}.json"
        text = path.read_text()
        path.unlink()
        return text, str(path)


@dataclass(frozen=True)
class Retention:
    """Which checkpoints are kept; see `layout.retain`."""

    count: int | None = None
    interval: int | None = None


KEEP_ALL = Retention()


def finish(pending: Pending, files: Mapping[str, FileRecord], retention: Retention = KEEP_ALL) -> Path:
    """Manifest, rename, `latest`, retention, by one rank, when all files are written; returns the checkpoint's path."""
    with explained(pending):
        manifest = Manifest(pending.step, dict(files))
        layout.write_durably(pending.path / layout.MANIFEST, manifest.to_json())
        for folder in (pending.path / "model", pending.path / "optimizer", pending.path):
            layout.sync_folder(folder)
        layout.sync_folder(pending.folder.parent)
        _take_name(pending)
        layout.write_latest(pending.folder, pending.step)
    layout.retain(pending.folder, pending.step, retention.count, retention.interval)
    return pending.final


def abandon(pending: Pending) -> None:
    """Delete the temporary folder, if it is there; what cannot be deleted is left to the next save."""
    if pending.path.is_dir():
        try:
            shutil.rmtree(pending.path)
        except OSError as error:
            log.warning("cannot delete the unfinished %s: %s", pending.path, error)


@contextmanager
def explained(pending: Pending) -> Iterator[None]:
    """Turn the operating system's refusals into words: no space with the bytes needed and available, others by file."""
    try:
        yield
    except OSError as error:
        name = f"the checkpoint of step {pending.step}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = _free(pending.folder)
            quota = " under your quota" if error.errno == errno.EDQUOT else ""
            raise CheckpointError(
                f"no disk space{quota} for {name} in {pending.folder}: it needs {pending.nbytes:,} bytes, {free:,} are "
                "available. Earlier checkpoints are as they were; free space, or lower --save-retain"
            ) from None
        raise CheckpointError(
            f"cannot write {name} in {pending.folder}: {error.strerror or error}"
            f"{f' ({error.filename})' if error.filename else ''}. Earlier checkpoints are as they were; see --save"
        ) from None


def _free(folder: Path) -> int:
    """Bytes that this user may still write, on the disk where `folder` is or would be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _take_name(pending: Pending) -> None:
    """Rename to the final name; an earlier checkpoint of the same step steps aside first and is deleted after."""
    replaced = pending.folder / f"{pending.final.name}.old-{pending.token}"
    exists = pending.final.exists() or pending.final.is_symlink()
    if exists:
        os.rename(pending.final, replaced)
    try:
        os.rename(pending.path, pending.final)
    except BaseException:
        if exists:
            os.rename(replaced, pending.final)
        raise
    layout.sync_folder(pending.folder)
    if exists:
        layout.discard(replaced)

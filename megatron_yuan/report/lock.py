"""One run at a time in a run folder: the operating system's lock, which no crash leaves behind."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from contextlib import suppress
from pathlib import Path

from megatron_yuan.errors import ConfigError
from megatron_yuan.log import logger

NAME = ".lock"
PATIENCE_SECONDS = 5.0  # a launcher starts the new session while the killed one's last process is still going
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class FolderLock:
    """Held from its making until `release`, or until the process ends in whatever way.

    A POSIX record lock: it is respected over NFS, and data workers forked later do not inherit it.
    """

    def __init__(self, folder: Path, patience_seconds: float = PATIENCE_SECONDS) -> None:
        """Raises ConfigError, naming host and process, where another one holds it for longer than the patience."""
        try:
            self._file: int | None = os.open(folder / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigError(
                f"save is {folder}, whose {NAME} cannot be opened ({error.strerror}).\n"
                "Fix: see whose it is and delete it, or give another --save."
            ) from None
        deadline = time.monotonic() + patience_seconds
        while not self._taken(folder):
            if time.monotonic() >= deadline:
                holder = _described(os.pread(self._file, 1000, 0))
                os.close(self._file)
                raise ConfigError(
                    f"save is {folder}, where another run is at work{holder}.\n"
                    "Fix: wait for it or stop it, or give another --save."
                )
            time.sleep(0.1)
        owner = {"host": os.uname().nodename, "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        with suppress(OSError):  # a full disk: it is locked all the same, and what is written next says what is wrong
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, json.dumps(owner).encode(), 0)

    def release(self) -> None:
        """Let others in; safe to call twice."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _taken(self, folder: Path) -> bool:
        assert self._file is not None
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                logger.info(f"warning: the file system of {folder} has no locks: see that no other run uses it")
                return True
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise
        return True


def _described(content: bytes) -> str:
    try:
        owner = json.loads(content)
        return f" (host {owner['host']}, process {owner['pid']}, since {owner['since']})"
    except (ValueError, KeyError, TypeError):
        return ""

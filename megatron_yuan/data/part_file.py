"""A file in the making: under a hidden name, hashed as it grows, and cut back where work goes on."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from pathlib import Path
from typing import BinaryIO

from megatron_yuan.data.journal import hidden
from megatron_yuan.errors import DataError

PATIENCE_SECONDS = 2.0  # workers of a run that was killed outright hold its files until they notice


class PartFile:
    """What will be `path`, of which `size` bytes are kept, with that `sha256`. One process alone may have it open."""

    def __init__(self, path: Path, size: int = 0, sha256: str = "") -> None:
        self.path, self.part = path, hidden(path)
        deadline = time.monotonic() + PATIENCE_SECONDS
        self._file = self._opened(deadline)
        try:
            self._digest = hashlib.sha256()
            self._keep(size, sha256)
        except BaseException:
            self._file.close()
            raise

    def write(self, data: bytes | memoryview) -> None:
        """Append. Raises OSError."""
        self._digest.update(data)
        self._file.write(data)

    def sync(self) -> None:
        """Wait until all is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._file.tell()

    @property
    def sha256(self) -> str:
        """Of all bytes so far."""
        return self._digest.hexdigest()

    def close(self) -> None:
        """Let go of the file; it stays as it is."""
        with contextlib.suppress(OSError):  # the disk is full: what could not be written is not counted on
            self._file.close()

    def _opened(self, deadline: float) -> BinaryIO:
        while True:
            file = open(self.part, "a+b")  # noqa: SIM115  (closed with this)
            try:
                self._lock(file, deadline)
                # While this waited, who had it may have given it its final name, or removed it.
                if self.part.exists() and os.path.samestat(os.fstat(file.fileno()), self.part.stat()):
                    return file
            except BaseException:
                file.close()
                raise
            file.close()

    def _lock(self, file: BinaryIO, deadline: float) -> None:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(0.05)
                    continue
                raise DataError(
                    f"output {self.path} is being made by another process. Fix: another --output-prefix, or wait for "
                    "it."
                ) from None
            except OSError:
                return  # a file system without locks

    def _keep(self, size: int, sha256: str) -> None:
        if os.fstat(self._file.fileno()).st_size < size:
            raise self._other("is shorter than")
        self._file.truncate(size)
        self._file.seek(0)
        while block := self._file.read(2**20):
            self._digest.update(block)
        self._file.seek(0, os.SEEK_END)
        if size and self.sha256 != sha256:
            raise self._other("is not what")

    def _other(self, how: str) -> DataError:
        return DataError(
            f"{self.part} {how} the journal of its run says. Fix: begin anew, with --overwrite and without --resume."
        )

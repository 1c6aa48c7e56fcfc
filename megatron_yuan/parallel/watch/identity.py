"""Which process on which host a rank is, precisely enough to kill it and nobody else."""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Identity:
    """A process: a number alone may have been given to another since, and mean another in another container."""

    host: str
    place: tuple[str, ...]
    """Equal for processes that can see each other's numbers: boot of the host, namespaces of processes and network."""
    pid: int
    started: str
    """Start of the process in clock ticks since boot; '' where the system does not say."""

    @classmethod
    def here(cls) -> Identity:
        """The calling process."""
        boot = _text("/proc/sys/kernel/random/boot_id").strip()
        namespaces = [_link(f"/proc/self/ns/{kind}") for kind in ("pid", "net")]
        return cls(socket.gethostname(), (boot, *namespaces), os.getpid(), _started(os.getpid()))

    def beside(self, other: Identity) -> bool:
        """Whether both run on one host and may signal each other."""
        return (self.host, self.place) == (other.host, other.place)

    def __str__(self) -> str:
        """For messages."""
        return f"host {self.host}, process {self.pid}"

    def kill(self) -> bool:
        """SIGKILL the process, which must be `beside` the caller; False where it is not there any more."""
        if not self.started or _started(self.pid) != self.started:
            return False
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True


def _started(pid: int) -> str:
    # proc(5): the 22nd field; the 2nd is the program's name in parentheses, which may hold spaces and parentheses.
    fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 else ""


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""

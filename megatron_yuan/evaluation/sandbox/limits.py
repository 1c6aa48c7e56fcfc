"""What a program may use, and what keeps it there."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Of one program and its tests."""

    seconds: float = 10.0
    """From start to verdict."""
    memory_bytes: int = 2**30
    """Address space of each of the two processes."""
    file_bytes: int = 2**20
    """One file."""
    folder_bytes: int = 2**24
    """All files in the program's folder."""
    reply_bytes: int = 2**22
    """One answer of the program to its tests."""


@dataclass(frozen=True)
class Isolation:
    """Layers that this machine has. Limits on time, memory, files and output hold without any of them."""

    namespaces: bool = True
    """Processes, network, mounts and System V memory of its own; all files but its folder's are read-only."""
    user: bool = True
    """The user `nobody`, where root evaluates."""
    landlock: bool = True
    """The kernel opens only Python's own files and the program's folder."""
    seccomp: bool = True
    """No new processes, sockets, signals to others, or changes of other files' rights."""

    def __str__(self) -> str:
        layers = {
            "namespaces": "namespaces of their own",
            "user": "the user nobody",
            "landlock": "Landlock (no files but Python's own)",
            "seccomp": "seccomp (no new processes, network, signals)",
        }
        had = [text for name, text in layers.items() if getattr(self, name)]
        lacking = [text for name, text in layers.items() if not getattr(self, name)]
        text = "within limits of time, memory, files and output; " + (", ".join(had) or "nothing else")
        return f"{text}; not to be had here: {', '.join(lacking)}" if lacking else text


@dataclass(frozen=True)
class Verdict:
    """Of one program."""

    passed: bool
    reason: str
    """In a few words."""

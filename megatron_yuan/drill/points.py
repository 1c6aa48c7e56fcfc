"""Every moment at which a process changes what is on the disk below a folder, made visible from within the process.

A point is a call and what it is done to, such as `fsync iter.tmp/model/embedding.safetensors`: numbers of steps and
random endings are left out, so that it has the same name in every save. The program under test knows nothing of this:
the functions of `os` and `open` are replaced before it is loaded.
"""

from __future__ import annotations

import builtins
import io
import os
import re
import shutil  # noqa: F401  # looks at os's functions when it is imported: they must still be the real ones
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

When = Literal["before", "midway", "after"]
_PATH_CALLS = ("mkdir", "unlink", "remove", "rmdir", "truncate")
_MOVES = ("rename", "replace", "link", "symlink")
_NUMBER = re.compile(r"iter_\d+")
_TOKEN = re.compile(r"\.(tmp|old|damaged)-[0-9a-f]+")
_WRITING = os.O_WRONLY | os.O_RDWR


class WritePoints:
    """Calls `act(when, point)` before and after each, and halfway through each write of a file of bytes."""

    def __init__(self, root: Path, act: Callable[[When, str], None]) -> None:
        self.root, self.act, self.moved = os.path.realpath(root), act, ""

    def install(self) -> None:
        """Replace the functions, for the rest of this process's life."""
        for name in _PATH_CALLS:
            setattr(os, name, self._around(name, getattr(os, name), self._point_of_path))
        for name in _MOVES:
            setattr(os, name, self._around(name, getattr(os, name), self._point_of_move))
        for name in ("fsync", "fdatasync"):
            setattr(os, name, self._around(name, getattr(os, name), self._point_of_descriptor))
        os.open = self._around("open", os.open, self._point_of_opening)
        builtins.open = io.open = self._opening(io.open)  # pathlib takes io's

    def _around(self, name: str, real: Callable, point_of: Callable[..., str | None]) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            point = point_of(name, *args, **kwargs)
            if point is None:
                return real(*args, **kwargs)
            self.act("before", point)
            result = real(*args, **kwargs)
            self.act("after", point)
            return result

        return call

    def _opening(self, real: Callable) -> Callable:
        def call(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            inside = None if isinstance(file, int) or not set(mode) & set("wxa+") else self._inside(file)
            if inside is None:
                return real(file, mode, *args, **kwargs)
            self.act("before", f"open {inside}")
            if mode in ("wb", "xb") and not args and not kwargs:
                opened: Any = _Torn(io.FileIO(file, mode[0]), lambda: self.act("midway", f"write {inside}"))
            else:
                opened = real(file, mode, *args, **kwargs)
            self.act("after", f"open {inside}")
            return opened

        return call

    def _inside(self, path: Any, dir_fd: int | None = None) -> str | None:
        """Name of a path below the root, the same in every save; None for one elsewhere."""
        text = os.fsdecode(path)
        if dir_fd is not None:
            text = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), text)
        folder, name = os.path.split(os.path.abspath(text))
        full = os.path.join(os.path.realpath(folder), name)
        if full != self.root and not full.startswith(self.root + os.sep):
            return None
        return _TOKEN.sub(r".\1", _NUMBER.sub("iter", os.path.relpath(full, self.root)))

    def _point_of_path(self, call: str, path: Any, *_: Any, dir_fd: int | None = None, **__: Any) -> str | None:
        inside = None if isinstance(path, int) else self._inside(path, dir_fd)
        return None if inside is None else f"{call} {inside}"

    def _point_of_move(self, call: str, source: Any, target: Any, **_: Any) -> str | None:
        inside = self._inside(target)
        if inside is None:
            return None
        self.moved = f"{call} {self._inside(source) or source} -> {inside}"
        return self.moved

    def _point_of_descriptor(self, call: str, file: Any) -> str | None:
        number = file if isinstance(file, int) else file.fileno()
        inside = self._inside(os.readlink(f"/proc/self/fd/{number}"))
        if inside == ".":
            return f"{call} . with {self.moved}"
        return None if inside is None else f"{call} {inside}"

    def _point_of_opening(self, call: str, path: Any, flags: int, *_: Any, **where: Any) -> str | None:
        return self._point_of_path(call, path, **where) if flags & _WRITING else None


class _Torn(io.BufferedWriter):
    """A file of bytes, each write of which can be broken off when half of it is in the file."""

    def __init__(self, raw: io.FileIO, midway: Callable[[], None]) -> None:
        super().__init__(raw)
        self._midway = midway

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        half = len(view) // 2
        super().write(view[:half])
        if half:
            self.flush()
            self._midway()
        super().write(view[half:])
        return len(view)

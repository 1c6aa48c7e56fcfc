"""Where the threads of this process stand: appended to a file of the run folder, or to stderr where there is none."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO


class Stacks:
    """Of one rank. Files may be on a file system that hangs, so none of this may be waited for without a limit."""

    def __init__(self, run_folder: Path | None, rank: int) -> None:
        self.file = None if run_folder is None else run_folder / "stacks" / f"rank_{rank:05d}.txt"
        self.where = "on stderr" if run_folder is None else f"in {run_folder / 'stacks'}"
        """For messages."""
        self._rank = rank

    def dump(self, occasion: str, last_error: str = "", aloud: bool = True) -> None:
        """Append all threads' stacks under a headline, after the traceback of an error that the training thread met.

        `aloud`: on stderr where the file cannot be written.
        """
        headline = f"rank {self._rank}, process {os.getpid()}, {time.strftime('%Y-%m-%d %H:%M:%S')}: {occasion}\n"
        if self.file is not None:
            try:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                with open(self.file, "a", encoding="utf-8") as file:
                    self._write(file, headline + last_error)
                return
            except OSError as error:
                if not aloud:
                    return
                headline += f"({self.file} cannot be written: {error.strerror})\n"
        self._write(sys.stderr, headline + last_error)

    @staticmethod
    def _write(file: IO[str], text: str) -> None:
        file.write(text)
        file.flush()
        faulthandler.dump_traceback(file=file, all_threads=True)
        file.write("\n")
        file.flush()


def within(seconds: float, action: Callable[[], object]) -> bool:
    """Run `action` in a thread of its own, and wait for it so long at most; whether it came through."""
    outcome = []

    def run() -> None:
        action()
        outcome.append(True)

    thread = threading.Thread(target=run, name="watch-helper", daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(outcome)

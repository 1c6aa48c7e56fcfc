"""Several files at once, on threads: hashing and the system's reads and writes let go of Python's lock.

While one thread waits for the disk another hashes, so that neither the disk nor the cores stand idle.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")

SAY_EVERY = 10.0  # seconds between lines of progress; what is done sooner needs none
_MOST_THREADS = 8

log = logging.getLogger(__name__)


class Stopped(Exception):
    """The work was called off."""


class Progress:
    """Bytes done of bytes in all, counted by many threads, who learn here too that they should stop."""

    def __init__(self, what: str, total: int, alive: Callable[[], None] | None = None) -> None:
        """`alive` is called every SAY_EVERY seconds in which something was done."""
        self.what, self.total, self.done, self.counts = what, total, 0, 0
        self._alive, self._said = alive, 0
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._begun = time.monotonic()

    def count(self, nbytes: int) -> None:
        """So many more; raises Stopped where the work was called off."""
        if self._stopped.is_set():
            raise Stopped
        with self._lock:
            self.done += nbytes
            self.counts += 1

    def say(self) -> None:
        """Say how things stand."""
        log.info("%s", self)
        if self._alive is not None and self.done > self._said:
            self._alive()
        self._said = self.done

    def stop(self) -> None:
        """Call the work off: each thread ends at its next count."""
        self._stopped.set()

    @property
    def stopped(self) -> bool:
        """Whether it was called off."""
        return self._stopped.is_set()

    def __str__(self) -> str:
        seconds = max(1e-9, time.monotonic() - self._begun)
        rate = f"{self.done / seconds / 1e9:.2f} GB/s"
        if self.done >= self.total:
            return f"{self.what}: all {self.total / 1e9:.2f} GB handed over, {rate}; waiting for the disk"
        return f"{self.what}: {self.done / 1e9:.2f} of {self.total / 1e9:.2f} GB, {rate}"


def writing_threads() -> int:
    """Twice as many: a file's last wait for the disk should not keep a core from the next file."""
    return 2 * thread_count()


def thread_count() -> int:
    """Threads for one rank's files: its share of the host's cores, at least 2, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(2, min(_MOST_THREADS, cores // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))))


def on_threads(work: Mapping[str, Callable[[], T]], progress: Progress, threads: int | None = None) -> dict[str, T]:
    """Do all of `work`, begun in its order, on `thread_count()` threads; returns results under the same names.

    The first failure stops the rest and is raised when they have ended. Progress is said every SAY_EVERY seconds.
    """
    with ThreadPoolExecutor(threads or thread_count(), thread_name_prefix="checkpoint") as pool:
        futures = {name: pool.submit(each) for name, each in work.items()}
        try:
            while True:
                done, waiting = wait(futures.values(), SAY_EVERY, FIRST_EXCEPTION)
                failure = next((each.exception() for each in done if each.exception() is not None), None)
                if failure is not None:
                    raise failure
                if not waiting:
                    return {name: each.result() for name, each in futures.items()}
                progress.say()
        except BaseException:
            progress.stop()
            for each in futures.values():
                each.cancel()
            raise

"""Why a session should end before its run does: a signal or a time limit, agreed by all ranks at the same step.

A signal reaches ranks at different moments, or one of them alone. Each rank votes in a sum over all ranks that every
batch makes anyway, so all see the same votes after the same batch, and it costs no collective of its own.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, signal.SIGQUIT)
"""Of the launcher or the cluster, of the keyboard, of Slurm (--signal=USR1@SECONDS) before its time limit, of a
terminal that is closed, and of the keyboard again."""
REASONS = (*(each.name for each in SIGNALS), "exit-duration-in-mins")
_INTERRUPTED = 130  # as shells report a program that SIGINT ended


class Stopping:
    """As a context manager it takes the signals in; `votes` and `verdict` are the two ends of the agreement.

    A second SIGINT ends the process at once, with what was being written lost and all durable checkpoints intact.
    """

    def __init__(self, exit_duration_in_mins: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """The duration counts from here on, so make it first thing. None: no limit."""
        self._clock = clock
        self._deadline = None if exit_duration_in_mins is None else clock() + 60 * exit_duration_in_mins
        self._received: list[signal.Signals] = []
        self._former: dict[signal.Signals, Any] = {}
        self._process = os.getpid()

    def votes(self) -> list[float]:
        """This rank's, one number for each of REASONS."""
        late = self._deadline is not None and self._clock() >= self._deadline
        return [*(float(each in self._received) for each in SIGNALS), float(late)]

    @staticmethod
    def verdict(votes: Sequence[float]) -> str | None:
        """The reason to stop in a sum of votes, None to go on."""
        return next((reason for reason, count in zip(REASONS, votes, strict=True) if count), None)

    def __enter__(self) -> Stopping:
        for each in SIGNALS:
            if each == signal.SIGHUP and signal.getsignal(each) == signal.SIG_IGN:
                continue  # nohup: the run is to outlive its terminal
            self._former[each] = signal.signal(each, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for each, handler in self._former.items():
            signal.signal(each, handler)
        self._former.clear()

    def _receive(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a data worker, forked with this handler: the signal to the whole group is the trainer's to heed
        received = signal.Signals(number)
        if signal.SIGINT in self._received and (received == signal.SIGINT or _second_interrupt_of_torchrun(received)):
            os._exit(_INTERRUPTED)
        self._received.append(received)
        if os.environ.get("RANK", "0") == "0":
            again = "; again ends at once" if received == signal.SIGINT else ""
            words = f"{received.name}: stopping after this step, with a checkpoint{again}\n"
            # Not through the logger: a handler may run while the main thread holds the logger's lock. And whoever read
            # stderr may be gone, ended by the same signal.
            with suppress(OSError):
                os.write(sys.stderr.fileno(), words.encode())


def _second_interrupt_of_torchrun(received: signal.Signals) -> bool:
    """torchrun passes the first SIGINT on as it is; when a second breaks off its wait, it sends SIGTERM instead."""
    return received == signal.SIGTERM and "TORCHELASTIC_RUN_ID" in os.environ

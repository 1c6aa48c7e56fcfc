"""The errors a user can cause. Each names the setting, its value, the rule and the fix, in one or two lines.

A command line prints a `YuanError` as its message alone and exits with its code; anything else is a bug and shows its
traceback.
"""

from __future__ import annotations

import io
import os
import select
import sys
import time
from collections.abc import Callable

LAST_WORD_SECONDS = 3.0


class YuanError(Exception):
    """Base of every error that is the user's to mend."""

    exit_code = 2
    found_by_all = True
    """All ranks find it, so one says it."""


class ConfigError(YuanError, ValueError):
    """A setting, or a combination of settings, that cannot work."""


class DataError(YuanError):
    """Input text, an indexed dataset or a tokenizer that is missing, damaged or does not match."""


class CheckpointError(YuanError):
    """A checkpoint or a weight folder that is missing, damaged, or of another model."""


class ParallelError(YuanError):
    """A layout of processes that does not match the configuration."""


class PeerError(ParallelError):
    """Another process of the run is dead, stands still or has failed; nothing to mend, so another start may go on.

    Unless it `recurs`: the other failed by what another start would meet again.
    """

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again
    found_by_all = False

    def __init__(self, words: str, recurs: bool = False) -> None:
        super().__init__(words)
        self.recurs = recurs
        if recurs:
            self.exit_code = YuanError.exit_code


class ReplicaError(ParallelError):
    """Replicas that should be the same to the bit are not; another start goes on from where they last agreed."""

    exit_code = 75


class TrainingError(YuanError):
    """A run whose numbers went wrong, and would again: a human has to look."""

    exit_code = 3


def will_recur(error: BaseException) -> bool:
    """Whether another start would meet `error` again: a setting, the data, numbers, memory; not other processes."""
    if isinstance(error, PeerError):
        return error.recurs
    return isinstance(error, YuanError) and not isinstance(error, ParallelError)


def run_command_line(main: Callable[[], int | None]) -> None:
    """Run `main` as a program: a `YuanError` becomes its message on stderr and its exit code; a bug its traceback.

    Letters that standard output cannot show are escaped on it; where it fails, that is said.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            code = main()
        except SystemExit as ending:  # argparse's, after --help
            code = ending.code
        print(end="", flush=True)  # what fails at the interpreter's last flush cannot be caught
    except YuanError as error:
        if os.environ.get("RANK", "0") != "0" and error.found_by_all:
            # Once the first has said it and ended, the launcher ends the others.
            time.sleep(LAST_WORD_SECONDS)
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except OSError as error:
        left = isinstance(error, BrokenPipeError) and _reader_has_left()
        if not left and not _output_fails():
            raise
        # End as quietly as a program killed by SIGPIPE, or after a sentence, the interpreter's last flush included.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if left:
            raise SystemExit(141) from None
        print(
            f"error: standard output cannot be written ({error.strerror}), so its end is missing. Fix: free space for "
            "it, or send it elsewhere.",
            file=sys.stderr,
        )
        raise SystemExit(YuanError.exit_code) from None
    raise SystemExit(code or 0)


def _reader_has_left() -> bool:
    """Whether our output is a pipe that nobody reads any more (`| head`); a worker's broken pipe is another matter."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _output_fails() -> bool:
    """Whether it is our output that cannot be written, which an empty line tells; another file is another matter."""
    try:
        print(flush=True)
    except OSError:
        return True
    return False

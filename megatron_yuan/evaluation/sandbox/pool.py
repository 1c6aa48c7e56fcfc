"""Programs through their keepers, a few at a time, in the strictest isolation that this machine has."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from megatron_yuan.errors import ConfigError
from megatron_yuan.evaluation.sandbox.limits import Isolation, Limits, Verdict

GRACE = 15.0
"""Seconds beyond a program's own limit until its keeper is given up."""


class Program(NamedTuple):
    """A task of HumanEval with a model's answer."""

    prompt: str
    """Signature and docstring, with any helpers before them; the tests may use these."""
    program: str
    """The whole program."""
    test: str
    entry_point: str


HARMLESS = Program(
    "def double(x):\n    pass\n",
    "import math, collections, re, heapq, itertools, datetime, random\ndef double(x):\n    return 2 * x\n",
    "def check(candidate):\n    assert candidate(21) == 42\n",
    "double",
)


def run_all(
    programs: Sequence[Program], limits: Limits | None = None, isolation: Isolation | None = None
) -> tuple[list[Verdict], str]:
    """The verdict on each, and the isolation that was to be had in words.

    ConfigError where not even a harmless program runs.
    """
    limits = limits or Limits()
    isolation = isolation or strictest()
    # Half the processors: what is slow because others are at work should not fail for it.
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 2) // 2)) as pool:
        return list(pool.map(partial(run, limits=limits, isolation=isolation), programs)), str(isolation)


def strictest() -> Isolation:
    """Every layer in which a harmless program still runs: those that it does not survive are left out.

    Never left out is what limits the number of processes: seccomp, or a user other than root, whose the kernel counts.
    """
    reasons, root = [], os.getuid() == 0
    for namespaces, user, landlock, seccomp in (
        (True, True, True, True),
        (True, False, True, True),
        (True, True, False, True),
        (True, False, False, True),
        (False, True, True, True),
        (False, False, True, True),
        (False, False, False, True),
        (True, root, True, False),
        (True, root, False, False),
        (False, root, True, False),
        (False, root, False, False),
    ):
        tried = Isolation(namespaces, user, landlock, seccomp)
        if user and not root:
            continue
        verdict = run(HARMLESS, Limits(), tried)
        if verdict.passed:
            return tried
        reasons.append(verdict.reason)
    raise ConfigError(
        f"not even a harmless program can be run here ({reasons[-1]}); leave HumanEval out, or try as another user."
    )


def run(program: Program, limits: Limits, isolation: Isolation) -> Verdict:
    """One program, in a folder of its own that is gone afterwards."""
    here = Path(__file__).parent
    folder = tempfile.mkdtemp(prefix="program-")
    if isolation.user:
        os.chmod(folder, 0o777)
    python = getattr(sys, "_base_executable", None) or sys.executable
    job = {
        **program._asdict(),
        **dataclasses.asdict(limits),
        "isolation": dataclasses.asdict(isolation),
        "folder": folder,
        "python": python,
        "inside": (here / "inside.py").read_text(encoding="utf-8"),
    }
    keeper = subprocess.Popen(
        [python, "-I", "-S", "-B", str(here / "keeper.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env={"LANG": "C.UTF-8"},
        text=True,
        encoding="utf-8",
    )
    try:
        answer, trouble = keeper.communicate(json.dumps(job) + "\n", timeout=limits.seconds + GRACE)
        found = json.loads(answer)
        # Half a surrogate pair, which an error of the program may have for its text, could not be written to a file.
        reason = str(found["reason"])[:300].encode("utf-8", "backslashreplace").decode()
        return Verdict(found["passed"] is True, reason)
    except subprocess.TimeoutExpired:
        return Verdict(False, "timed out")
    except (ValueError, KeyError, TypeError):
        return Verdict(False, f"isolation failed: {trouble.strip()[-200:]}")
    finally:
        if keeper.poll() is None:
            keeper.kill()
        keeper.wait()
        remove(folder)


def remove(folder: str) -> None:
    """Remove `folder` and what it holds, as far as it can be: step by step, for a program may have made it deeper than
    recursion, descriptors or a path's length reach. Folders inside are moved up before they are gone through."""
    if os.path.islink(folder):  # put in its place, to have something else removed
        os.unlink(folder)
        return
    name, number = f"{secrets.token_hex(8)}-", itertools.count()
    pending = [folder]
    while pending:
        here = pending.pop()
        with contextlib.suppress(OSError):
            os.chmod(here, 0o700)
            for entry in list(os.scandir(here)):
                with contextlib.suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        os.chmod(entry.path, 0o700)  # to be moved, it has to be writable
                        pending.append(os.path.join(folder, f"{name}{next(number)}"))
                        os.rename(entry.path, pending[-1])
                    else:
                        os.unlink(entry.path)
        if here != folder:
            with contextlib.suppress(OSError):
                os.rmdir(here)
    with contextlib.suppress(OSError):
        os.rmdir(folder)

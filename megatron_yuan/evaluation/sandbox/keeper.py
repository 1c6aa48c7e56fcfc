"""One program's keeper: a process that shuts two others in, waits for the verdict, and leaves none behind.

Run as `python -I -S keeper.py`, with the job as a line of JSON on stdin; answers with a line on stdout. Imports nothing
of the package: it starts in milliseconds, once for each program.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import sys
import sysconfig
import time
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import kernel  # type: ignore[import-not-found]

LINE = 4096  # a verdict's most bytes


def main() -> None:
    """Read the job, have it run, tell."""
    kernel.prctl(kernel.PDEATHSIG, signal.SIGKILL)
    job = json.loads(sys.stdin.readline())
    layers = job["isolation"]
    kernel.prctl(kernel.SET_SUBREAPER, 1)
    if layers["namespaces"]:
        kernel.new_namespaces(with_user=os.getuid() != 0)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        # In a process namespace of its own this is process 1: with it everything in there ends.
        os.close(reading)
        kernel.prctl(kernel.PDEATHSIG, signal.SIGKILL)
        code = 1
        try:
            found = watch(job)
            os.write(writing, json.dumps(found).encode())
            code = 0
        except OSError as error:
            os.write(writing, json.dumps({"passed": False, "reason": f"isolation failed: {error}"}).encode())
        finally:
            os._exit(code)
    os.close(writing)
    ready, _, _ = select.select([reading], [], [], job["seconds"] + 5)
    answer = os.read(reading, LINE) if ready else b""
    end_all(child)
    print(answer.decode() or json.dumps({"passed": False, "reason": "timed out" if not ready else "ended early"}))


def watch(job: dict[str, Any]) -> dict[str, Any]:
    """Start the program and its tests, and wait for the verdict, the end or the time limit."""
    folder = job["folder"]
    if job["isolation"]["namespaces"]:
        kernel.only_folder_writable(folder, job["folder_bytes"])
    calls, answers, verdicts, given = os.pipe(), os.pipe(), os.pipe(), os.pipe()
    null = os.open(os.devnull, os.O_RDWR)
    tests = start("tests", job, folder, given[0], {3: answers[0], 4: calls[1], 5: verdicts[1]})
    program = start("program", job, folder, null, {3: calls[0], 4: answers[1]})
    feed = {name: job[name] for name in ("prompt", "test", "entry_point")}
    first = {name: job[name] for name in ("program", "entry_point")}
    for pair, ours, message in ((given, 1, feed), (calls, 1, first)):
        write(pair[ours], json.dumps(message).encode() + b"\n", job["seconds"])
    for each in (*calls, *answers, *given, null, verdicts[1]):
        os.close(each)
    deadline = time.monotonic() + job["seconds"]
    found: dict[str, Any] = {"passed": False, "reason": "timed out"}
    while (left := deadline - time.monotonic()) > 0:
        ready, _, _ = select.select([verdicts[0]], [], [], min(left, 0.05))
        if ready:
            line = os.read(verdicts[0], LINE)
            found = json.loads(line) if line else {"passed": False, "reason": "its tests ended early"}
            break
        if not job["isolation"]["namespaces"] and folder_size(folder) > job["folder_bytes"]:
            found["reason"] = "wrote too much"
            break
    for process in (program, tests):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    return found


def start(role: str, job: dict[str, Any], folder: str, stdin: int, descriptors: dict[int, int]) -> int:
    """One of the two, shut in."""
    process = os.fork()
    if process:
        return process
    try:
        os.setsid()
        kernel.prctl(kernel.PDEATHSIG, signal.SIGKILL)
        null = os.open(os.devnull, os.O_RDWR)
        # First out of the way of the numbers they will have.
        moved = {number: os.dup2(at, 100 + number, inheritable=False) for number, at in descriptors.items()}
        at_hand = os.dup2(stdin, 100, inheritable=False)
        for number, at in {**moved, 0: at_hand, 1: null, 2: null}.items():
            os.dup2(at, number, inheritable=True)
        os.closerange(6 if 5 in descriptors else 5, 256)
        os.chdir(folder)
        shut_in(job, folder)
        kernel.prctl(kernel.PDEATHSIG, signal.SIGKILL)  # gone with a change of user
        arguments = [job["python"], "-I", "-S", "-B", "-c", job["inside"], role, str(job["reply_bytes"])]
        os.execve(job["python"], arguments, {"LANG": "C.UTF-8", "TMPDIR": folder, "HOME": folder})
    except OSError as error:
        if 5 in descriptors:
            os.write(5, json.dumps({"passed": False, "reason": f"isolation failed: {error}"}).encode())
    finally:
        os._exit(70)


def shut_in(job: dict[str, Any], folder: str) -> None:
    """All layers, from the outermost."""
    layers = job["isolation"]
    kernel.set_limits(job["seconds"], job["memory_bytes"], job["file_bytes"])
    kernel.prctl(kernel.NO_NEW_PRIVS, 1)
    if layers["landlock"]:
        kernel.landlock_files(python_files(job["python"]), [folder, os.devnull])
    if os.getuid() == 0:  # of this machine, or of the user namespace alone
        kernel.drop_rights(to_nobody=layers["user"])
    kernel.no_more_processes()
    if layers["seccomp"]:
        kernel.forbid_calls()


def python_files(python: str) -> list[str]:
    """What an interpreter opens to start and to import its standard library."""
    own = [os.path.realpath(python), python, sys.base_prefix, sys.base_exec_prefix, sysconfig.get_path("stdlib")]
    system = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo", "/etc/ld.so.cache"]
    return [*own, *system, "/dev/null", "/dev/zero", "/dev/urandom"]


def write(descriptor: int, data: bytes, seconds: float) -> None:
    """All of it, unless nobody reads for too long."""
    os.set_blocking(descriptor, False)
    view, deadline = memoryview(data), time.monotonic() + seconds
    while view and time.monotonic() < deadline:
        _, ready, _ = select.select([], [descriptor], [], 0.1)
        if ready:
            try:
                view = view[os.write(descriptor, view) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                break
    os.set_blocking(descriptor, True)


def folder_size(folder: str) -> int:
    """Bytes of all files in it, each counted as a block at least; endless where it is too deep to be gone through."""
    total = 0
    try:
        for path, folders, names in os.walk(folder, onerror=_too_deep):
            total += 4096 * len(folders)
            for name in names:
                with contextlib.suppress(OSError):
                    total += max(4096, os.lstat(os.path.join(path, name)).st_size)
    except RecursionError:
        return sys.maxsize
    return total


def _too_deep(error: OSError) -> None:
    if error.errno == errno.ENAMETOOLONG:
        raise RecursionError


def end_all(child: int) -> None:
    """Kill `child` and whatever came from it: what lost its parent has become ours."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            done, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if done == 0:
            for process in children():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.005)


def children() -> list[int]:
    """Processes whose parent this one is."""
    with contextlib.suppress(OSError), open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
        return [int(each) for each in file.read().split()]
    return []


if __name__ == "__main__":
    main()

"""The kernel's own means to shut a process in, called by their numbers: Python has no functions for them.

man pages: unshare(2), mount(2), mount_setattr(2), landlock(7), seccomp(2), prctl(2), capabilities(7). Each function
raises OSError where the kernel refuses.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
from collections.abc import Sequence

LIBC = ctypes.CDLL(None, use_errno=True)

NEW_NAMESPACES = (
    0x00020000 | 0x08000000 | 0x20000000 | 0x40000000 | 0x04000000
)  # mounts, IPC, processes, network, names
NEW_USER = 0x10000000
PDEATHSIG, SET_SECCOMP, CAPBSET_DROP, SET_SUBREAPER, NO_NEW_PRIVS = 1, 22, 24, 36, 38
READ_ONLY, NO_SUID, NO_DEVICES, NO_EXEC, RECURSIVE, PRIVATE = 1, 2, 4, 8, 16384, 1 << 18
NOBODY = 65534


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def prctl(option: int, value: int = 0, pointer: object = None) -> None:
    """prctl(2)."""
    _checked(LIBC.prctl(option, ctypes.c_ulong(value), pointer, 0, 0), f"prctl {option}")


def new_namespaces(with_user: bool) -> None:
    """Children get processes, network, mounts and names of their own; `with_user`: without root's rights."""
    uid, gid = os.getuid(), os.getgid()
    _checked(LIBC.unshare(NEW_NAMESPACES | (NEW_USER if with_user else 0)), "unshare")
    if with_user:
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)


def mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    """mount(2)."""
    encoded = kind.encode() if kind else None
    _checked(LIBC.mount(source.encode(), target.encode(), encoded, ctypes.c_ulong(flags), data.encode()), "mount")


def only_folder_writable(folder: str, size: int) -> None:
    """In a mount namespace: nothing can be written but `folder`, which is empty and holds `size` bytes; no /proc."""
    mount("none", "/", None, RECURSIVE | PRIVATE)
    attributes = struct.pack("QQQQ", READ_ONLY | NO_SUID, 0, 0, 0)
    at_cwd, recursive, mount_setattr = -100, 0x8000, 442
    _checked(LIBC.syscall(mount_setattr, at_cwd, b"/", recursive, attributes, len(attributes)), "mount_setattr")
    flags = NO_SUID | NO_DEVICES | NO_EXEC
    mount("tmpfs", "/proc", "tmpfs", flags | READ_ONLY, "size=4k")
    mount("tmpfs", folder, "tmpfs", flags, f"size={size},nr_inodes=1024,mode=0777")


def drop_rights(to_nobody: bool) -> None:
    """No capability now nor after exec; `to_nobody`: another user too."""
    capability = 0
    while LIBC.prctl(CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) == 0:
        capability += 1
    if to_nobody:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    prctl(NO_NEW_PRIVS, 1)
    header, nothing = struct.pack("Ii", 0x20080522, 0), bytes(24)
    _checked(LIBC.capset(header, nothing), "capset")


def set_limits(seconds: float, memory: int, file_size: int) -> None:
    """Of this process and those it starts."""
    cpu = int(seconds) + 1
    values = {
        resource.RLIMIT_CPU: cpu,
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_FSIZE: file_size,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_STACK: 2**23,
    }
    for name, value in values.items():
        hard = resource.getrlimit(name)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (value, value))


def no_more_processes() -> None:
    """Of this user, whose processes the kernel counts all told, this one starts none. Root's are not counted.

    After any change of user, which would let the limit forbid exec too.
    """
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))


def landlock_files(readable: Sequence[str], writable: Sequence[str]) -> None:
    """From here on only these files and folders can be opened, and no port be bound or connected to."""
    create, add, restrict = 444, 445, 446
    version = _checked(LIBC.syscall(create, None, ctypes.c_size_t(0), 1), "landlock")
    every = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    ports, scopes = (3 if version >= 4 else 0), (3 if version >= 6 else 0)
    asked = struct.pack("QQQ", every, ports, scopes)[: 8 if version < 4 else 16 if version < 6 else 24]
    rules = _checked(LIBC.syscall(create, asked, ctypes.c_size_t(len(asked)), 0), "landlock ruleset")
    of_files = 0b0110 | (every & (1 << 14))  # write, read, truncate: what a file can have
    for paths, rights in ((readable, 0b1101), (writable, every & ~1)):
        for path in paths:
            try:
                opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                continue
            allowed = rights if os.path.isdir(path) else rights & (of_files | 1)
            rule = struct.pack("=Qi", allowed, opened)
            _checked(LIBC.syscall(add, rules, 1, rule, 0), f"landlock rule for {path}")
            os.close(opened)
    prctl(NO_NEW_PRIVS, 1)
    _checked(LIBC.syscall(restrict, rules, 0), "landlock")
    os.close(rules)


# Of x86-64, by what they would let a program do.
FORBIDDEN = {
    "new processes": (56, 57, 58, 435),  # clone, fork, vfork, clone3
    "sockets": (41, 42, 43, 44, 46, 47, 49, 50, 53, 288),
    "signals": (62, 129, 200, 234, 297, 424, 434, 438),
    "other processes": (101, 310, 311, 312, 109, 112, 141, 142, 144, 203, 251, 314, 302),
    "memory that no limit counts": (29, 30, 64, 68, 240, 319, 323, 447),
    "mounts and namespaces": (155, 161, 165, 166, 272, 308, 303, 304, 428, 429, 430, 431, 432, 433, 442),
    "rights and times of files": (
        76,
        90,
        91,
        92,
        93,
        94,
        132,
        188,
        189,
        190,
        197,
        198,
        199,
        235,
        260,
        261,
        268,
        280,
        452,
    ),
    "the machine": (159, 162, 163, 164, 167, 168, 169, 170, 171, 172, 173, 175, 176, 246, 306, 313, 320),
    "the kernel's inside": (103, 135, 248, 249, 250, 298, 300, 321, 425, 426, 427),
}
GETS_OWN_LIMITS = 302
"""prlimit64 with process 0: the C library asks for its own stack's size."""
FCNTL, NAMES_A_PROCESS = 72, (8, 10, 15)
"""F_SETOWN, F_SETSIG, F_SETOWN_EX: a pipe of its own would send any process of the same user any signal."""


def forbid_calls() -> None:
    """From here on a call that could reach beyond the process fails as if the user lacked the right.

    Raises OSError on other processors than x86-64, whose numbers differ.
    """
    if platform.machine() != "x86_64":
        raise OSError(38, f"no list of calls for {platform.machine()}")
    load, jump_equal, jump_above, give = 0x20, 0x15, 0x35, 0x06
    kill, refuse, allow = 0x80000000, 0x00050000 | 1, 0x7FFF0000
    numbers = sorted({each for group in FORBIDDEN.values() for each in group} - {GETS_OWN_LIMITS})
    steps: list[tuple[int, int, int, int]] = [
        (load, 0, 0, 4),  # the processor's name: calls of 32 bits have other numbers
        (jump_equal, 1, 0, 0xC000003E),
        (give, 0, 0, kill),
        (load, 0, 0, 0),  # the call's number
        (jump_above, 0, 1, 0x40000000),  # the x32 calls
        (give, 0, 0, kill),
        (jump_equal, 0, 4, GETS_OWN_LIMITS),
        (load, 0, 0, 16),  # its first argument
        (jump_equal, 1, 0, 0),
        (give, 0, 0, refuse),
        (give, 0, 0, allow),
        (jump_equal, 0, 3 + len(NAMES_A_PROCESS), FCNTL),
        (load, 0, 0, 24),  # its second argument
        *((jump_equal, len(NAMES_A_PROCESS) - i, 0, what) for i, what in enumerate(NAMES_A_PROCESS)),
        (give, 0, 0, allow),
        (give, 0, 0, refuse),
    ]
    for number in numbers:
        steps += [(jump_equal, 0, 1, number), (give, 0, 0, refuse)]
    steps.append((give, 0, 0, allow))
    program = b"".join(struct.pack("HBBI", *step) for step in steps)
    held = ctypes.create_string_buffer(program, len(program))
    filter_ = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(held)))
    prctl(NO_NEW_PRIVS, 1)
    prctl(SET_SECCOMP, 2, filter_)

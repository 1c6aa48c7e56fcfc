"""Two machines on one: network and host names of their own, joined by a cable that can be pulled. Needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


def why_not() -> str | None:
    """Why there can be no second machine here; None where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [tool for tool in ("ip", "unshare") if shutil.which(tool) is None]
    if missing:
        return f"{missing[0]} is not installed (Debian: iproute2, util-linux)"
    probe = f"yuan-probe-{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "del", probe], capture_output=True)
    return None if tried.returncode == 0 else f"no network namespace is to be had: {tried.stderr.strip()}"


@dataclass(frozen=True)
class Node:
    """One of the two."""

    name: str
    space: str
    cable: str
    address: str
    hosts: Path
    """What both have in the place of /etc/hosts: torchrun looks up its host's own name."""

    def command(self, arguments: Sequence[str]) -> list[str]:
        """`arguments` as they run on this machine."""
        inside = ["ip", "netns", "exec", self.space, *arguments]
        own = f'mount --bind {self.hosts} /etc/hosts && hostname {self.name} && exec "$@"'
        return ["unshare", "--uts", "--mount", "sh", "-c", own, "sh", *inside]

    @property
    def environment(self) -> dict[str, str]:
        """For gloo, which would look up its host's name."""
        return {**os.environ, "GLOO_SOCKET_IFNAME": self.cable, "OMP_NUM_THREADS": "1"}


def cable(node: Node, state: str) -> None:
    """Pull the cable ("down"), or put it back ("up")."""
    subprocess.run(["ip", "-n", node.space, "link", "set", node.cable, state], check=True)


@contextmanager
def two_nodes(folder: Path) -> Iterator[tuple[Node, Node]]:
    """Both, gone at the end with all that still runs there; `folder` is for their list of hosts."""
    number, hosts = os.getpid(), folder / "hosts"
    nodes = [
        Node(f"node-{letter}", f"yuan-{letter}-{number}", f"y{letter}{number}", f"10.77.{number % 250}.{place}", hosts)
        for place, letter in enumerate("ab", 1)
    ]
    hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{node.address} {node.name}\n" for node in nodes))
    try:
        for node in nodes:
            subprocess.run(["ip", "netns", "add", node.space], check=True)
        first, second = nodes
        ends = ["netns", first.space, "type", "veth", "peer", "name", second.cable, "netns", second.space]
        subprocess.run(["ip", "link", "add", first.cable, *ends], check=True)
        for node in nodes:
            ip = ["ip", "-n", node.space]
            subprocess.run([*ip, "addr", "add", f"{node.address}/24", "dev", node.cable], check=True)
            subprocess.run([*ip, "link", "set", "lo", "up"], check=True)
            cable(node, "up")
        yield first, second
    finally:
        for node in nodes:
            left = subprocess.run(["ip", "netns", "pids", node.space], capture_output=True, text=True).stdout.split()
            for process in map(int, left):
                os.kill(process, 9)
            subprocess.run(["ip", "netns", "del", node.space], capture_output=True)

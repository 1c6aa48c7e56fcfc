"""Heartbeats between processes: every rank holds one TCP connection to rank 0, and says a line now and then.

Not a store that is polled: the operating system closes the connection of a process that dies, so a death is known at
once; and a client of torch's store that waits for a frozen host waits for ever.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import time
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

CONNECT_SECONDS = 10.0
LONGEST_LINE = 1 << 16
Message = dict[str, Any]


class Heard(NamedTuple):
    """From whom, and what; None: that connection is closed."""

    rank: int
    message: Message | None


class Link:
    """The base, and all that a world of one needs: waiting that another thread can cut short."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._waker, waking = socket.socketpair()
        self._sockets = [self._waker, waking]
        self._peers: dict[int, socket.socket] = {}
        self._selector.register(waking, selectors.EVENT_READ, lambda: waking.recv(64) and None)
        _close_in_forked_children(self)

    def wake(self) -> None:
        """End `exchange` now; the one method for other threads."""
        self._waker.send(b"!")

    def exchange(self, seconds: float) -> list[Heard]:
        """Wait until something is heard, at most so long; returns all that came."""
        heard: list[Heard] = []
        for key, _ in self._selector.select(max(0.0, seconds)):
            heard.extend(key.data() or ())
        return heard

    def send(self, message: Message) -> list[Heard]:
        """Say `message` to all who are connected here; returns whose connection turned out to be broken."""
        line = json.dumps(message).encode() + b"\n"
        return [lost for rank in list(self._peers) for lost in self._send_line(rank, line)]

    def close(self) -> None:
        """Close all connections."""
        self._selector.close()
        self.close_sockets()

    def close_sockets(self) -> None:
        """In a forked child, which shares the selector with its parent but must not keep the parent's sockets open."""
        for each in (*self._sockets, *self._peers.values()):
            each.close()

    def _send_line(self, rank: int, line: bytes) -> list[Heard]:
        try:
            sent = self._peers[rank].send(line)
        except BlockingIOError:
            return []  # its buffer is full: it has not read for long, and will be found silent
        except OSError:
            sent = -1
        return [] if sent == len(line) else self._lose(rank)

    def _add(self, rank: int, connection: socket.socket, lines: _Lines) -> None:
        connection.setblocking(False)
        self._peers[rank] = connection
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._read(rank, lines))

    def _read(self, rank: int, lines: _Lines) -> list[Heard]:
        try:
            received = self._peers[rank].recv(LONGEST_LINE)
            if received:
                return [Heard(rank, message) for message in lines.feed(received)]
        except BlockingIOError:
            return []
        except (OSError, ValueError):
            pass
        return self._lose(rank)

    def _lose(self, rank: int) -> list[Heard]:
        connection = self._peers.pop(rank, None)
        if connection is None:
            return []
        self._selector.unregister(connection)
        connection.close()
        return [Heard(rank, None)]


class Hub(Link):
    """Rank 0's end of all connections."""

    def __init__(self, token: str, loopback: bool) -> None:
        """`token` is what ranks show to be let in; `loopback`: all of them are on this host."""
        super().__init__()
        self._token = token
        if loopback:
            self._door = socket.create_server(("127.0.0.1", 0))
        elif socket.has_dualstack_ipv6():
            self._door = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
        else:
            self._door = socket.create_server(("", 0), backlog=4096)
        self._door.setblocking(False)
        self._sockets.append(self._door)
        self._selector.register(self._door, selectors.EVENT_READ, self._let_in)

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._door.getsockname()[1]

    def _let_in(self) -> list[Heard]:
        try:
            connection, _ = self._door.accept()
        except OSError:
            return []
        connection.setblocking(False)
        self._sockets.append(connection)
        lines = _Lines()
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._greet(connection, lines))
        return []

    def _greet(self, stranger: socket.socket, lines: _Lines) -> list[Heard]:
        """The first line shows the token and says the rank; whoever says something else is shut out."""
        try:
            received = stranger.recv(LONGEST_LINE)
            messages = lines.feed(received)
            if received and not messages:
                return []
            if messages[0].get("token") == self._token:
                rank = int(messages[0]["rank"])
                self._selector.unregister(stranger)
                self._add(rank, stranger, lines)
                return [Heard(rank, message) for message in messages]
        except BlockingIOError:
            return []
        except (OSError, ValueError, LookupError, TypeError):
            pass
        self._selector.unregister(stranger)
        stranger.close()
        return []


class Member(Link):
    """Another rank's connection to rank 0."""

    def __init__(self, hosts: Sequence[str], port: int, token: str, rank: int) -> None:
        """Tries `hosts`, names of rank 0's host, one after another. Raises OSError where none answers."""
        super().__init__()
        connection = _connect(hosts, port)
        connection.sendall(json.dumps({"token": token, "rank": rank}).encode() + b"\n")
        self._add(0, connection, _Lines())


class _Lines:
    """Bytes as they come, into messages, one a line."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, received: bytes) -> list[Message]:
        """Raises ValueError on what is none."""
        *whole, self._rest = (self._rest + received).split(b"\n")
        if len(self._rest) > LONGEST_LINE:
            raise ValueError("an endless line")
        messages = [json.loads(line) for line in whole]
        if not all(isinstance(message, dict) for message in messages):
            raise ValueError("not a message")
        return messages


def _connect(hosts: Sequence[str], port: int) -> socket.socket:
    deadline = time.monotonic() + CONNECT_SECONDS
    while True:
        for host in hosts:
            try:
                return socket.create_connection((host, port), timeout=CONNECT_SECONDS / 2)
            except OSError:
                if time.monotonic() > deadline:
                    raise
        time.sleep(0.2)


def _close_in_forked_children(link: Link) -> None:
    """A data worker that outlives its killed trainer for a while must not hold the trainer's connection open."""
    held = weakref.ref(link)

    def close() -> None:
        alive = held()
        if alive is not None:
            alive.close_sockets()

    os.register_at_fork(after_in_child=close)

"""Keeps the tests from using the network.

While a guard is installed and closed, any attempt of this process to reach another machine raises
`NetworkRefusedError`; loopback and unix sockets work. `NetworkGuard.refused` records the attempt, so a test fails even
if the code under test swallows the exception.

The guard is an audit hook of the interpreter, so it covers all sockets made from Python, in all threads. It does not
cover child processes, or libraries that open sockets without Python.
"""

import ipaddress
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

INTERNET_FAMILIES = (socket.AF_INET, socket.AF_INET6)
ADDRESS_EVENTS = frozenset({"socket.connect", "socket.sendto", "socket.sendmsg"})
NAME_EVENTS = frozenset({"socket.getaddrinfo", "socket.gethostbyname"})


class NetworkRefusedError(RuntimeError):
    """A test tried to reach another machine. Not an OSError, so that retries for network failures do not hide it."""


def is_local(host: str | bytes | None) -> bool:
    """Whether a host, as passed to a socket or a resolver, is always this machine."""
    if isinstance(host, bytes):
        host = host.decode("idna")
    if not host or host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


class NetworkGuard:
    """Refuses connections and name look-ups that leave this machine.

    An audit hook cannot be removed, so a process has one guard, and `allowed` opens it for a while.
    """

    def __init__(self) -> None:
        self.refused: list[str] = []
        self._open = 0
        self._lock = threading.Lock()

    def install(self) -> None:
        """Watch this process until it ends."""
        sys.addaudithook(self._watch)

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """A block in which all threads of this process may use the network."""
        with self._lock:
            self._open += 1
        try:
            yield
        finally:
            with self._lock:
                self._open -= 1

    def _watch(self, event: str, args: tuple[Any, ...]) -> None:
        if self._open or not event.startswith("socket."):
            return
        if event in ADDRESS_EVENTS:
            sock, address = args
            if sock.family not in INTERNET_FAMILIES or not isinstance(address, tuple) or is_local(address[0]):
                return
            target = f"{address[0]}, port {address[1]}"
        elif event in NAME_EVENTS:
            if is_local(args[0]):
                return
            target = f"the name {args[0]}"
        else:
            return
        self.refused.append(target)
        raise NetworkRefusedError(
            f"a test tried to reach {target}, and tests stay on this machine. Serve what is needed from "
            "127.0.0.1, or, for pretrained weights, take the fixture real_base_path and mark the test `real`."
        )

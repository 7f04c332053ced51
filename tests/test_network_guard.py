"""The guard refuses connections to other machines, reports swallowed errors, and allows loopback."""

import asyncio
import contextlib
import socket
import sys
import threading
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.network_guard import NetworkGuard, NetworkRefusedError, is_local

# 192.0.2.0/24 and 2001:db8::/32 are for documentation and .invalid is no domain: nothing answers there
ELSEWHERE = ("192.0.2.1", 9)


def connect() -> None:
    with socket.socket() as sock:
        sock.connect(ELSEWHERE)


def send_datagram() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", ELSEWHERE)


def connect_over_ipv6() -> None:
    with socket.socket(socket.AF_INET6) as sock:
        sock.connect_ex(("2001:db8::1", 9))


def look_up() -> None:
    socket.getaddrinfo("llgbm.invalid", 80)


@pytest.mark.parametrize("attempt", [connect, send_datagram, connect_over_ipv6, look_up])
def test_refuses_and_remembers(attempt: Callable[[], None], network_guard: NetworkGuard) -> None:
    with pytest.raises(NetworkRefusedError, match="stay on this machine"):
        attempt()
    assert len(network_guard.refused) == 1
    network_guard.refused.clear()


def test_refuses_in_other_threads(network_guard: NetworkGuard) -> None:
    def swallow() -> None:
        with contextlib.suppress(NetworkRefusedError):
            connect()

    thread = threading.Thread(target=swallow)
    thread.start()
    thread.join()
    assert network_guard.refused == ["192.0.2.1, port 9"]
    network_guard.refused.clear()


async def test_refuses_async_connections(network_guard: NetworkGuard) -> None:
    with pytest.raises(NetworkRefusedError):
        await asyncio.open_connection(*ELSEWHERE)
    network_guard.refused.clear()


def test_loopback_works(network_guard: NetworkGuard) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("localhost", port)), socket.create_connection(("127.0.0.1", port)):
            pass
    assert network_guard.refused == []


def test_unix_sockets_work(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(path)
        server.listen()
        client.connect(path)


def test_opens_only_inside_the_block(network_guard: NetworkGuard) -> None:
    # only the audit event of a look-up: nothing is sent
    event = ("socket.getaddrinfo", "llgbm.invalid", 80, 0, 0, 0)
    with network_guard.allowed():
        sys.audit(*event)
    assert network_guard.refused == []
    with pytest.raises(NetworkRefusedError):
        sys.audit(*event)
    network_guard.refused.clear()


@given(st.ip_addresses(v=4))
def test_local_ipv4_is_loopback_or_unspecified(address: IPv4Address) -> None:
    assert is_local(str(address)) == (str(address).startswith("127.") or str(address) == "0.0.0.0")


@pytest.mark.parametrize("host", [None, "", b"localhost", "localhost", "::1", "::1%lo", "::", "127.0.0.9"])
def test_local_names(host: str | bytes | None) -> None:
    assert is_local(host)


@pytest.mark.parametrize("host", ["localhost.invalid", "127.0.0.1.invalid", "fe80::1%eth0", "2001:db8::1"])
def test_other_names(host: str) -> None:
    assert not is_local(host)

"""Reads the headers in which proxies report a request's connections: X-Forwarded-For, -Proto and -Host, or Forwarded.

Each proxy adds what it saw of its own client at the end of a list, so the last entry comes from the nearest proxy. What
stands before the entries of trusted proxies was sent by the client, which may send anything.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv6Address, ip_address, ip_network
from typing import NamedTuple

from starlette.datastructures import Headers

_LISTS = ("x-forwarded-for", "x-forwarded-proto", "x-forwarded-host")
_PAIR = re.compile(r'[ \t]*(?:([\w!#$%&\'*+.^`|~-]+)=("(?:[^"\\]|\\.)*"|[^\s",;=]*))?[ \t]*([;,]|$)', re.ASCII)
_ESCAPE = re.compile(r"\\(.)")
_WITH_PORT = re.compile(r"\[([^]]*)\](?::\d+)?|([^:]+):\d+")


class Hop(NamedTuple):
    """One connection, as the proxy at its end saw it; empty where the proxy says nothing."""

    address: str
    scheme: str
    host: str


class TrustedProxies:
    """The proxies that are believed.

    Args:
        networks: addresses and networks, or * for all.
    """

    def __init__(self, networks: Sequence[str]) -> None:
        self._all = "*" in networks
        self._networks = [ip_network(network) for network in networks if network != "*"]

    def __contains__(self, address: str) -> bool:
        if self._all:
            return True
        try:
            ip = ip_address(address)
        except ValueError:
            return False
        if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:  # a socket for both versions has such peers
            ip = ip.ipv4_mapped
        return any(ip in network for network in self._networks)

    def client(self, headers: Headers) -> Hop | None:
        """The connection that the first trusted proxy took from the client; None if the headers report none.

        This is the last one whose address is no trusted proxy's. Address, scheme and host are those of this one
        connection: in `X-Forwarded-Proto: https, http` with two trusted proxies the client's is https, and with one
        it is http, since the first value could be the client's own invention.
        """
        hops = _hops(headers)
        for hop in reversed(hops):
            if hop.address not in self:
                return hop
        return hops[0] if hops else None


def _hops(headers: Headers) -> list[Hop]:
    """All connections, the client's first. `Forwarded` counts only without the others, which most proxies set."""
    lists = [
        [value.strip() for value in ",".join(headers.getlist(name)).split(",")] if name in headers else []
        for name in _LISTS
    ]
    if any(lists):
        length = max(map(len, lists))
        addresses, schemes, hosts = (_padded(values or [""], length) for values in lists)
        return [Hop(_without_port(a), s.lower(), h) for a, s, h in zip(addresses, schemes, hosts, strict=True)]
    return _forwarded(", ".join(headers.getlist("forwarded")))


def _padded(values: list[str], length: int) -> list[str]:
    """The lists end at the same connection. A proxy that replaced a list had one value for all before it."""
    return values[:1] * (length - len(values)) + values


def _forwarded(value: str) -> list[Hop]:
    """The connections in a `Forwarded` header (RFC 7239); none of them if any part of it is malformed."""
    hops: list[dict[str, str]] = [{}]
    position = 0
    while position < len(value):
        pair = _PAIR.match(value, position)
        if pair is None:
            return []
        name, word, separator = pair.groups()
        if name:
            hops[-1][name.lower()] = _ESCAPE.sub(r"\1", word[1:-1]) if word.startswith('"') else word
        if separator == ",":
            hops.append({})
        position = pair.end()
    return [
        Hop(_without_port(hop.get("for", "")), hop.get("proto", "").lower(), hop.get("host", "")) for hop in hops if hop
    ]


def _without_port(node: str) -> str:
    parts = _WITH_PORT.fullmatch(node)
    return node if parts is None else parts[1] or parts[2]

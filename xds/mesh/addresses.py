"""Parses IP addresses, networks and host-port pairs, for every source of them.

It accepts what Envoy accepts. Python's own parser accepts more: scopes (``fe80::1%eth0``) with arbitrary text, and
numbers. Envoy rejects a whole resource because of one address that it refuses.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from typing import NamedTuple

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = re.compile(rf"(?:{_OCTET}\.){{3}}{_OCTET}")
_ADDRESS = re.compile(r"[0-9A-Fa-f:.]{2,45}")
_NETWORK = re.compile(r"[0-9A-Fa-f:.]{2,45}(?:/[0-9]{1,3})?")


def parse_ip(text: str) -> IPAddress:
    """Return the IP address ``text``.

    Raises:
        ValueError: it is none that Envoy takes.
    """
    if not isinstance(text, str) or not _ADDRESS.fullmatch(text):
        raise ValueError(f"{text!r} is not an IP address")
    return ipaddress.ip_address(text)


def parse_network(text: str) -> IPNetwork:
    """Return the network ``text`` in CIDR notation; an address alone is a network of one.

    Raises:
        ValueError: it is none, or has bits set behind its prefix.
    """
    if not isinstance(text, str) or not _NETWORK.fullmatch(text):
        raise ValueError(f"{text!r} is not an address or network")
    return ipaddress.ip_network(text)


@functools.lru_cache(maxsize=1 << 17)
def canonical_ip(text: str) -> str | None:
    """Return the one way to write the IP address ``text``, ``None`` where it is none. Asked for again and again."""
    if isinstance(text, str) and _IPV4.fullmatch(
        text
    ):  # the usual case, which takes a tenth of the time of the general one
        return text
    try:
        return str(parse_ip(text))
    except ValueError:
        return None


def is_ip(text: str) -> bool:
    """Return whether ``text`` is an IP address."""
    return canonical_ip(text) is not None


def is_loopback(host: str) -> bool:
    """Return whether only this host reaches what listens on ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class HostPort(NamedTuple):
    """Host, by name or address, and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        """Return ``HOST:PORT``, an IPv6 host in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> HostPort:
        """Return the host and port in ``HOST:PORT``, an IPv6 host in brackets.

        Raises:
            ValueError: it is none.
        """
        host, colon, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not colon or not host or not port.isdecimal() or int(port) > 65535:
            raise ValueError(f"{text!r} is not HOST:PORT, a port being 0 to 65535 (an IPv6 host in brackets)")
        return cls(host, int(port))

"""Addresses that a server listens on, and those of its clients."""

from __future__ import annotations

import asyncio
import errno
import socket
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from xds.mesh.addresses import HostPort

NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
"""The machine does not have such an address, or no address of that kind."""


class ListenError(Exception):
    """Failure to listen on an address; the message gives the system's reason."""


async def free_addresses(address: HostPort, *, shared: bool = False) -> list[HostPort]:
    """Return each address that ``address`` resolves to; port 0 is a free one.

    gRPC does not say why it can't listen on an address. So sockets are bound to all of them first, and closed again.

    Raises:
        ListenError: an address can't be listened on; the message has the system's reason.
    """
    found = []
    for trial in await bind(address, shared=shared):
        with trial:
            found.append(HostPort(*trial.getsockname()[:2]))
    return found


@dataclass(frozen=True, slots=True)
class Reservation:
    """Addresses that are bound but not listened at, so that the port stays this program's until it is."""

    address: HostPort
    """The address as it was given, with the port that was found where it was 0."""
    _sockets: tuple[socket.socket, ...]

    def close(self) -> None:
        """Give the addresses up."""
        for each in self._sockets:
            each.close()


async def reserve(address: HostPort) -> Reservation:
    """Reserve ``address``, port 0 for a free one, for sockets that share their port.

    Raises:
        ListenError: it can't be listened on.
    """
    await free_addresses(address)  # binding a shared port succeeds even if another program listens on it
    sockets = await bind(address, shared=True)
    return Reservation(HostPort(address.host, int(sockets[0].getsockname()[1])), tuple(sockets))


async def bind(address: HostPort, *, shared: bool = False) -> list[socket.socket]:
    """Return sockets bound to ``address``: one for each address that the host has; ``::`` includes IPv4.

    An address that this machine does not have is passed over, as long as there is another: ``localhost`` is ``::1`` as
    well by its name, on machines that have no IPv6.

    Raises:
        ListenError: it can't be; the message has the system's words.
    """
    host, port = address
    bound: list[socket.socket] = []
    missing: OSError | None = None
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, kind, protocol, _, resolved in dict.fromkeys(found):
            at = resolved
            if bound and not at[1]:
                at = (at[0], bound[0].getsockname()[1], *at[2:])
            try:
                bound.append(_bound(family, kind, protocol, at, shared=shared, both=host == "::"))
            except OSError as error:
                if error.errno not in NOT_HERE:
                    raise
                missing = error
        if missing is not None and not bound:
            raise missing
    except (OSError, UnicodeError) as error:
        for made in bound:
            made.close()
        raise ListenError(f"can't listen on {address}: {getattr(error, 'strerror', None) or error}") from error
    return bound


def _bound(family: int, kind: int, protocol: int, at: tuple[Any, ...], *, shared: bool, both: bool) -> socket.socket:
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not both))
        made.bind(at)
    except BaseException:
        made.close()
        raise
    return made


def peer_address(peer: str) -> str:
    """Return gRPC's name of a peer (``ipv4:127.0.0.1:80``, ``ipv6:%5B::1%5D:80``) as ``host:port``."""
    return unquote(peer.partition(":")[2] or peer)

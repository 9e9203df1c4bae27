"""Where a server listens."""

from __future__ import annotations

import asyncio
import socket


class ListenError(Exception):
    """The server can't listen where it was told to."""


async def bind(address: str, *, shared: bool = False) -> list[socket.socket]:
    """Sockets bound to ``address``: one for each address that the host has; ``::`` takes IPv4 as well.

    Raises:
        ListenError: it can't be; the message has the system's words.
    """
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    bound: list[socket.socket] = []
    try:
        found = await loop.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, resolved in dict.fromkeys(found):
            made = socket.socket(family, kind, protocol)
            bound.append(made)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host.strip("[]") != "::"))
            if bound[1:] and not resolved[1]:
                resolved = (resolved[0], bound[0].getsockname()[1], *resolved[2:])
            made.bind(resolved)
            made.setblocking(False)
    except (OSError, UnicodeError) as error:
        for made in bound:
            made.close()
        raise ListenError(f"can't listen on {address}: {getattr(error, 'strerror', None) or error}") from error
    return bound

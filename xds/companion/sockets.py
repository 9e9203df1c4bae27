"""Opens UDP sockets of loopback. Separate from the server, so that a command that only opens them does not load
dnspython."""

from __future__ import annotations

import socket


def bind(port: int, *, dual_stack: bool) -> list[socket.socket]:
    """Return the UDP sockets at ``port`` of loopback.

    Raises:
        OSError: the port is in use, or not for this user.
    """
    made = []
    for family, address in [(socket.AF_INET, "127.0.0.1"), *([(socket.AF_INET6, "::1")] if dual_stack else [])]:
        found = socket.socket(family, socket.SOCK_DGRAM)
        made.append(found)
        try:
            found.bind((address, port))
        except OSError:
            for each in made:
                each.close()
            raise
    return made


def free_port(*, dual_stack: bool) -> int:
    """Return a UDP port of loopback that nothing uses now, of both families with ``dual_stack``."""
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as found:
            found.bind(("127.0.0.1", 0))
            port = int(found.getsockname()[1])
        try:
            for each in bind(port, dual_stack=dual_stack):
                each.close()
        except OSError:
            continue
        return port

"""Saying what should be seen, and waiting until it is."""

from __future__ import annotations

import sys

from xds.lab.application import who_answers
from xds.lab.network import Host
from xds.lab.processes import eventually, run_to_end

ASK = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10) as s:
        print(s.makefile().readline().strip())
except OSError:
    print()
"""


async def answers(host: Host, address: str, port: int, name: str | None) -> None:
    """Wait until ``name`` answers a dial (``None``: until it is refused), and goes on doing so."""

    async def seen() -> str | None:
        return await who_answers(host, address, port)

    await eventually(f"{name or 'a refusal'} at {address}:{port}", seen, until=lambda found: found == name)
    assert await who_answers(host, address, port) == name


async def ask_as(host: Host, uid: int, address: str, port: int) -> str | None:
    """Who answers a dial by the user ``uid``."""
    return (await run_to_end(*host.command(sys.executable, "-c", ASK, address, str(port), uid=uid))).strip() or None

"""Saying what should be seen, and waiting until it is."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from xds.lab.application import who_answers
from xds.lab.network import Host
from xds.lab.processes import Process, eventually, run_to_end

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


async def log_says(process: Process, *words: str) -> None:
    """Wait until all of these words are in a process's log."""

    async def said() -> str:
        return process.tail(1000)

    await eventually(
        f"{words} in the log of {process.name}", said, until=lambda text: all(one in text for one in words)
    )


async def ask_as(host: Host, uid: int, address: str, port: int) -> str | None:
    """Return who answers a dial by the user ``uid``."""
    return (await run_to_end(*host.command(sys.executable, "-c", ASK, address, str(port), uid=uid))).strip() or None


@asynccontextmanager
async def dialing(host: Host, address: str, port: int) -> AsyncIterator[Counter[str | None]]:
    """Dial all the time, one connection after another; who answered how often (``None``: nobody did)."""
    seen: Counter[str | None] = Counter()

    async def dial_on() -> None:
        while True:
            seen[await who_answers(host, address, port)] += 1

    task = asyncio.create_task(dial_on())
    try:
        yield seen
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def descendants(pid: int) -> list[int]:
    """Return the processes that a process started, and those that these did, each after the one that started it."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


def free_port() -> int:
    """Return a port of loopback that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        return int(made.getsockname()[1])

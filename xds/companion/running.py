"""The companion's event loop."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket

from xds.companion.dns import DnsServer
from xds.companion.tasks import Tasks


def run(tasks: Tasks) -> None:
    """Run the tasks until the process is told to end."""
    logging.basicConfig(format="%(asctime)s %(levelname)s gossamer sidecar: %(message)s", level=logging.INFO)
    asyncio.run(_run(tasks))


async def _run(tasks: Tasks) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    servers = []
    for descriptor in tasks.dns_sockets:
        listening = socket.socket(fileno=descriptor)
        _, server = await loop.create_datagram_endpoint(lambda: DnsServer(tasks.dns_upstream), sock=listening)
        servers.append(server)
    try:
        await ended.wait()
    finally:
        for server in servers:
            await server.close()

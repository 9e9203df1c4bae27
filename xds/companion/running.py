"""Runs the companion's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from pathlib import Path

from xds.companion.tasks import Tasks


def run(tasks: Tasks) -> None:
    """Run the tasks until the process is asked to end."""
    logging.basicConfig(format="%(asctime)s %(levelname)s gossamer sidecar: %(message)s", level=logging.INFO)
    asyncio.run(_run(tasks))


async def _run(tasks: Tasks) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    # A task's module is imported only if the task exists, to save memory.
    async with contextlib.AsyncExitStack() as stack:
        if tasks.dns_sockets:
            from xds.companion.dns import DnsServer

            for descriptor in tasks.dns_sockets:
                listening = socket.socket(fileno=descriptor)
                _, server = await loop.create_datagram_endpoint(lambda: DnsServer(tasks.dns_upstream), sock=listening)
                stack.push_async_callback(server.close)
        if tasks.roots_file:
            from xds.companion.roots import RootsFile
            from xds.sources.consul.settings import ConsulSettings

            roots = RootsFile(Path(tasks.roots_file), tasks.trust_domain, ConsulSettings(**tasks.consul))
            following = asyncio.create_task(roots.follow())
            stack.push_async_callback(_cancelled, following)
            following.add_done_callback(lambda _: ended.set())
        await ended.wait()


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task

"""Tests of the event loop under gRPC."""

from __future__ import annotations

import asyncio
import functools
import socket
import subprocess
import sys

from xds.ads.loop import EventLoop

KNOWS_GRPC = """
import asyncio, grpc.aio, uvloop
from xds.ads.loop import EventLoop

class Recording(uvloop.Loop):
    def add_reader(self, fd, callback, *args):
        print(callback.__qualname__)
        super().add_reader(fd, callback, *args)

class Loop(EventLoop, Recording):
    pass

async def main():
    server = grpc.aio.server()
    await server.stop(None)

with asyncio.Runner(loop_factory=Loop) as runner:
    runner.run(main())
"""


class PollerCompletionQueue:
    """Like gRPC's: takes one byte whenever it is told that there is something to read."""

    def __init__(self) -> None:
        self.reading, self.writing = socket.socketpair()
        self.reading.setblocking(False)
        self.calls = 0

    def handle(self, told: asyncio.Event) -> None:
        self.reading.recv(1)
        self.calls += 1
        told.set()


async def _calls_for(queue: PollerCompletionQueue, count: int) -> int:
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(queue.reading, functools.partial(queue.handle, told))
    for _ in range(count):
        queue.writing.send(b"1")
    await told.wait()
    for _ in range(count):
        await asyncio.sleep(0)
    loop.remove_reader(queue.reading)
    return queue.calls


def _on_loop(queue: PollerCompletionQueue, count: int) -> int:
    with asyncio.Runner(loop_factory=EventLoop) as runner:
        return runner.run(_calls_for(queue, count))


async def test_a_burst_of_completions_is_one_call() -> None:
    queue = PollerCompletionQueue()
    with queue.reading, queue.writing:
        assert await asyncio.to_thread(_on_loop, queue, 200) == 1
        assert await asyncio.to_thread(_on_loop, queue, 1) == 2


async def test_other_readers_are_called_unchanged() -> None:
    class Other(PollerCompletionQueue):
        pass

    queue = Other()
    with queue.reading, queue.writing:
        assert await asyncio.to_thread(_on_loop, queue, 3) == 3


def test_the_expected_handler_is_that_of_the_installed_grpc() -> None:
    said = subprocess.run([sys.executable, "-c", KNOWS_GRPC], capture_output=True, text=True, check=True).stdout
    assert "EventLoop.add_reader.<locals>.drained" in said

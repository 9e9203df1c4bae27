"""The floor: what grpc.aio costs when ready bytes are pushed and nothing is thought about. A process of its own.

It reads whatever its clients send and throws it away. ``push`` writes messages to every stream; ``follow`` holds one
blocking query on Consul and pushes whenever that returns.
"""

from __future__ import annotations

import asyncio
import base64
import time
from typing import Any

import aiohttp
import grpc
import grpc.aio

from benchmarks.child import obey
from xds.ads.server import SERVICE

OPTIONS = (
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 120_000),
    ("grpc.keepalive_timeout_ms", 60_000),
    ("grpc.http2.ping_timeout_ms", 60_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # By itself gRPC refuses some of a thousand that come at once.
    ("grpc.server_max_unrequested_time_in_server", 3600),
    ("grpc.server.max_pending_requests", 1 << 20),
    ("grpc.server.max_pending_requests_hard_limit", 1 << 20),
)


class Bare:
    """A gRPC server without a thought."""

    def __init__(self) -> None:
        self._streams: dict[int, asyncio.Queue[list[bytes]]] = {}
        self._read = 0
        self._prepared: dict[int, list[bytes]] = {}
        self._following: asyncio.Task[None] | None = None

    async def listen(self) -> int:
        """Listen; the port."""
        server = grpc.aio.server(options=OPTIONS)
        handler = grpc.stream_stream_rpc_method_handler(self._handle)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {"DeltaAggregatedResources": handler}),)
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        self._server = server
        return int(port)

    async def _handle(self, _requests: Any, context: Any) -> None:
        queue: asyncio.Queue[list[bytes]] = asyncio.Queue()
        self._streams[id(queue)] = queue
        writer = asyncio.create_task(self._write(queue, context))
        try:
            while await context.read() is not grpc.aio.EOF:
                self._read += 1
        except asyncio.CancelledError:
            return
        finally:
            del self._streams[id(queue)]
            writer.cancel()

    @staticmethod
    async def _write(queue: asyncio.Queue[list[bytes]], context: Any) -> None:
        while True:
            for message in await queue.get():
                await context.write(message)

    async def push(self, messages: list[str]) -> float:
        """Write ``messages`` (base64) to every stream; when that began."""
        ready = [base64.b64decode(message) for message in messages]
        began = time.monotonic()
        self._push(ready)
        return began

    async def prepare(self, messages: list[str]) -> None:
        """Have messages of this content ready for every stream, each with bytes of its own."""
        ready = [base64.b64decode(message) for message in messages]
        self._prepared = {key: [bytes(bytearray(message)) for message in ready] for key in self._streams}

    async def push_prepared(self) -> float:
        """Write them; when that began."""
        began = time.monotonic()
        for key, ready in self._prepared.items():
            self._streams[key].put_nowait(ready)
        self._prepared = {}
        return began

    def _push(self, ready: list[bytes]) -> None:
        for queue in self._streams.values():
            queue.put_nowait(ready)

    async def read(self) -> int:
        """Return the number of messages that were read."""
        return self._read

    async def follow(self, url: str, message: str) -> None:
        """Push ``message`` whenever the blocking query ``url`` returns with another index."""
        if self._following is not None:
            self._following.cancel()
        ready = [base64.b64decode(message)]
        asked = asyncio.Event()

        async def run() -> None:
            async with aiohttp.ClientSession() as session:
                index = "1"
                while True:
                    async with session.get(url, params={"index": index, "wait": "60s"}) as response:
                        await response.read()
                        found = response.headers["X-Consul-Index"]
                    if asked.is_set() and found != index:
                        self._push(ready)
                    index = found
                    asked.set()

        self._following = asyncio.create_task(run())
        await asked.wait()


async def main() -> None:
    """Obey."""
    bare = Bare()
    await obey(
        {
            "listen": bare.listen,
            "push": bare.push,
            "prepare": bare.prepare,
            "push_prepared": bare.push_prepared,
            "read": bare.read,
            "follow": bare.follow,
        }
    )


if __name__ == "__main__":
    asyncio.run(main())

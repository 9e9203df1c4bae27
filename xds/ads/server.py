"""Aggregated discovery on one address: a grpc.aio server, bytes in and bytes out.

Each stream has one task, which reads; a write is a task of its own for as long as it takes. What there is to send is
sent when something wakes the stream: a change, an acknowledgement, or a write that is done. All streams that are woken
in one iteration of the event loop are served in the next ones, a few hundred at a time, so that other changes are
followed between them. A stream that ends, for whatever reason, ends nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from itertools import islice
from typing import Any

import grpc
import grpc.aio

from xds.ads.listening import ListenError, free_addresses
from xds.ads.stream import Registry, Stream
from xds.ads.turns import Turns

log = logging.getLogger(__name__)

SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"
SERVED_AT_ONCE = 256
"""Streams served before yielding to the event loop: some milliseconds."""
WRITE_TIMEOUT = 30.0
"""Seconds after which a write that a client does not accept ends its stream."""
WRITE_CHECK_INTERVAL = 5.0
"""Seconds between two searches for such writes; one search is cheaper than a timer for each write."""
MAX_MESSAGE = 8 << 20
"""Bytes of one request. A proxy that reconnects names each resource that it has, in some sixty bytes."""

OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_concurrent_streams", 64),
    # A client that never finishes its handshake, or never opens a stream, is disconnected.
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 60_000),
    # A peer that vanished is noticed only with all three of these. Pinging thousands of idle streams more often costs
    # more than everything else about them, and a vanished peer costs memory only. A busy host gets a minute to answer.
    ("grpc.keepalive_time_ms", 120_000),
    ("grpc.keepalive_timeout_ms", 60_000),
    ("grpc.http2.ping_timeout_ms", 60_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 0),
    # A thousand calls that arrive together wait. By default gRPC refuses some of them, and the clients come again.
    ("grpc.server_max_unrequested_time_in_server", 3600),
    ("grpc.server.max_pending_requests", 1 << 20),
    ("grpc.server.max_pending_requests_hard_limit", 1 << 20),
)


class Soon:
    """A function that is called once in the next iteration of the event loop, however often that is asked for."""

    def __init__(self, do: Callable[[], None]) -> None:
        self._do = do
        self._asked = False

    def ask(self) -> None:
        """Have it called."""
        if not self._asked:
            self._asked = True
            asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        self._asked = False
        self._do()


class AdsServer:
    """The server of aggregated discovery on one address."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.turns = Turns()
        self.large_request = asyncio.Lock()
        """Held while a large request is processed: one at a time, so that others are processed between them."""
        self.held = 0
        """Bytes of the first messages of streams that are not authenticated yet."""
        self._streams: set[Stream] = set()
        self._woken: dict[Stream, None] = {}
        self._serving = Soon(self._serve)
        self._server: grpc.aio.Server | None = None
        self._checking: asyncio.Task[None] | None = None

    async def start(self, address: str, *, shared: bool = False) -> int:
        """Listen on ``address`` (``host:port``, port 0 for a free one), ``shared`` with other processes.

        Returns:
            The port.

        Raises:
            ListenError: the address can't be listened on.
        """
        server = grpc.aio.server(options=(("grpc.so_reuseport", int(shared)), *OPTIONS))
        handlers = {
            "DeltaAggregatedResources": grpc.stream_stream_rpc_method_handler(self._handler(delta=True)),
            "StreamAggregatedResources": grpc.stream_stream_rpc_method_handler(self._handler(delta=False)),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        port = 0
        for each in await free_addresses(address, shared=shared):
            try:
                port = server.add_insecure_port(each)
            except RuntimeError as error:
                raise ListenError(f"can't listen on {each}: another program took it just now") from error
        await server.start()
        self._server = server
        self._checking = asyncio.create_task(self._end_stuck_streams())
        return port

    async def stop(self) -> None:
        """End every stream and stop listening."""
        if self._checking is not None:
            self._checking.cancel()
            await asyncio.gather(self._checking, return_exceptions=True)
        if self._server is not None:
            await self._server.stop(grace=None)

    def _handler(self, *, delta: bool) -> Callable[[Any, Any], Awaitable[None]]:
        async def handle(_requests: Any, context: Any) -> None:
            stream = Stream(self, context, delta=delta)
            self._streams.add(stream)
            try:
                await stream.run()
            finally:
                self._streams.discard(stream)

        return handle

    def wake(self, stream: Stream) -> None:
        """Serve the stream soon."""
        self._woken[stream] = None
        self._serving.ask()

    def _serve(self) -> None:
        try:
            for stream in list(islice(self._woken, SERVED_AT_ONCE)):
                del self._woken[stream]
                stream.call.guarded(stream.serve)
        finally:
            if self._woken:
                self._serving.ask()

    async def _end_stuck_streams(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(WRITE_CHECK_INTERVAL)
            for stream in list(self._streams):
                since = stream.call.writing_since
                if since is not None and loop.time() - since > WRITE_TIMEOUT:
                    log.warning("stream from %s ended: it accepted nothing for %.0f s", stream.call.peer, WRITE_TIMEOUT)
                    stream.call.end(grpc.StatusCode.UNAVAILABLE, "a response was not accepted in time: connect again")

"""Aggregated discovery and gRPC's health service on one address: a grpc.aio server, bytes in and bytes out.

Each stream has one task, which reads; a write is a task of its own for as long as it takes. A stream sends when
something wakes it: a change, an acknowledgement, or a write that is done. All streams that are woken in one iteration
of the event loop are served in the next ones, a few hundred at a time, so that other changes are followed between them.
The end of a stream, for whatever reason, affects no other stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio

from xds.ads.call import STATUS_TIMEOUT
from xds.ads.handshakes import Handshakes
from xds.ads.listening import ListenError, free_addresses, peer_address
from xds.ads.slots import Slots
from xds.ads.stream import Registry, Stream
from xds.ads.tls import ServerCertificate
from xds.mesh.addresses import HostPort

log = logging.getLogger(__name__)

SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"
SERVED_AT_ONCE = 256
"""Streams served before yielding to the event loop: some milliseconds."""
WRITE_TIMEOUT = 30.0
"""Seconds after which a write that a client does not accept ends its stream."""
DRAIN_PAUSE = 0.1
"""Seconds between the ends of two streams when the server stops, at most."""
WRITE_CHECK_INTERVAL = 5.0
"""Seconds between two searches for such writes; one search is cheaper than a timer for each write."""
EXPIRY_CHECK_INTERVAL = 3600.0
"""Seconds between two warnings of a certificate that expires soon."""
MAX_MESSAGE = 8 << 20
"""Bytes of one request. A proxy that reconnects names each resource that it has, in some sixty bytes."""

OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_concurrent_streams", 64),
    # A client that never finishes its handshake, or never opens a stream, is disconnected.
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 60_000),
    # A vanished peer is noticed only if keepalive_time, keepalive_timeout and ping_timeout are all set. Pinging
    # thousands of idle streams more often costs more than all other work for them, and a vanished peer costs memory
    # only. A busy host gets a minute to answer.
    ("grpc.keepalive_time_ms", 120_000),
    ("grpc.keepalive_timeout_ms", 60_000),
    ("grpc.http2.ping_timeout_ms", 60_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 0),
    # A thousand calls that arrive together wait. By default gRPC refuses some of them, and the clients retry.
    ("grpc.server_max_unrequested_time_in_server", 3600),
    ("grpc.server.max_pending_requests", 1 << 20),
    ("grpc.server.max_pending_requests_hard_limit", 1 << 20),
)


class Soon:
    """Function that is called once in the next iteration of the event loop, however often that is requested."""

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


class _Health(aio.HealthServicer):  # type: ignore[misc]  # grpc_health is not typed
    """gRPC's health service, whose calls count as calls of their connections."""

    def __init__(self, handshakes: Handshakes) -> None:
        super().__init__()
        self._handshakes = handshakes

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        """Return a service's state."""
        self._handshakes.called(peer_address(context.peer()))
        return await super().Check(request, context)

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802 - gRPC's name
        """Send a service's state, and again whenever it changes."""
        self._handshakes.called(peer_address(context.peer()))
        await super().Watch(request, context)


class AdsServer:
    """The server of aggregated discovery on one address."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self._certificate: ServerCertificate | None = None
        self.slots = Slots()
        self.large_request = asyncio.Lock()
        """Held while a large request is processed: one at a time, so that others are processed between them."""
        self.held = 0
        """Bytes of the first messages of streams that are not authenticated yet."""
        self.handshakes = Handshakes()
        self._streams: set[Stream] = set()
        self._woken: dict[Stream, None] = {}
        self._serving = Soon(self._serve)
        self._server: grpc.aio.Server | None = None
        self._checking: asyncio.Task[None] | None = None
        self._health = _Health(self.handshakes)
        self._ready, self._readiness = False, asyncio.Event()
        self._none_left = asyncio.Event()

    def set_ready(self, ready: bool) -> None:
        """Set whether the health service reports that sidecars can be served."""
        if ready is not self._ready:
            self._ready = ready
            self._readiness.set()

    async def start(
        self, address: HostPort, *, shared: bool = False, certificate: ServerCertificate | None = None
    ) -> int:
        """Listen on ``address``, port 0 for a free one, ``shared`` with other processes.

        Without a ``certificate``, the port is plain text.

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
        credentials = None if certificate is None else certificate.credentials()
        port = 0
        for each in await free_addresses(address, shared=shared):
            try:
                port = (
                    server.add_secure_port(str(each), credentials)
                    if credentials
                    else server.add_insecure_port(str(each))
                )
            except RuntimeError as error:
                raise ListenError(f"can't listen on {each}: another program took it just now") from error
        await self._publish_health()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        await server.start()
        self._server, self._certificate = server, certificate
        self.handshakes.tls = certificate is not None
        self._checking = asyncio.create_task(self._run_checks())
        return port

    async def _publish_health(self) -> None:
        state = health_pb2.HealthCheckResponse.SERVING if self._ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", SERVICE):
            await self._health.set(service, state)

    async def drain(self, seconds: float) -> None:
        """Stop: accept no connection, and end the streams one after the other, over at most ``seconds``.

        Their Envoys connect elsewhere, or reconnect; if all streams ended at once, all would reconnect at once.
        """
        if self._server is None:
            return
        await self._health.enter_graceful_shutdown()
        stopping = asyncio.create_task(self._server.stop(seconds + STATUS_TIMEOUT))
        streams = list(self._streams)
        for stream in streams:
            stream.end("the server stops: connect again")
            await asyncio.sleep(min(DRAIN_PAUSE, seconds / len(streams)))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STATUS_TIMEOUT):
                while self._streams:
                    self._none_left.clear()
                    await self._none_left.wait()
        await self.stop()
        await stopping

    async def stop(self) -> None:
        """End every stream and stop listening."""
        if self._checking is not None:
            self._checking.cancel()
            await asyncio.gather(self._checking, return_exceptions=True)
        if self._server is not None:
            await self._server.stop(grace=None)

    def _handler(self, *, delta: bool) -> Callable[[Any, Any], Awaitable[None]]:
        async def handle(_requests: Any, context: Any) -> None:
            self.handshakes.called(peer_address(context.peer()))
            stream = Stream(self, context, delta=delta)
            self._streams.add(stream)
            try:
                await stream.run()
            finally:
                self._streams.discard(stream)
                if not self._streams:
                    self._none_left.set()

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

    async def _run_checks(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._end_stuck_streams())
            tasks.create_task(self._follow_readiness())
            if self._certificate is not None:
                tasks.create_task(self._warn_of_expiry(self._certificate))

    async def _follow_readiness(self) -> None:
        while True:
            await self._readiness.wait()
            self._readiness.clear()
            await self._publish_health()

    @staticmethod
    async def _warn_of_expiry(certificate: ServerCertificate) -> None:
        while True:
            warning = await asyncio.to_thread(certificate.expiry_warning, datetime.now(UTC))
            if warning is not None:
                log.warning("%s", warning)
            await asyncio.sleep(EXPIRY_CHECK_INTERVAL)

    async def _end_stuck_streams(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(WRITE_CHECK_INTERVAL)
            self.handshakes.check(loop.time())
            for stream in list(self._streams):
                since = stream.call.writing_since
                if since is not None and loop.time() - since > WRITE_TIMEOUT:
                    log.warning("stream from %s ended: it accepted nothing for %.0f s", stream.call.peer, WRITE_TIMEOUT)
                    stream.call.end(grpc.StatusCode.UNAVAILABLE, "a response was not accepted in time: connect again")

"""The gRPC server for aggregated discovery: both variants on one port, bytes in and bytes out.

Each stream has exactly two tasks, one that reads and one that writes: grpc.aio takes one write at a time, and a write
that was cancelled makes the stream unusable, so a write that takes too long ends it and Envoy reconnects. A stream
that ends, for whatever reason, takes nothing else with it.

What takes a large response waits for its turn (`Turns`): making a thousand of a thousand resources takes seconds, and
those who are to lose an endpoint or a right meanwhile must not wait for that. Small responses have no turns.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from itertools import islice
from typing import Any, Protocol

import grpc
import grpc.aio

from xds.ads import codec
from xds.ads.messages import Received, Response
from xds.ads.session import Session
from xds.mesh.facts import usable_name

log = logging.getLogger(__name__)

FIRST_ANSWER_WAIT_S = 5.0
"""How long a first answer waits for upstreams that have not been read yet."""
WRITE_TIMEOUT_S = 30.0
LOOK_FOR_STUCK_S = 5.0
AT_ONCE = 2
"""So many large responses are made or written at a time."""
PASS_ON_S = 0.05
"""A large response that is not taken within this time does not keep the next one waiting any more."""
LARGE_REQUEST = 8192
"""Bytes. Who subscribes to a thousand names at once is heard one at a time, so that others are heard between."""
SMALL = 64
"""Responses of more resources than this wait for their turn."""
SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"
TOKEN_METADATA = "x-consul-token"  # noqa: S105 - a key
OPTIONS = (
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.max_send_message_length", -1),
    # A peer that went away without a word is noticed only with all three; the first two alone are not enough.
    # Pings every thirty seconds were most of what three thousand idle streams cost; who has gone without a word costs
    # memory only.
    ("grpc.keepalive_time_ms", 120_000),
    # gRPC pings of its own accord as well. A host that is too busy to answer soon must not be made to come again.
    ("grpc.keepalive_timeout_ms", 60_000),
    ("grpc.http2.ping_timeout_ms", 60_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 0),
    # Streams that arrive while there is much to do wait for it; by itself gRPC begins to refuse some beyond a thousand,
    # and all that waited for thirty seconds. Whoever is refused comes again, and then there is more to do.
    ("grpc.server_max_unrequested_time_in_server", 3600),
    ("grpc.server.max_pending_requests", 1 << 20),
    ("grpc.server.max_pending_requests_hard_limit", 1 << 20),
)


class ListenError(Exception):
    """The server can't listen where it was told to."""


class Peer(Protocol):
    """What the server needs to know of a connected proxy."""

    session: Session
    wake: asyncio.Event
    ready: bool

    @property
    def incomplete(self) -> bool:
        """Whether only upstreams are missing from a whole first answer."""

    def stop_waiting(self) -> None:
        """Serve what is known."""


class Registry(Protocol):
    """Who knows what is meant for a proxy."""

    def connected(self, node: codec.Node, token: str, address: str, *, delta: bool) -> Peer:
        """A proxy introduced itself."""

    def disconnected(self, peer: Any) -> None:
        """Its stream ended."""

    def received(self, peer: Any, received: Received, seconds: float | None) -> None:
        """It answered; ``seconds`` is how long it took to acknowledge a response."""

    def sent(self, peer: Any, response: Response, size: int) -> None:
        """A response of ``size`` bytes is on its way to it."""


class AdsServer:
    """Serves aggregated discovery on one address."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._server: grpc.aio.Server | None = None
        self._streams: set[_Stream] = set()
        self._turns = Turns()
        self._reading = asyncio.Lock()
        self._looking: asyncio.Task[None] | None = None

    async def start(self, address: str, *, shared: bool = False) -> int:
        """Listen on ``address`` (``host:port``, port 0 for a free one); ``shared`` with other processes.

        Returns:
            The port.

        Raises:
            ListenError: the address can't be listened on.
        """
        server = grpc.aio.server(options=(("grpc.so_reuseport", int(shared)), *OPTIONS))
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    SERVICE,
                    {
                        "DeltaAggregatedResources": grpc.stream_stream_rpc_method_handler(self._handler(delta=True)),
                        "StreamAggregatedResources": grpc.stream_stream_rpc_method_handler(self._handler(delta=False)),
                    },
                ),
            )
        )
        if not shared:
            await check_free(address)
        try:
            port = server.add_insecure_port(address)
        except RuntimeError as error:
            raise ListenError(f"can't listen on {address}") from error
        await server.start()
        self._server = server
        self._looking = asyncio.create_task(self._look_for_stuck())
        return int(port)

    async def stop(self) -> None:
        """End every stream and stop listening."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        if self._server is not None:
            await self._server.stop(grace=None)

    async def _look_for_stuck(self) -> None:
        """End the streams on which a write takes too long. One who looks is cheaper than a timer for each write."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(LOOK_FOR_STUCK_S)
            for stream in list(self._streams):
                if stream.writing_since is not None and loop.time() - stream.writing_since > WRITE_TIMEOUT_S:
                    stream.end(f"it took nothing for {WRITE_TIMEOUT_S:.0f} s")

    def _handler(self, *, delta: bool) -> Callable[[Any, Any], Awaitable[None]]:
        async def handle(_requests: Any, context: Any) -> None:
            # Cancelled is what a handler is whose client left; passed on, grpc would print it as an error.
            stream = _Stream(self._registry, context, self._turns, self._reading, delta=delta)
            self._streams.add(stream)
            try:
                await stream.run()
            except asyncio.CancelledError:
                log.debug("stream from %s ended", context.peer())
            finally:
                self._streams.discard(stream)

        return handle


async def check_free(address: str) -> None:
    """See that ``address`` can be listened on: gRPC itself does not say why it can't.

    Raises:
        ListenError: it can't; the message has the system's words.
    """
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        family, kind, protocol, _, resolved = found[0]
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(resolved)
            trial.listen()
    except OSError as error:
        raise ListenError(f"can't listen on {address}: {error.strerror or error}") from error


class Turns:
    """Whose turn it is to make a large response: two at a time, one is made while another is written."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Event, None] = {}

    def ask(self, wake: asyncio.Event) -> None:
        """Have ``wake`` set when it is its turn."""
        self._waiting.setdefault(wake)

    def has(self, wake: asyncio.Event) -> bool:
        """Whether it is its turn."""
        return bool(self._waiting) and any(each is wake for each in islice(self._waiting, AT_ONCE))

    def writes(self, wake: asyncio.Event) -> asyncio.TimerHandle | None:
        """It writes now. If it has its turn, it gives it away soon, whether what it writes is taken or not.

        Until then hardly anybody else writes much: gRPC writes in the order in which it was told to, and a small
        message would wait for all of it. But a proxy that takes nothing must not keep others from their turn; nor must
        one that only waits for its own, so that one asks again when it has written.

        Returns:
            What to cancel when it is written; ``None`` where it is not its turn.
        """
        if not self.has(wake):
            self._waiting.pop(wake, None)
            return None
        return asyncio.get_running_loop().call_later(PASS_ON_S, self.done, wake)

    def done(self, wake: asyncio.Event) -> None:
        """It needs no turn any more."""
        if not self._waiting:
            return
        had = self.has(wake)
        self._waiting.pop(wake, None)
        if had:
            for admitted in islice(self._waiting, AT_ONCE - 1, AT_ONCE):
                admitted.set()


class _Stream:
    """One stream, from its first message to its end."""

    def __init__(self, registry: Registry, context: Any, turns: Turns, reading: asyncio.Lock, *, delta: bool) -> None:
        self.writing_since: float | None = None
        """When the write that is going on began (loop time)."""
        self._registry = registry
        self._context = context
        self._turns = turns
        self._reading = reading
        self._delta = delta
        self._sent_at: dict[str, float] = {}
        self._task: asyncio.Task[Any] | None = None
        self._clock = asyncio.get_running_loop().time

    def end(self, reason: str) -> None:
        """End it from outside."""
        log.warning("stream from %s ended: %s", self._context.peer(), reason)
        if self._task is not None:
            self._task.cancel()

    async def run(self) -> None:
        self._task = asyncio.current_task()
        first = await self._context.read()
        if first is grpc.aio.EOF:
            return
        try:
            request, node = codec.decode(first, delta=self._delta)
        except codec.BadRequestError as error:
            await self._context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            return
        if node is None or not node.id or not usable_name(node.cluster):
            await self._context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                "the first request must carry node.id, the sidecar's service ID in Consul, and node.cluster, the"
                " service it is a sidecar of; 'gossamer bootstrap' writes both",
            )
            return
        token = next((v for k, v in self._context.invocation_metadata() or () if k == TOKEN_METADATA), "")
        peer = self._registry.connected(node, str(token), self._context.peer(), delta=self._delta)
        try:
            async with asyncio.TaskGroup() as tasks:
                writer = tasks.create_task(self._write(peer))
                self._take(peer, request)
                await self._read(peer)
                writer.cancel()
        except* (codec.BadRequestError, grpc.RpcError) as errors:
            reason = "; ".join(str(e) or type(e).__name__ for e in errors.exceptions)
            log.warning("stream of sidecar %s ended: %s", node.id, reason)
        finally:
            self._turns.done(peer.wake)
            self._registry.disconnected(peer)

    async def _read(self, peer: Peer) -> None:
        while (message := await self._context.read()) is not grpc.aio.EOF:
            if len(message) > LARGE_REQUEST:
                async with self._reading:
                    self._take(peer, codec.decode(message, delta=self._delta)[0])
                    await asyncio.sleep(0)
            else:
                self._take(peer, codec.decode(message, delta=self._delta)[0])

    def _take(self, peer: Peer, request: Any) -> None:
        received = peer.session.receive(request)
        seconds = None
        if received.acknowledged is not None:
            sent_at = self._sent_at.pop(request.type_url, None)
            seconds = self._clock() - sent_at if sent_at is not None else None
        self._registry.received(peer, received, seconds)
        if peer.session.may_send:  # most acknowledgements leave nothing to do, and the writing task asleep
            peer.wake.set()

    async def _write(self, peer: Peer) -> None:
        give_up_at: float | None = None
        while True:
            peer.wake.clear()
            if peer.ready:
                await self._send_all(peer)
            elif peer.incomplete and give_up_at is None:
                give_up_at = self._clock() + FIRST_ANSWER_WAIT_S
            if peer.ready or give_up_at is None:
                await peer.wake.wait()
                continue
            try:
                async with asyncio.timeout_at(give_up_at):
                    await peer.wake.wait()
            except TimeoutError:
                give_up_at = None
                peer.stop_waiting()

    async def _send_all(self, peer: Peer) -> None:
        """Send what there is to send; the large ones when it is this stream's turn, the small ones meanwhile."""
        turns, wake = self._turns, peer.wake
        while True:
            response = peer.session.next_response(None if turns.has(wake) else SMALL)
            if response is None:
                break
            message = codec.encode_response(response, delta=self._delta)
            passing_on = turns.writes(wake)
            self.writing_since = self._sent_at[response.type_url] = self._clock()
            self._registry.sent(peer, response, len(message))
            await self._context.write(message)
            self.writing_since = None
            if passing_on is not None:
                passing_on.cancel()
                turns.done(wake)
        if peer.session.held_back:
            turns.ask(wake)
            if turns.has(wake):
                wake.set()
        else:
            turns.done(wake)

"""One stream of aggregated discovery, from its first request to its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

import grpc

from xds.ads import codec
from xds.ads.call import Call, CallError
from xds.ads.messages import Received, Request, Response
from xds.ads.session import LimitError, Session
from xds.ads.slots import Slots
from xds.envoy.names import TOKEN_METADATA
from xds.mesh.facts import StreamRefused
from xds.mesh.names import usable_name

log = logging.getLogger(__name__)

FIRST_ANSWER_WAIT = 5.0
"""Seconds the first response waits for upstreams that have not been read yet."""
LARGE_REQUEST = 8192
"""Bytes. Larger requests, which subscribe to thousands of names, are processed one at a time."""
SMALL = 64
"""Resources. Responses with more wait for one of the slots for large responses (`xds.ads.slots`)."""
MAX_HELD = 256 << 20
"""Bytes that the first requests of all unauthenticated streams may have together."""


class Peer(Protocol):
    """A connected proxy, as far as the server knows it."""

    session: Session
    wake: Callable[[], None]
    """Called when there may be something new to send."""
    end: Callable[[str], None]
    """Called, with the reason, when the stream is to end; the proxy may connect again."""
    refuse: Callable[[StreamRefused], None]
    """Called when it may not act for its service, which ends the stream."""
    ready: bool
    admitted: bool | None
    """Whether it may act for its service; ``None`` while that is not known."""

    @property
    def incomplete(self) -> bool:
        """Whether only upstreams are missing from a whole first response."""

    def stop_waiting(self) -> None:
        """Serve what is known."""


class Registry(Protocol):
    """Owner of the connected proxies."""

    def connected(self, node: codec.Node, token: str, address: str, spiffe_ids: frozenset[str], *, delta: bool) -> Peer:
        """Add the proxy that introduced itself as ``node``."""

    def disconnected(self, peer: Any) -> None:
        """Remove a proxy whose stream ended."""

    def received(self, peer: Any, received: Received, seconds: float | None) -> None:
        """Count a request; ``seconds`` is how long it took to acknowledge a response."""

    def sent(self, peer: Any, response: Response, size: int) -> None:
        """Count a response of ``size`` bytes."""


class Server(Protocol):
    """State that the streams of one server share."""

    registry: Registry
    slots: Slots
    large_request: asyncio.Lock
    held: int

    def wake(self, stream: Any) -> None:
        """Serve the stream soon."""


class Stream:
    """A stream of either variant of the protocol."""

    def __init__(self, server: Server, context: Any, *, delta: bool) -> None:
        self.call = Call(context, self._written)
        self._server = server
        self._slots = server.slots
        self._delta = delta
        self._peer: Peer | None = None
        self._decided = asyncio.Event()
        """Set when it is known whether the token may act for the service."""
        self._sent_at: dict[str, float] = {}
        self._clock = asyncio.get_running_loop().time
        self._giving_up: asyncio.TimerHandle | None = None
        """The end of the first response's wait."""
        self._passing_on: asyncio.TimerHandle | None = None
        """The end of this stream's slot while a large response is written."""

    async def run(self) -> None:
        """Converse with the client until the stream ends."""
        why = ""
        try:
            why = await self.call.run(self._converse)
        finally:
            self._ended(why)

    def wake(self) -> None:
        """Note that there may be something to send."""
        if not self.call.is_over:
            self._server.wake(self)

    def end(self, reason: str) -> None:
        """End the stream; the proxy may connect again."""
        self.call.end(grpc.StatusCode.UNAVAILABLE, reason)

    def refuse(self, refusal: StreamRefused) -> None:
        """End the stream, because the proxy may not act for its service."""
        status = grpc.StatusCode.UNAUTHENTICATED if refusal.unauthenticated else grpc.StatusCode.PERMISSION_DENIED
        self.call.end(status, refusal.reason)

    # -- requests -----------------------------------------------------------------------------------------------------

    async def _converse(self) -> None:
        first = await self.call.read()
        if first is None:
            return
        node = self._decoded(first)[1]
        peer = self._introduced(node)
        await self._admission(peer, first)
        while (message := await self.call.read()) is not None:
            if len(message) <= LARGE_REQUEST:
                self._receive_next(peer, node, message)
                continue
            async with self._server.large_request:
                self._receive_next(peer, node, message)
                await asyncio.sleep(0)

    def _receive_next(self, peer: Peer, node: codec.Node | None, message: bytes) -> None:
        request, again = self._decoded(message)
        if again is not None and again != node:
            raise CallError(
                grpc.StatusCode.INVALID_ARGUMENT,
                "the node differs from that of the first request: a stream is one proxy's, which opens another stream",
            )
        self._receive(peer, request)

    async def _admission(self, peer: Peer, first: bytes) -> None:
        """Wait until it is known whether the token may act for the service, then process the first request.

        Until then nothing else is read, so an unauthenticated stream costs the bytes of one request, undecoded.
        """
        first = codec.without_node(first, delta=self._delta)
        self._server.held += len(first)
        try:
            if self._server.held > MAX_HELD:
                raise CallError(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    "too many streams wait to be authenticated: try again later",
                )
            await self._decided.wait()
        finally:
            self._server.held -= len(first)
        self._receive(peer, self._decoded(first)[0])

    def _decoded(self, message: bytes) -> tuple[Request, codec.Node | None]:
        try:
            return codec.decode(message, delta=self._delta)
        except codec.BadRequestError as error:
            raise CallError(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error

    def _introduced(self, node: codec.Node | None) -> Peer:
        if node is None or not node.id or not usable_name(node.cluster):
            raise CallError(
                grpc.StatusCode.INVALID_ARGUMENT,
                "the first request must carry node.id, the sidecar's service ID in Consul, and node.cluster, the"
                " service it is a sidecar of; 'gossamer bootstrap' writes both",
            )
        token = self.call.metadata.get(TOKEN_METADATA, "")
        peer = self._server.registry.connected(node, token, self.call.peer, self.call.spiffe_ids, delta=self._delta)
        self._peer = peer
        peer.wake, peer.end, peer.refuse = self.wake, self.end, self.refuse
        self.wake()
        return peer

    def _receive(self, peer: Peer, request: Request) -> None:
        try:
            received = peer.session.receive(request)
        except LimitError as error:
            raise CallError(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error)) from error
        seconds = None
        if received.acknowledged is not None:
            sent_at = self._sent_at.pop(request.type_url, None)
            seconds = self._clock() - sent_at if sent_at is not None else None
        self._server.registry.received(peer, received, seconds)
        if peer.session.may_send:  # most acknowledgements leave nothing to do
            self.wake()

    def _ended(self, why: str) -> None:
        for timer in (self._giving_up, self._passing_on):
            if timer is not None:
                timer.cancel()
        self._slots.done(self.wake)
        if self._peer is not None:
            log.debug("stream from %s ended: %s", self.call.peer, why)
            self._server.registry.disconnected(self._peer)

    # -- responses ----------------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Send what there is to send."""
        peer = self._peer
        if self.call.is_over or peer is None:
            return
        if peer.admitted:
            self._decided.set()
        if peer.ready:
            if not self.call.is_writing:
                self._send_next(peer)
            elif self._passing_on is None:
                self._slots.done(self.wake)  # it can't use a slot now, and asks again when its write is done
        elif peer.incomplete and self._giving_up is None:
            self._giving_up = asyncio.get_running_loop().call_later(
                FIRST_ANSWER_WAIT, self.call.guarded, peer.stop_waiting
            )

    def _send_next(self, peer: Peer) -> None:
        """Send the next response; a large one only with a slot, the small ones meanwhile."""
        slots, session = self._slots, peer.session
        response = session.next_response(None if slots.has(self.wake) else SMALL)
        if response is not None:
            message = codec.encode_response(response, delta=self._delta)
            self._passing_on = slots.writes(self.wake)
            self._sent_at[response.type_url] = self._clock()
            self._server.registry.sent(peer, response, len(message))
            self.call.write(message)
        elif session.held_back:
            slots.ask(self.wake)
        else:
            slots.done(self.wake)

    def _written(self) -> None:
        """Release the slot of a large response, and send the next response."""
        if self._passing_on is not None:
            self._passing_on.cancel()
            self._passing_on = None
            self._slots.done(self.wake)
        peer = self._peer
        if peer is not None and (peer.session.may_send or peer.session.held_back):
            self.wake()

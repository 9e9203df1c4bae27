"""Aggregated discovery on one address, in both variants of the protocol: sessions on the calls of a gRPC server.

A stream has no task. What arrives on it is taken at once, and what there is to send is sent when something wakes it:
a change, an acknowledgement, or room where there was none. All that are woken in one turn of the event loop are served
in the next ones, a few hundred at a time, so that whatever changes meanwhile is not kept waiting by them. A stream that
ends, for whatever reason, takes nothing else with it.

Two things wait for each other: large responses take turns (`xds.ads.turns`), and so do large requests.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any, Protocol

from xds.ads import codec
from xds.ads.messages import Received, Request, Response
from xds.ads.session import LimitError, Session
from xds.ads.turns import Turns
from xds.mesh.names import usable_name
from xds.transport.call import Call
from xds.transport.messages import CallError, Status
from xds.transport.server import GrpcServer

log = logging.getLogger(__name__)

FIRST_ANSWER_WAIT_S = 5.0
"""How long a first answer waits for upstreams that have not been read yet."""
LARGE_REQUEST = 8192
"""Bytes. Who subscribes to a thousand names at once is heard one at a time, so that others are heard between."""
HEARD_AT_ONCE = 32
"""Messages of one stream that are taken in one turn of the event loop. A proxy that is well says a handful."""
SMALL = 64
"""Responses of more resources than this wait for their turn."""
SERVED_AT_ONCE = 256
"""Streams that are served before it is looked at what else there is to do; some milliseconds."""
MOST_HELD = 4 << 20
"""Bytes that one stream may say before it is known whether its token may act for its service. A proxy that comes again
lists what it has."""
MOST_HELD_OF_ALL = 256 << 20
"""Bytes that all such streams together may have said."""
SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"
TOKEN_METADATA = "x-consul-token"  # noqa: S105 - a key


class Peer(Protocol):
    """What the server needs to know of a connected proxy."""

    session: Session
    wake: Callable[[], None]
    """Called when there may be something new to send."""
    end: Callable[[str], None]
    """Called, with the reason, when the stream is to end; the proxy may connect again."""
    ready: bool
    admitted: bool | None
    """Whether its token may act for its service, ``None`` while that is not known."""

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


class Soon:
    """Does something once in the next turn of the event loop, however often it is asked to until then."""

    def __init__(self, do: Callable[[], None]) -> None:
        self._do = do
        self._asked = False

    def ask(self) -> None:
        """Have it done."""
        if not self._asked:
            self._asked = True
            asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        self._asked = False
        self._do()


class AdsServer:
    """Serves aggregated discovery on one address."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.turns = Turns()
        self.held = 0
        """Bytes that streams have said of which it is not known whether they may be served."""
        self._woken: dict[Stream, None] = {}
        self._unheard: deque[Stream] = deque()
        self._serving, self._hearing, self._turn_end = Soon(self._serve), Soon(self._hear), Soon(self._end_turn)
        self._turn = 0
        self._server = GrpcServer(
            {
                f"/{SERVICE}/DeltaAggregatedResources": lambda call: Stream(self, call, delta=True),
                f"/{SERVICE}/StreamAggregatedResources": lambda call: Stream(self, call, delta=False),
            }
        )

    async def start(self, address: str, *, shared: bool = False) -> int:
        """Listen on ``address`` (``host:port``, port 0 for a free one); ``shared`` with other processes.

        Returns:
            The port.

        Raises:
            ListenError: the address can't be listened on.
        """
        return await self._server.start(address, shared=shared)

    async def stop(self) -> None:
        """End every stream and stop listening."""
        await self._server.stop()

    def wake(self, stream: Stream) -> None:
        """Serve it soon."""
        self._woken[stream] = None
        self._serving.ask()

    def _serve(self) -> None:
        try:
            for stream in list(islice(self._woken, SERVED_AT_ONCE)):
                del self._woken[stream]
                stream.call.tell(stream.serve)
        finally:
            if self._woken:
                self._serving.ask()

    def hear_later(self, stream: Stream) -> None:
        """Take what waits on it when it is its turn."""
        self._unheard.append(stream)
        self._hearing.ask()

    def _hear(self) -> None:
        stream = self._unheard.popleft()
        try:
            stream.call.tell(stream.hear)
        finally:
            if self._unheard:
                self._hearing.ask()

    def turn(self) -> int:
        """Which turn of the event loop this is, of those in which something is heard."""
        self._turn_end.ask()
        return self._turn

    def _end_turn(self) -> None:
        self._turn += 1


class Stream:
    """One stream, from its first message to its end (`xds.transport.call.Conversation`)."""

    def __init__(self, server: AdsServer, call: Call, *, delta: bool) -> None:
        self.call = call
        self._server = server
        self._turns = server.turns
        self._delta = delta
        self._peer: Peer | None = None
        self._over = False
        self._held: list[bytes] = []
        """The messages that came before it was known whether its token may act for its service, undecoded."""
        self._held_bytes = 0
        self._ignored = False
        """Whether something that it said was thrown away, because its token may not."""
        self._unheard: deque[bytes] = deque()
        """Messages that wait to be taken: a large one and what came behind it, or too many for one turn."""
        self._turn = self._heard = 0
        """How many messages came in which turn of the event loop."""
        self._sent_at: dict[str, float] = {}
        self._clock = asyncio.get_running_loop().time
        self._giving_up: asyncio.TimerHandle | None = None
        """Until when a first answer waits."""
        self._passing_on: asyncio.TimerHandle | None = None
        """Until when a large response is written in its turn."""

    def wake(self) -> None:
        """There may be something to send."""
        if not self._over:
            self._server.wake(self)

    def end(self, reason: str) -> None:
        """End the stream; the proxy may connect again."""
        self.call.end(Status.UNAVAILABLE, reason)

    # -- what comes in ------------------------------------------------------------------------------------------------

    def message(self, message: bytes) -> None:
        """A message arrived."""
        turn = self._server.turn()
        if turn != self._turn:
            self._turn, self._heard = turn, 0
        self._heard += 1
        if self._unheard:
            self._unheard.append(message)
        elif len(message) > LARGE_REQUEST or self._heard > HEARD_AT_ONCE:
            self._unheard.append(message)
            self.call.stop_reading()
            self._server.hear_later(self)
        else:
            self._take(message)

    def hear(self) -> None:
        """Take what waited: a large message, or a few small ones."""
        for _ in range(HEARD_AT_ONCE):
            if not self._unheard or self._over:
                break
            self._take(self._unheard.popleft())
            if self._unheard and len(self._unheard[0]) > LARGE_REQUEST:
                break
        if self._unheard and not self._over:
            self._server.hear_later(self)
        else:
            self.call.read_on()

    def _take(self, message: bytes) -> None:
        """Take a message. Until its token is known to be good, a stream costs its node and the bytes that it sent."""
        peer = self._peer
        if peer is not None and peer.admitted:
            self._receive(peer, self._decoded(message)[0])
            return
        if peer is None:
            _, node = self._decoded(message)
            peer = self._peer = self._introduced(node)
            message = codec.without_node(message, delta=self._delta)
        if peer.admitted is False:
            self._ignored = True
            return
        self._held.append(message)
        self._held_bytes += len(message)
        self._server.held += len(message)
        if self._held_bytes > MOST_HELD or self._server.held > MOST_HELD_OF_ALL:
            raise CallError(
                Status.RESOURCE_EXHAUSTED,
                "too much was sent before it is known whether the token may act for the service: try again later",
            )
        self.wake()

    def _decoded(self, message: bytes) -> tuple[Request, codec.Node | None]:
        try:
            return codec.decode(message, delta=self._delta)
        except codec.BadRequestError as error:
            raise CallError(Status.INVALID_ARGUMENT, str(error)) from error

    def _release(self) -> list[bytes]:
        """Return what was held, which is held no longer."""
        held, self._held = self._held, []
        self._server.held -= self._held_bytes
        self._held_bytes = 0
        return held

    def _admission(self, peer: Peer) -> None:
        """Take what was held, now that the token is known to be good; throw it away where it is known not to be."""
        if peer.admitted is None:
            return
        held = self._release()
        if not peer.admitted:
            self._ignored = self._ignored or bool(held)
        elif self._ignored:
            self.end("its token may act for its service now: connect again")
        else:
            for message in held:
                self._receive(peer, self._decoded(message)[0])

    def _receive(self, peer: Peer, request: Request) -> None:
        try:
            received = peer.session.receive(request)
        except LimitError as error:
            raise CallError(Status.RESOURCE_EXHAUSTED, str(error)) from error
        seconds = None
        if received.acknowledged is not None:
            sent_at = self._sent_at.pop(request.type_url, None)
            seconds = self._clock() - sent_at if sent_at is not None else None
        self._server.registry.received(peer, received, seconds)
        if peer.session.may_send:  # most acknowledgements leave nothing to do
            self.wake()

    def _introduced(self, node: codec.Node | None) -> Peer:
        if node is None or not node.id or not usable_name(node.cluster):
            raise CallError(
                Status.INVALID_ARGUMENT,
                "the first request must carry node.id, the sidecar's service ID in Consul, and node.cluster, the"
                " service it is a sidecar of; 'gossamer bootstrap' writes both",
            )
        token = self.call.metadata.get(TOKEN_METADATA, "")
        peer = self._server.registry.connected(node, token, self.call.peer, delta=self._delta)
        peer.wake, peer.end = self.wake, self.end
        self.wake()
        return peer

    def half_closed(self) -> None:
        """The proxy has said all, which no proxy that wants to be served does."""
        self.call.end(Status.OK)

    def ended(self, why: str) -> None:
        """The stream is over."""
        self._over = True
        for timer in (self._giving_up, self._passing_on):
            if timer is not None:
                timer.cancel()
        self._release()
        self._turns.done(self.wake)
        if self._peer is not None:
            log.debug("stream from %s ended: %s", self.call.peer, why)
            self._server.registry.disconnected(self._peer)

    # -- what goes out ------------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Send what there is to send."""
        peer = self._peer
        if self._over or peer is None:
            return
        if self._held or self._ignored:
            self._admission(peer)
        if peer.ready and not self._over:
            if not self.call.clogged:
                self._send_all(peer)
            elif self._passing_on is None:
                self._turns.done(self.wake)  # it can't use it, and asks again when what it was sent has been taken
        elif peer.incomplete and self._giving_up is None:
            self._giving_up = asyncio.get_running_loop().call_later(
                FIRST_ANSWER_WAIT_S, self.call.tell, peer.stop_waiting
            )

    def _send_all(self, peer: Peer) -> None:
        """Send what there is to send; the large ones when it is this stream's turn, the small ones meanwhile."""
        turns, call, session = self._turns, self.call, peer.session
        while True:
            response = session.next_response(None if turns.has(self.wake) else SMALL)
            if response is None:
                break
            message = codec.encode_response(response, delta=self._delta)
            self._passing_on = turns.writes(self.wake)
            self._sent_at[response.type_url] = self._clock()
            self._server.registry.sent(peer, response, len(message))
            call.send(message)
            if self._passing_on is not None:
                call.flush()
                if not call.clogged:
                    self._has_had_its_turn()
            if call.clogged:
                break  # `written` goes on
        call.flush()
        if call.clogged:
            return
        if session.held_back:
            turns.ask(self.wake)
        else:
            turns.done(self.wake)

    def written(self) -> None:
        """What was sent has been taken."""
        self._has_had_its_turn()
        self.wake()

    def _has_had_its_turn(self) -> None:
        if self._passing_on is not None:
            self._passing_on.cancel()
            self._passing_on = None
            self._turns.done(self.wake)

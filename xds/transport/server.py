"""The server: connections on sockets, and the calls on them.

Everything happens in callbacks of the event loop, so a call costs no task. A `Call` is handed to what the server was
given for its method, which answers with a `Conversation`: that is told what arrives on it, when there is room again
after there was none, and last that it ended, for whatever reason. Whatever goes wrong on one connection stays there.

One task looks after all connections: it asks those that have been silent for long for a sign of life, and ends those
that give none, take nothing, or never begin to speak.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import cast

from xds.transport import frames, messages
from xds.transport.call import Call, Conversation
from xds.transport.connection import Connection
from xds.transport.events import Data, Drained, Gone, Opened
from xds.transport.headers import Headers
from xds.transport.listening import ListenError, bind
from xds.transport.messages import Status

log = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0
SILENT_S = 120.0
"""After so long a peer is asked whether it is there. Asking three thousand every thirty seconds cost more than all else
about idle streams, and who has gone without a word costs memory only."""
ANSWER_WITHIN_S = 60.0
"""A host that is too busy to answer soon must not be made to come again."""
TAKE_WITHIN_S = 30.0
"""How long a peer may take next to nothing of what waits for it."""
TAKE_AT_LEAST = 16_384
"""Bytes; less is next to nothing."""
BACKLOG = 4096
CONTROL = 0
"""The stream that a connection itself is (RFC 9113)."""


class _Connection(asyncio.Protocol):
    """One connection on its socket."""

    transport: asyncio.Transport

    def __init__(self, server: GrpcServer) -> None:
        self.h2 = Connection()
        self.peer = ""
        self.heard = 0.0
        self.asked: float | None = None
        """When it was asked for a sign of life and has not answered since."""
        self.calls: dict[int, Call] = {}
        self._server = server
        self._reading = False
        self._taken, self._took_at = 0, 0.0
        """How much the client had taken when it was last looked at, and when that was last more than before."""
        self._held: set[int] = set()
        """The streams on whose account nothing is read."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        host, port = (transport.get_extra_info("peername") or ("?", 0))[:2]
        self.peer = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.heard = self._server.now()
        self._server.connections.add(self)

    def data_received(self, data: bytes) -> None:
        self.heard, self.asked = self._server.now(), None
        self._reading = True
        drained = []
        for event in self.h2.receive(data):
            match event:
                case Data(stream):
                    call = self.calls.get(stream)
                    if call is not None:
                        call.feed(event)
                case Opened(stream, headers):
                    self._opened(stream, headers, ended=event.ended)
                case Gone(stream, why):
                    self._end(stream, why)
                case Drained(stream):
                    drained.append(stream)
        self._reading = False
        self.flush()
        for stream in drained:
            call = self.calls.get(stream)
            if call is not None and call.is_over:
                self.forget(stream)
            elif call is not None and not self.paused:
                call.relieved()
        if self.h2.over is not None:
            hint = "" if self.h2.last_stream else " (gRPC is served here in plain text: no TLS, no HTTP/1)"
            log.info("connection from %s ended: %s%s", self.peer, self.h2.over, hint)
            self.transport.close()

    def _opened(self, stream: int, headers: Headers, *, ended: bool) -> None:
        if not messages.is_grpc(headers):
            self.h2.send_headers(stream, messages.NO_GRPC, last=True)
            return
        call = Call(self, stream, headers)
        begin = self._server.methods.get(call.metadata[":path"])
        self.calls[stream] = call
        if begin is None:
            call.end(Status.UNIMPLEMENTED, f"there is no {call.metadata[':path'][:100]} here")
            return
        call.conversation = begin(call)
        if ended:
            call.feed(Data(stream, b"", ended=True))

    def hold(self, stream: int) -> None:
        """Read nothing on account of this stream."""
        self._held.add(stream)
        self.transport.pause_reading()

    def release(self, stream: int) -> None:
        """Read on, as far as this stream is concerned."""
        self._held.discard(stream)
        if not self._held:
            self.transport.resume_reading()

    def forget(self, stream: int) -> Call | None:
        """Nothing more is about this stream; the call that was on it."""
        if stream in self._held:
            self.release(stream)
        return self.calls.pop(stream, None)

    def _end(self, stream: int, why: str) -> None:
        call = self.forget(stream)
        if call is not None:
            call.gone(why)

    @property
    def paused(self) -> bool:
        """Whether the client does not read what it was sent."""
        return CONTROL in self._held

    def flush(self) -> None:
        """Write what there is to write; while something is being read, that is once, when it has been."""
        if not self._reading and (out := self.h2.take()):
            self.transport.write(out)

    def pause_writing(self) -> None:
        self.hold(CONTROL)  # who does not read what it was sent can't ask for more
        for call in self.calls.values():
            call.clog()

    def resume_writing(self) -> None:
        self.release(CONTROL)
        for stream, call in list(self.calls.items()):
            if not self.h2.has_unsent(stream):
                call.relieved()

    def connection_lost(self, error: Exception | None) -> None:
        self._server.connections.discard(self)
        self._server.lost()
        calls, self.calls = self.calls, {}
        for call in calls.values():
            call.gone(str(error or self.h2.over or "the client left"))

    def shut(self) -> None:
        """Say goodbye and hang up."""
        self.h2.close(frames.NO_ERROR, "the server stops")
        self.flush()
        self.transport.close()
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # it would wait for the client to take it

    def look(self, now: float) -> None:
        """See that there is somebody at the other end."""
        self.h2.relent()
        taken = self.h2.sent - self.transport.get_write_buffer_size()
        if taken >= self._taken + TAKE_AT_LEAST:
            self._taken, self._took_at = taken, now
        since = min((call.clogged_since for call in self.calls.values() if call.clogged_since is not None), default=now)
        if now - max(since, self._took_at) > TAKE_WITHIN_S:
            self._give_up(f"it took next to nothing for {TAKE_WITHIN_S:.0f} s")
        elif self.asked is not None and now - self.asked > ANSWER_WITHIN_S:
            self._give_up(f"it did not answer a ping within {ANSWER_WITHIN_S:.0f} s")
        elif self.asked is None and now - self.heard > SILENT_S:
            if not self.h2.last_stream:
                self._give_up(f"it opened no stream within {SILENT_S:.0f} s")
            else:
                self.asked = now
                self.h2.ping()
                self.flush()

    def _give_up(self, why: str) -> None:
        log.warning("connection from %s ended: %s", self.peer, why)
        self.transport.abort()


class GrpcServer:
    """Serves bidirectional streams on one address.

    Args:
        methods: by path, ``/package.Service/Method``, what makes a conversation of a call.
    """

    def __init__(self, methods: Mapping[str, Callable[[Call], Conversation]]) -> None:
        self.methods = methods
        self.connections: set[_Connection] = set()
        self.now: Callable[[], float] = lambda: 0.0
        self._servers: list[asyncio.Server] = []
        self._looking: asyncio.Task[None] | None = None
        self._none_left = asyncio.Event()

    async def start(self, address: str, *, shared: bool = False) -> int:
        """Listen on ``address`` (``host:port``, port 0 for a free one); ``shared`` with other processes.

        Returns:
            The port.

        Raises:
            ListenError: the address can't be listened on.
        """
        loop = asyncio.get_running_loop()
        self.now = loop.time
        bound = await bind(address, shared=shared)
        try:
            for each in bound:
                self._servers.append(await loop.create_server(lambda: _Connection(self), sock=each, backlog=BACKLOG))
        except OSError as error:
            for each in bound:
                each.close()
            raise ListenError(f"can't listen on {address}: {error.strerror or error}") from error
        self._looking = asyncio.create_task(self._look())
        return int(self._servers[0].sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Stop listening and end every connection."""
        for server in self._servers:
            server.close()
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        for connection in list(self.connections):
            connection.shut()
        while self.connections:
            self._none_left.clear()
            await self._none_left.wait()

    def lost(self) -> None:
        """A connection has gone."""
        if not self.connections:
            self._none_left.set()

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            now = self.now()
            for connection in list(self.connections):
                try:
                    connection.look(now)
                except Exception:
                    log.exception("looking after the connection from %s failed", connection.peer)

"""A call in progress, and what is made of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol, TypeVarTuple, Unpack

from xds.transport import frames, messages
from xds.transport.connection import Connection
from xds.transport.events import Data
from xds.transport.headers import Headers, headers_block
from xds.transport.messages import Assembler, CallError, Status

log = logging.getLogger(__name__)
Arguments = TypeVarTuple("Arguments")


class Carrier(Protocol):
    """The connection that a call is on."""

    h2: Connection
    peer: str
    """The client's address."""

    def flush(self) -> None:
        """Write what there is to write."""

    def hold(self, stream: int) -> None:
        """Read nothing on account of this stream."""

    def release(self, stream: int) -> None:
        """Read on, as far as this stream is concerned."""

    def forget(self, stream: int) -> object:
        """Nothing more is about this stream."""


class Conversation(Protocol):
    """What is made of a call."""

    def message(self, message: bytes) -> None:
        """A message arrived.

        Raises:
            CallError: the call can't go on.
        """

    def half_closed(self) -> None:
        """The client has said all."""

    def written(self) -> None:
        """There is room again: `Call.clogged` is over."""

    def ended(self, why: str) -> None:
        """The call is over. It is told nothing more."""


class Call:
    """A call in progress, as seen by who answers it."""

    def __init__(self, connection: Carrier, stream: int, headers: Headers) -> None:
        self.peer = connection.peer
        """The client's address."""
        self.metadata = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
        self.conversation: Conversation | None = None
        self.clogged_since: float | None = None
        """Since when (loop time) it has been taking nothing."""
        self._connection: Carrier | None = connection
        self._stream = stream
        self._assembler = Assembler()
        self._answered = False

    @property
    def clogged(self) -> bool:
        """Whether what was sent waits to be taken. More can be sent, and waits as well."""
        return self.clogged_since is not None

    @property
    def is_over(self) -> bool:
        """Whether it ended, though something may still wait to be taken."""
        return self._connection is None

    def send(self, message: bytes) -> None:
        """Send a message, with whatever else is sent until `flush`."""
        connection = self._connection
        if connection is None:
            return
        if not self._answered:
            self._answered = True
            connection.h2.send_headers(self._stream, messages.RESPONSE_HEADERS)
        before = messages.prefix(len(message))
        if len(message) < frames.DEFAULT_FRAME_SIZE:
            at_once = connection.h2.send(self._stream, before + message)
        else:
            connection.h2.send(self._stream, before)  # in a frame of its own, rather than copy what is large
            at_once = connection.h2.send(self._stream, message)
        if not at_once:
            self.clog()

    def flush(self) -> None:
        """Have on its way what was sent."""
        if self._connection is not None:
            self._connection.flush()

    def end(self, status: Status, details: str = "") -> None:
        """End it, after all that was sent."""
        connection = self._connection
        if connection is not None:
            ending = messages.trailers(status, details)
            if not self._answered:
                ending = [(":status", "200"), ("content-type", "application/grpc"), *ending]
            connection.h2.send_headers(self._stream, headers_block(*ending), last=True)
            if connection.h2.has_unsent(self._stream):
                self.clog()  # it stays known until that is taken
                connection.release(self._stream)
            else:
                connection.forget(self._stream)
            connection.flush()
            self.gone(details or status.name)

    def tell(self, listener: Callable[[Unpack[Arguments]], None], *arguments: *Arguments) -> None:
        """Call ``listener``, which is about this call: whatever goes wrong in it ends this call, and nothing else."""
        try:
            listener(*arguments)
        except CallError as error:
            self.end(error.status, str(error))
        except Exception:
            log.exception("a call from %s failed", self.peer)
            self.end(Status.INTERNAL, "the server failed; its log says how")

    def stop_reading(self) -> None:
        """Take nothing more from this client's connection until `read_on`."""
        if self._connection is not None:
            self._connection.hold(self._stream)

    def read_on(self) -> None:
        """Take again what it sends."""
        if self._connection is not None:
            self._connection.release(self._stream)

    # -- what its connection tells it ---------------------------------------------------------------------------------

    def clog(self) -> None:
        """What was sent waits."""
        if self.clogged_since is None:
            self.clogged_since = asyncio.get_running_loop().time()

    def feed(self, data: Data) -> None:
        """Something arrived."""
        if self._connection is not None:
            self.tell(self._feed, data)

    def _feed(self, data: Data) -> None:
        assert self.conversation is not None
        for message in self._assembler.feed(data.data) if data.data else ():
            self.conversation.message(message)
            if self._connection is None:
                return  # by what that message said
        if data.ended:
            self.conversation.half_closed()

    def relieved(self) -> None:
        """Nothing waits any more."""
        if self.clogged_since is not None:
            self.clogged_since = None
            if self.conversation is not None and self._connection is not None:
                self.tell(self.conversation.written)

    def gone(self, why: str) -> None:
        """It is over."""
        if self._connection is not None:
            self._connection = None
            if self.conversation is not None:
                try:
                    self.conversation.ended(why)
                except Exception:
                    log.exception("the end of a call from %s failed", self.peer)

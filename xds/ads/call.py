"""One gRPC call of grpc.aio, in the form that a stream of the xDS protocol needs.

grpc.aio permits one write at a time, and a cancelled write makes the call unusable. So a call writes one message at a
time in a task of its own, and reports when that is done; a call whose client reads nothing is ended, not retried. A
call can be ended from anywhere on the event loop, with a status.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from xds.ads.listening import peer_address
from xds.ads.tls import spiffe_ids

log = logging.getLogger(__name__)

STATUS_TIMEOUT = 5.0
"""Seconds that a client has to accept the status that ends its call."""


class CallError(Exception):
    """Reason why a call can't go on, and the gRPC status that it ends with."""

    def __init__(self, status: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.status = status


class Call:
    """Call in progress. Make it in the task that handles the call.

    Args:
        context: grpc.aio's context of the call.
        on_written: called when a message has been written, that is, when its last byte left for the client.
    """

    def __init__(self, context: Any, on_written: Callable[[], None]) -> None:
        self.peer = peer_address(context.peer())
        """The client's address, ``host:port``."""
        self.metadata: dict[str, str] = {
            name: value for name, value in context.invocation_metadata() or () if isinstance(value, str)
        }
        self.spiffe_ids = spiffe_ids(context)
        """The identities that the client's certificate proves."""
        self.writing_since: float | None = None
        """The event loop's time at which the write in progress began."""
        self._context = context
        self._on_written = on_written
        self._loop = asyncio.get_running_loop()
        self._handler = asyncio.current_task()
        self._writing: asyncio.Task[None] | None = None
        self._ending: CallError | None = None
        self._over = False

    @property
    def is_over(self) -> bool:
        """Whether the call ended, or is about to."""
        return self._over or self._ending is not None

    @property
    def is_writing(self) -> bool:
        """Whether a message is being written."""
        return self.writing_since is not None

    async def read(self) -> bytes | None:
        """Return the client's next message, ``None`` after its last one."""
        message = await self._context.read()
        return None if message is grpc.aio.EOF else message

    def write(self, message: bytes) -> None:
        """Write a message; no other may be in progress."""
        assert self.writing_since is None, "one write at a time"
        self.writing_since = self._loop.time()
        self._writing = self._loop.create_task(self._write(message))

    async def _write(self, message: bytes) -> None:
        try:
            await self._context.write(message)
        except Exception as error:
            # The client left: its handler is cancelled by gRPC.
            log.debug("a message to %s was not written: %r", self.peer, error)
            return
        self.writing_since = None
        if not self.is_over:
            self.guarded(self._on_written)

    def guarded(self, do: Callable[[], None]) -> None:
        """Call ``do``, which concerns this call; an error in it ends this call and nothing else."""
        try:
            do()
        except CallError as error:
            self.end(error.status, str(error))
        except Exception:
            log.exception("a call from %s failed", self.peer)
            self.end(grpc.StatusCode.INTERNAL, "the server failed; its log says how")

    def end(self, status: grpc.StatusCode, details: str) -> None:
        """End the call with a status, after the message that is being written."""
        if not self.is_over and self._handler is not None:
            self._ending = CallError(status, details)
            self._handler.cancel()

    async def run(self, conversation: Callable[[], Awaitable[None]]) -> str:
        """Await ``conversation()`` and end the call: with the status that `end` or an error gave, otherwise with OK.

        Returns:
            Why the call ended.
        """
        try:
            await conversation()
        except CallError as error:
            self._ending = self._ending or error
        except asyncio.CancelledError:
            if self._ending is None:
                return "the client left, or the server stops"
            if self._handler is not None:
                self._handler.uncancel()
        except Exception:
            log.exception("a call from %s failed", self.peer)
            self._ending = CallError(grpc.StatusCode.INTERNAL, "the server failed; its log says how")
        finally:
            self._over = True
            if self._ending is None:
                await self._stop_writing()
        if self._ending is None:
            return "the client closed it"
        if self._handler is not None and self._handler.cancelling():
            # `end` was called while the conversation was ending: its cancellation must not stop the status.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
            self._handler.uncancel()
        await self._send_status(self._ending)
        return str(self._ending)

    async def _send_status(self, ending: CallError) -> None:
        """Send the status that ends the call; a client that does not accept it in time is disconnected."""
        try:
            async with asyncio.timeout(STATUS_TIMEOUT):
                if self._writing is not None:
                    await asyncio.shield(self._writing)
                await self._context.abort(ending.status, str(ending))
        except (grpc.aio.AbortError, TimeoutError):
            pass
        except asyncio.CancelledError:
            log.debug("the client %s left before the status reached it", self.peer)
        except Exception as error:
            log.debug("the status did not reach %s: %r", self.peer, error)
        finally:
            await self._stop_writing()

    async def _stop_writing(self) -> None:
        if self._writing is not None and not self._writing.done():
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)

"""An event loop on which gRPC's completions don't fall behind.

grpc.aio has a thread that waits for completed reads and writes, queues them, and writes one byte for each to a pair of
sockets; its handler on the loop takes all that is queued, but reads one byte. So a burst of a thousand completions
leaves hundreds of bytes, each of which wakes the loop once more for nothing. Worse, a pair of Unix sockets holds some
280 such bytes: from there on the thread itself is stuck in writing, and lets one completion through for each turn of
the loop. While a change that is about everybody keeps the turns at 20 ms, a write of some bytes was not known to be
complete before a second was over.

This loop reads what has gathered, but for the one byte, before gRPC's handler runs.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, TypeVarTuple, Unpack

Arguments = TypeVarTuple("Arguments")
GRPC_QUEUE = "PollerCompletionQueue"
MOST_BYTES = 4096
"""More than a pair of Unix sockets holds of them."""


class EventLoop(asyncio.SelectorEventLoop):
    """asyncio's own, that knows gRPC's handler when it sees it."""

    def add_reader(self, fd: Any, callback: Callable[[Unpack[Arguments]], Any], *args: *Arguments) -> None:
        """Call ``callback`` whenever ``fd`` can be read; gRPC's with all but one byte gone."""
        owner = getattr(getattr(callback, "func", callback), "__self__", None)
        if type(owner).__name__ != GRPC_QUEUE or not isinstance(fd, socket.socket):
            super().add_reader(fd, callback, *args)
            return

        def drained() -> None:
            # The byte has to be there: gRPC's handler does nothing without one.
            waiting = len(fd.recv(MOST_BYTES, socket.MSG_PEEK))
            if waiting > 1:
                fd.recv(waiting - 1)
            callback(*args)

        super().add_reader(fd, drained)

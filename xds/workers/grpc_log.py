"""Takes over the log that gRPC writes to standard error.

gRPC's C++ code writes to file descriptor 2 and has no other way to hand its log over. So the descriptor becomes one end
of a pipe that the event loop reads, and Python's own standard error the descriptor that was there before. Writing to
the pipe never blocks: lines for which it has no room are lost.

An operator who sets ``GRPC_VERBOSITY`` or ``GRPC_TRACE`` gets gRPC's log as it is.
"""

from __future__ import annotations

import asyncio
import faulthandler
import fcntl
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress

from xds.ads.handshakes import Event, Other, Parser

log = logging.getLogger(__name__)

STANDARD_ERROR = 2
PIPE_SIZE = 1 << 20
"""Bytes of gRPC's log that wait while the event loop is busy; a connection makes some three thousand."""
VARIABLES: Mapping[str, str] = {"GRPC_VERBOSITY": "info", "GRPC_TRACE": "handshaker"}


class GrpcLog:
    """gRPC's log.

    Args:
        reader: the end of the pipe that is read; ``None`` where the log is left as it is.
    """

    def __init__(self, reader: int | None = None) -> None:
        self._reader = reader
        self._parser = Parser()

    @contextmanager
    def followed(self, take: Callable[[Event], None]) -> Iterator[None]:
        """Pass events of connections to ``take``, and log all other lines, as long as the block runs."""
        if self._reader is None:
            yield
            return
        loop = asyncio.get_running_loop()
        loop.add_reader(self._reader, self._read, self._reader, take)
        try:
            yield
        finally:
            loop.remove_reader(self._reader)

    def _read(self, reader: int, take: Callable[[Event], None]) -> None:
        for event in self._parser.feed(os.read(reader, PIPE_SIZE)):
            if not isinstance(event, Other):
                take(event)
            elif event.text.strip():
                # Clients can influence it, so it is quoted, and limited like every line.
                source = "gRPC" if event.grpc else "standard error"
                log.warning("%s: %r", source, event.text.decode("utf-8", "replace"))


def take_over(environment: MutableMapping[str, str]) -> GrpcLog:
    """Take gRPC's log over; to be called before gRPC is first used and before logging is configured.

    gRPC reads the variables of ``environment`` when it is imported. A process that imports it first must be started
    with them.
    """
    if not _writes_to_standard_error() or any(environment.get(key, value) != value for key, value in VARIABLES.items()):
        return GrpcLog()
    environment.update(VARIABLES)
    before = os.dup(STANDARD_ERROR)
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    with suppress(OSError):  # the user's limit of pages in pipes is reached
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    sys.stderr.flush()
    sys.stderr = os.fdopen(before, "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    os.dup2(writer, STANDARD_ERROR, inheritable=False)
    os.close(writer)
    # Python's message at a crash would be lost in the pipe.
    faulthandler.enable(sys.stderr)
    return GrpcLog(reader)


def _writes_to_standard_error() -> bool:
    """Return whether Python's standard error is the process's: not where there is none, or something captures it."""
    try:
        return sys.stderr.fileno() == STANDARD_ERROR
    except (AttributeError, OSError):
        return False

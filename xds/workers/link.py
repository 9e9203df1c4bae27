"""Messages between the process that reads and a worker: Python objects over a private socket."""

from __future__ import annotations

import asyncio
import pickle
import socket
import struct
from dataclasses import dataclass
from typing import Any

from xds.mesh.mesh import Batch, Demand
from xds.workers.xds_settings import XdsSettings

_LENGTH = struct.Struct(">Q")


@dataclass(frozen=True, slots=True)
class Start:
    """First message to a worker: what to serve."""

    settings: XdsSettings
    log_level: int


@dataclass(frozen=True, slots=True)
class Listening:
    """Message from a worker: it serves, or why it can't."""

    port: int
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """Message to a worker: facts."""

    batch: Batch


@dataclass(frozen=True, slots=True)
class Wanted:
    """Message from a worker: what its sidecars need."""

    demand: Demand


@dataclass(frozen=True, slots=True)
class Drain:
    """Message to a worker: end the streams over at most so many seconds, then exit."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Question:
    """Message to a worker: describe your sidecars, or your metrics."""

    number: int
    about: str
    """``sidecars`` or ``families``."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Message from a worker: an answer."""

    number: int
    data: Any


class Link:
    """End of the socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, end: socket.socket) -> Link:
        """Make a link over ``end``."""
        return cls(*await asyncio.open_connection(sock=end))

    def send(self, message: object) -> None:
        """Send something, as soon as the other end takes it."""
        body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        self._writer.write(_LENGTH.pack(len(body)) + body)

    async def receive(self) -> object | None:
        """Return the other end's next message; ``None`` once it has gone."""
        try:
            head = await self._reader.readexactly(_LENGTH.size)
            body = await self._reader.readexactly(_LENGTH.unpack(head)[0])
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        message: object = pickle.loads(body)  # noqa: S301 - from a process of Gossamer, over a private socket
        return message

    def close(self) -> None:
        """Close the socket."""
        self._writer.close()

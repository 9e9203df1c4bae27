"""What happens on a connection, as whoever uses it is told."""

from __future__ import annotations

from dataclasses import dataclass

from xds.transport.headers import Headers


@dataclass(slots=True)
class Opened:
    """The peer opened a stream."""

    stream: int
    headers: Headers
    ended: bool
    """Whether nothing more will come on it."""


@dataclass(slots=True)
class Data:
    """Something arrived on a stream; nothing, where it only ``ended``."""

    stream: int
    data: bytes
    ended: bool


@dataclass(slots=True)
class Gone:
    """A stream was torn down, by the peer or because of what it did."""

    stream: int
    why: str


@dataclass(slots=True)
class Drained:
    """All that waited for a stream's window has been sent."""

    stream: int


Event = Opened | Data | Gone | Drained

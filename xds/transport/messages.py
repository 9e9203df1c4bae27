"""gRPC on a stream: what is a request to it, how messages are framed, how a call ends (gRPC over HTTP/2)."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from urllib.parse import quote

from xds.transport.headers import Headers, headers_block

MOST_MESSAGE = 8 << 20
"""Bytes of one message. A proxy that comes back says of each resource what it has, some sixty bytes."""
PREFIX = 5


class Status(IntEnum):
    """How a call ends (gRPC's status codes, those that are used here)."""

    OK = 0
    INVALID_ARGUMENT = 3
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


class CallError(Exception):
    """A call can't go on; how it is to end."""

    def __init__(self, status: Status, details: str) -> None:
        super().__init__(details)
        self.status = status


class Assembler:
    """Messages out of the data of a stream."""

    def __init__(self) -> None:
        self._partial = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The messages that are whole with ``data``.

        Raises:
            CallError: it is compressed, though nobody said that we would read that, or larger than `MOST_MESSAGE`.
        """
        if not self._partial and len(data) >= PREFIX and not data[0] and _size(data) == len(data):
            yield data[PREFIX:]  # nearly all are
            return
        self._partial += data
        while len(self._partial) >= PREFIX:
            if self._partial[0]:
                raise CallError(Status.UNIMPLEMENTED, "messages must not be compressed")
            size = _size(self._partial)
            if size > MOST_MESSAGE:
                raise CallError(Status.RESOURCE_EXHAUSTED, f"a message of {size} bytes, more than {MOST_MESSAGE}")
            if len(self._partial) < size:
                return
            message = bytes(self._partial[PREFIX:size])
            del self._partial[:size]
            yield message


def _size(data: bytes | bytearray) -> int:
    return PREFIX + int.from_bytes(data[1:PREFIX], "big")


def prefix(length: int) -> bytes:
    """What stands before a message of ``length`` bytes."""
    return b"\x00" + length.to_bytes(4, "big")


RESPONSE_HEADERS = headers_block((":status", "200"), ("content-type", "application/grpc"))
NO_GRPC = headers_block((":status", "415"))
"""The answer to what is no gRPC request."""


def trailers(status: Status, details: str) -> list[tuple[str, str]]:
    """The headers that end a call."""
    said = [("grpc-message", quote(details[:1024], safe=" !#$&'()*+,-./:;<=>?@[]^_`{|}~\""))] if details else []
    return [("grpc-status", str(int(status))), *said]


def is_grpc(headers: Headers) -> bool:
    """Whether a request is meant as a gRPC call."""
    found = dict(headers)
    return found[b":method"] == b"POST" and found.get(b"content-type", b"").startswith(b"application/grpc")

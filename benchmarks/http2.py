"""One gRPC stream over a connection of its own, by a client that costs as little as Python allows.

The figures are about the server. A client library takes as long for a message as the server does, and with two cores
between them "the last client has it" would then be a figure about the client. So this speaks just the HTTP/2 that one
long stream needs (RFC 9113): headers go out uncompressed, what comes back in headers is not read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from struct import iter_unpack, pack
from typing import cast

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
INITIAL_WINDOW_SIZE = 4
DEFAULT_WINDOW = 65_535
DEFAULT_FRAME_SIZE = 16_384
LITERAL = 0x10
"""A header that is never indexed, its name spelled out (RFC 7541, section 6.2.3)."""
WINDOW = (1 << 24) - 1


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return a whole frame."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def window_update(stream: int, increment: int) -> bytes:
    """Return a WINDOW_UPDATE frame; ``stream`` 0 for the whole connection."""
    return frame(WINDOW_UPDATE, 0, stream, increment.to_bytes(4, "big"))


def headers_block(*headers: tuple[str, str]) -> bytes:
    """Return headers uncompressed; names and values have less than 127 bytes each."""
    block = bytearray()
    for header in headers:
        block.append(LITERAL)
        for text in header:
            assert len(text) < 127
            block += bytes((len(text),)) + text.encode()
    return bytes(block)


def prefix(length: int) -> bytes:
    """Return what stands before a gRPC message of ``length`` bytes."""
    return b"\0" + length.to_bytes(4, "big")


class GrpcStream(asyncio.Protocol):
    """A bidirectional stream; ``on_message`` gets each message as it arrives, ``on_end`` is told of the end."""

    def __init__(self, path: str, on_message: Callable[[bytes], None], on_end: Callable[[], None]) -> None:
        self._path = path
        self._on_message = on_message
        self._on_end = on_end
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._message = bytearray()
        self._unsent = bytearray()
        self._flushes = False
        self._may_send = {0: DEFAULT_WINDOW, 1: DEFAULT_WINDOW}
        self._first_window = DEFAULT_WINDOW
        self._taken = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        headers = headers_block(
            (":method", "POST"),
            (":scheme", "http"),
            (":path", self._path),
            (":authority", "bench"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        )
        self._transport.write(
            PREFACE
            + frame(SETTINGS, 0, 0, pack(">HI", INITIAL_WINDOW_SIZE, WINDOW))
            + window_update(0, WINDOW - DEFAULT_WINDOW)
            + frame(HEADERS, END_HEADERS, 1, headers)
        )

    def connection_lost(self, _error: Exception | None) -> None:
        self._on_end()

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.abort()

    def send(self, message: bytes) -> None:
        """Send a message, as soon as the other side's windows let it.

        As Envoy does, with one write for all that is to be sent in a turn of the loop.
        """
        self._unsent += prefix(len(message)) + message
        if not self._flushes:
            self._flushes = True
            asyncio.get_running_loop().call_soon(self._flush_all)

    def _flush_all(self) -> None:
        self._flushes = False
        if self._transport is not None and not self._transport.is_closing():
            self._flush()

    def _flush(self) -> None:
        assert self._transport is not None
        out = []
        while self._unsent and (room := min(DEFAULT_FRAME_SIZE, *self._may_send.values())) > 0:
            payload = bytes(self._unsent[:room])
            del self._unsent[:room]
            for stream in self._may_send:
                self._may_send[stream] -= len(payload)
            out.append(frame(DATA, 0, 1, payload))
        if out:
            self._transport.write(b"".join(out))

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        start, end = 0, len(received)
        while end - start >= 9:
            length = int.from_bytes(received[start : start + 3], "big")
            stop = start + 9 + length
            if stop > end:
                break
            kind = received[start + 3]
            if kind == DATA:
                self._message += received[start + 9 : stop]
                self._taken += length
            else:
                self._control(kind, received[start + 4], received[start + 5 : start + 9], received[start + 9 : stop])
            start = stop
        del received[:start]
        self._deliver()
        if self._taken > WINDOW // 2:
            assert self._transport is not None
            self._transport.write(window_update(0, self._taken) + window_update(1, self._taken))
            self._taken = 0

    def _deliver(self) -> None:
        message = self._message
        while len(message) >= 5:
            stop = 5 + int.from_bytes(message[1:5], "big")
            if len(message) < stop:
                return
            whole = bytes(message[5:stop])
            del message[:stop]
            self._on_message(whole)

    def _control(self, kind: int, flags: int, stream: bytearray, payload: bytearray) -> None:
        assert self._transport is not None
        if kind == SETTINGS and not flags & ACK:
            for name, value in iter_unpack(">HI", payload):
                if name == INITIAL_WINDOW_SIZE:
                    self._may_send[1] += value - self._first_window
                    self._first_window = value
            self._transport.write(frame(SETTINGS, ACK, 0))
            self._flush()
        elif kind == PING and not flags & ACK:
            self._transport.write(frame(PING, ACK, 0, bytes(payload)))
        elif kind == WINDOW_UPDATE:
            number = int.from_bytes(stream, "big")
            if number in self._may_send:
                self._may_send[number] += int.from_bytes(payload, "big")
                self._flush()
        elif kind in (RST_STREAM, GOAWAY) or (kind == HEADERS and flags & END_STREAM):
            self._transport.abort()

"""Header blocks: put together from frames, decoded, judged; and those that are sent (RFC 9113 section 8, RFC 7541)."""

from __future__ import annotations

import logging

import hpack

from xds.transport import frames
from xds.transport.faults import BrokenConnectionError

logging.getLogger("hpack").setLevel(logging.WARNING)  # at debug it tells every header, tokens among them

Headers = list[tuple[bytes, bytes]]

MOST_HEADERS = 64 * 1024
"""Bytes of one header block, as sent and as decoded."""
SHRUNK = b"\x20"
"""Before a block: a dynamic table of size 0 (RFC 7541, section 6.3). None of our blocks uses it, and a client that
wants a smaller one than the usual is to be told that it has it."""


class HeaderBlocks:
    """The header blocks of one connection, of which one at a time is under way."""

    def __init__(self) -> None:
        self.stream: int | None = None
        """Whose block is under way."""
        self.ends_stream = False
        """Whether nothing follows it on its stream."""
        self._block = bytearray()
        self._decoder = hpack.Decoder(max_header_list_size=MOST_HEADERS)

    def begin(self, flags: int, stream: int, payload: bytes) -> None:
        """A HEADERS frame.

        Raises:
            BrokenConnectionError: it is malformed.
        """
        if flags & frames.PADDED:
            payload = unpadded(payload)
        if flags & frames.WITH_PRIORITY:
            if len(payload) < 5:
                raise BrokenConnectionError(frames.FRAME_SIZE_ERROR, "HEADERS too short for its priority")
            if int.from_bytes(payload[:4], "big") & frames.LARGEST_WINDOW == stream:
                raise BrokenConnectionError(frames.PROTOCOL_ERROR, "a stream that depends on itself")
            payload = payload[5:]
        if stream % 2 == 0:
            raise BrokenConnectionError(frames.PROTOCOL_ERROR, f"stream {stream} is not a client's")
        self.stream, self.ends_stream = stream, bool(flags & frames.END_STREAM)
        self._block = bytearray(payload)

    def go_on(self, payload: bytes) -> None:
        """A CONTINUATION frame."""
        self._block += payload

    @property
    def size(self) -> int:
        """Bytes that have come of the block under way."""
        return len(self._block)

    def whole(self) -> Headers:
        """The headers of the block under way, which is whole.

        Raises:
            BrokenConnectionError: it can't be decoded.
        """
        self.stream = None
        try:
            decoded = self._decoder.decode(bytes(self._block), raw=True)
        except hpack.HPACKError as error:
            # Its words may hold what the headers do.
            why = f"headers can't be decoded: {type(error).__name__}"
            raise BrokenConnectionError(frames.COMPRESSION_ERROR, why) from error
        return [(bytes(name), bytes(value)) for name, value in decoded]


def headers_block(*headers: tuple[str, str]) -> bytes:
    """An encoded header block that leaves no trace in the compression's state, so that each can be made by itself."""
    encoder = hpack.Encoder()
    return encoder.encode([hpack.NeverIndexedHeaderTuple(*header) for header in headers], huffman=False)


def unpadded(payload: bytes) -> bytes:
    """A payload without its padding.

    Raises:
        BrokenConnectionError: there is more padding than payload.
    """
    if not payload or payload[0] >= len(payload):
        raise BrokenConnectionError(frames.PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - payload[0]]


ONCE = (b":method", b":scheme", b":path", b":authority")
NEVER = frozenset((b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"))


def malformed(headers: Headers) -> str | None:
    """What is wrong with a request's headers, if anything (RFC 9113, sections 8.2 and 8.3)."""
    pseudo: set[bytes] = set()
    regular = False
    for name, value in headers:
        if name.startswith(b":"):
            if regular or name in pseudo or name not in ONCE or not value:
                return f"pseudo-header {name!r} is unknown, late, repeated or empty"
            pseudo.add(name)
        else:
            regular = True
            if name != name.lower() or name in NEVER or (name == b"te" and value != b"trailers"):
                return f"header {name!r} is not allowed"
    missing = [name for name in ONCE[:3] if name not in pseudo]
    return f"no {missing[0]!r}" if missing else None

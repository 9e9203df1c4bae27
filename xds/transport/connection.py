"""One HTTP/2 connection, the server's side of it: a state machine without I/O (RFC 9113).

Bytes go in by `Connection.receive`, which answers with what happened; what is to be sent gathers until
`Connection.take`. Whoever uses it takes what arrives at once, so a window that was used is opened again unasked.

A peer can't make it hold much: header blocks and streams are bounded, and frames that cost it nothing are counted
(`Connection.relent` forgets them, now and then).
"""

from __future__ import annotations

import logging
import struct
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import hpack

from xds.transport import frames
from xds.transport.frames import (
    ACK,
    CONTINUATION,
    DATA,
    DEFAULT_FRAME_SIZE,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    HEAD,
    HEAD_SIZE,
    HEADERS,
    LARGEST_WINDOW,
    PADDED,
    PREFACE,
)

STREAM_WINDOW = 1 << 20
"""Bytes that a peer may send on a stream beyond what has been taken."""
CONNECTION_WINDOW = 4 << 20
MOST_STREAMS = 4
"""A proxy has one, for as long as it lives."""
MOST_HEADERS = 64 * 1024
"""Bytes of one header block, as sent and as decoded."""
MOST_CHEAP_FRAMES = 10_000
"""Frames without content that are borne between two calls of `Connection.relent`."""

REQUEST_COUNTS = 10
"""A request counts as so many of them, and a frame of data that is sent pays for two."""
MOST_ENDED = 64
"""Streams of which it is remembered that they were ended from here."""

Headers = list[tuple[bytes, bytes]]

logging.getLogger("hpack").setLevel(logging.WARNING)  # at debug it tells every header, tokens among them


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


class _ConnectionError(Exception):
    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


class _StreamError(Exception):
    def __init__(self, stream: int, code: int, why: str) -> None:
        super().__init__(why)
        self.stream, self.code = stream, code


@dataclass(slots=True)
class _Stream:
    window: int
    """Bytes that we may send."""
    room: int = STREAM_WINDOW
    """Bytes that the peer may send."""
    unsent: deque[memoryview] = field(default_factory=deque)
    last: bytes | None = None
    """The frame that ends it, to follow what is unsent."""
    ended: bool = False
    """Whether the peer has sent all."""


class Connection:
    """The state of one connection."""

    def __init__(self) -> None:
        self.over: str | None = None
        """Why nothing more can come of it, once that is so."""
        self.last_stream = 0
        """The last stream that the peer opened."""
        self._greeted = False
        self._rest = b""
        self._streams: dict[int, _Stream] = {}
        self._ended: deque[int] = deque(maxlen=MOST_ENDED)
        """Streams that were ended from here: what of theirs was under way is ignored (RFC 9113, section 5.1)."""
        self._waiting: dict[int, None] = {}
        """The streams that have something unsent."""
        self._block: tuple[int, int, bytearray] | None = None
        """A header block under way: its stream, the flags of its first frame, what has come."""
        self._headers = hpack.Decoder(max_header_list_size=MOST_HEADERS)
        self._window = DEFAULT_WINDOW
        self._room = CONNECTION_WINDOW
        self._first_window = DEFAULT_WINDOW
        self._frame_size = DEFAULT_FRAME_SIZE
        self._cheap = 0
        self.sent = 0
        """Bytes of data that went out."""
        self._shrunk = False
        """Whether the client was told that its memory of headers is not needed."""
        self._out: list[bytes | memoryview] = [
            frames.settings(
                {
                    frames.MAX_CONCURRENT_STREAMS: MOST_STREAMS,
                    frames.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
                    frames.MAX_HEADER_LIST_SIZE: MOST_HEADERS,
                }
            ),
            frames.window_update(0, CONNECTION_WINDOW - DEFAULT_WINDOW),
        ]
        self._controls: dict[int, Callable[[int, int, bytes, list[Event]], None]] = {
            frames.PRIORITY: self._priority,
            frames.RST_STREAM: self._rst_stream,
            frames.SETTINGS: self._settings,
            frames.PUSH_PROMISE: self._push_promise,
            frames.PING: self._ping,
            frames.GOAWAY: self._goaway,
            frames.WINDOW_UPDATE: self._window_update,
        }

    # -- what the peer sends ------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> list[Event]:
        """Take what arrived; what happened by it, in order. A fault of the peer's shows in `over`, or in `Gone`."""
        events: list[Event] = []
        if self.over is None:
            try:
                self._read(self._rest + data if self._rest else data, events)
            except _ConnectionError as error:
                self.close(error.code, str(error))
        return events

    def _read(self, data: bytes, events: list[Event]) -> None:
        at, end = 0, len(data)
        if not self._greeted:
            if not PREFACE.startswith(data[: len(PREFACE)]):
                raise _ConnectionError(frames.PROTOCOL_ERROR, "the client does not speak HTTP/2")
            if end < len(PREFACE):
                self._rest = data
                return
            self._greeted, at = True, len(PREFACE)
        while end - at >= HEAD_SIZE:
            high, low, kind, flags, stream = HEAD.unpack_from(data, at)
            length = high << 16 | low
            if length > DEFAULT_FRAME_SIZE:
                raise _ConnectionError(frames.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
            start = at + HEAD_SIZE
            if end - start < length:
                break
            at = start + length
            try:
                self._frame(kind, flags, stream & LARGEST_WINDOW, data[start:at], events)
            except _StreamError as error:
                self._tear_down(error, events)
        self._rest = data[at:]

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes, events: list[Event]) -> None:
        if self._block is not None and (kind != CONTINUATION or stream != self._block[0]):
            raise _ConnectionError(frames.PROTOCOL_ERROR, "a header block was interrupted")
        if kind == DATA:
            self._data(flags, stream, payload, events)
        elif kind == HEADERS:
            self._begin_block(flags, stream, payload)
            self._continue_block(flags, events)
        elif kind == CONTINUATION:
            if self._block is None:
                raise _ConnectionError(frames.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
            self._block[2].extend(payload)
            self._count_cheap()
            self._continue_block(flags, events)
        else:
            control = self._controls.get(kind)
            self._count_cheap()
            if control is not None:
                control(flags, stream, payload, events)

    def _data(self, flags: int, stream: int, payload: bytes, events: list[Event]) -> None:
        # The windows open again when half of them is used, which is more than a frame: nobody can overrun them.
        length = len(payload)
        self._room -= length
        if self._room < CONNECTION_WINDOW // 2:
            self._out.append(frames.window_update(0, CONNECTION_WINDOW - self._room))
            self._room = CONNECTION_WINDOW
        state = self._streams.get(stream)
        if state is None and stream in self._ended:
            return
        if state is None or state.ended:
            self._must_be_known(stream)
            raise _StreamError(stream, frames.STREAM_CLOSED, "data after the end")
        state.room -= length
        if flags & PADDED:
            payload = _unpadded(payload)
        ended = bool(flags & END_STREAM)
        if ended:
            state.ended = True
        elif state.room < STREAM_WINDOW // 2:
            self._out.append(frames.window_update(stream, STREAM_WINDOW - state.room))
            state.room = STREAM_WINDOW
        if payload or ended:
            events.append(Data(stream, payload, ended))
        else:
            self._count_cheap()

    def _begin_block(self, flags: int, stream: int, payload: bytes) -> None:
        if flags & PADDED:
            payload = _unpadded(payload)
        if flags & frames.WITH_PRIORITY:
            if len(payload) < 5:
                raise _ConnectionError(frames.FRAME_SIZE_ERROR, "HEADERS too short for its priority")
            if int.from_bytes(payload[:4], "big") & LARGEST_WINDOW == stream:
                raise _ConnectionError(frames.PROTOCOL_ERROR, "a stream that depends on itself")
            payload = payload[5:]
        if stream % 2 == 0:
            raise _ConnectionError(frames.PROTOCOL_ERROR, f"stream {stream} is not a client's")
        self._block = stream, flags, bytearray(payload)

    def _continue_block(self, flags: int, events: list[Event]) -> None:
        assert self._block is not None
        stream, first_flags, block = self._block
        if len(block) > MOST_HEADERS:
            raise _ConnectionError(frames.ENHANCE_YOUR_CALM, f"more than {MOST_HEADERS} bytes of headers")
        if not flags & END_HEADERS:
            return
        self._block = None
        self._count_cheap(REQUEST_COUNTS + len(block) // 100)  # the shorter, the less there is to decode
        try:
            decoded = self._headers.decode(bytes(block), raw=True)
        except hpack.HPACKError as error:
            # Its words may hold what the headers do.
            why = f"headers can't be decoded: {type(error).__name__}"
            raise _ConnectionError(frames.COMPRESSION_ERROR, why) from error
        headers: Headers = [(bytes(name), bytes(value)) for name, value in decoded]
        self._whole_block(stream, headers, ended=bool(first_flags & END_STREAM), events=events)

    def _whole_block(self, stream: int, headers: Headers, *, ended: bool, events: list[Event]) -> None:
        state = self._streams.get(stream)
        if state is not None:
            if state.ended:
                raise _StreamError(stream, frames.STREAM_CLOSED, "headers after the end")
            if not ended or any(name.startswith(b":") for name, _ in headers):
                raise _StreamError(stream, frames.PROTOCOL_ERROR, "headers in the middle of a stream")
            state.ended = True
            events.append(Data(stream, b"", ended=True))
            return
        if stream in self._ended:
            return
        if stream <= self.last_stream:
            raise _ConnectionError(frames.STREAM_CLOSED, f"stream {stream} was closed")
        self.last_stream = stream
        fault = _malformed(headers)
        if fault is not None:
            raise _StreamError(stream, frames.PROTOCOL_ERROR, fault)
        if len(self._streams) >= MOST_STREAMS:
            raise _StreamError(stream, frames.REFUSED_STREAM, f"more than {MOST_STREAMS} streams")
        self._streams[stream] = _Stream(self._first_window, ended=ended)
        events.append(Opened(stream, headers, ended))

    def _tear_down(self, error: _StreamError, events: list[Event]) -> None:
        self._count_cheap()
        self._out.append(frames.rst_stream(error.stream, error.code))
        self._ended.append(error.stream)
        if self._forget(error.stream):
            events.append(Gone(error.stream, str(error)))

    def _priority(self, _flags: int, stream: int, payload: bytes, _events: list[Event]) -> None:
        if stream == 0:
            raise _ConnectionError(frames.PROTOCOL_ERROR, "PRIORITY of no stream")
        if len(payload) != 5:
            raise _StreamError(stream, frames.FRAME_SIZE_ERROR, "PRIORITY is five bytes")
        if int.from_bytes(payload[:4], "big") & LARGEST_WINDOW == stream:
            raise _StreamError(stream, frames.PROTOCOL_ERROR, "a stream that depends on itself")

    def _rst_stream(self, _flags: int, stream: int, payload: bytes, events: list[Event]) -> None:
        if len(payload) != 4:
            raise _ConnectionError(frames.FRAME_SIZE_ERROR, "RST_STREAM is four bytes")
        self._must_be_known(stream)
        if self._forget(stream):
            events.append(Gone(stream, f"the client reset it, code {int.from_bytes(payload, 'big')}"))

    def _settings(self, flags: int, stream: int, payload: bytes, events: list[Event]) -> None:
        if stream != 0:
            raise _ConnectionError(frames.PROTOCOL_ERROR, "SETTINGS of a stream")
        if len(payload) % 6 or (flags & ACK and payload):
            raise _ConnectionError(frames.FRAME_SIZE_ERROR, f"SETTINGS of {len(payload)} bytes")
        if flags & ACK:
            return
        self._count_cheap(len(payload) // 6)
        said: dict[int, int] = dict(struct.iter_unpack(">HI", payload))  # of several values the last counts
        if said.get(frames.ENABLE_PUSH, 0) > 1:
            raise _ConnectionError(frames.PROTOCOL_ERROR, f"ENABLE_PUSH is {said[frames.ENABLE_PUSH]}")
        frame_size = said.get(frames.MAX_FRAME_SIZE, self._frame_size)
        if not DEFAULT_FRAME_SIZE <= frame_size <= frames.LARGEST_FRAME_SIZE:
            raise _ConnectionError(frames.PROTOCOL_ERROR, f"frames of {frame_size} bytes")
        self._frame_size = frame_size
        window = said.get(frames.INITIAL_WINDOW_SIZE, self._first_window)
        if window > LARGEST_WINDOW:
            raise _ConnectionError(frames.FLOW_CONTROL_ERROR, f"a window of {window} bytes")
        for state in self._streams.values():
            state.window += window - self._first_window
            if state.window > LARGEST_WINDOW:
                raise _ConnectionError(frames.FLOW_CONTROL_ERROR, "a window that is too large")
        self._first_window = window
        self._out.append(frames.frame(frames.SETTINGS, ACK, 0))
        self._send_what_waits(self._waiting, events)

    def _push_promise(self, _flags: int, _stream: int, _payload: bytes, _events: list[Event]) -> None:
        raise _ConnectionError(frames.PROTOCOL_ERROR, "PUSH_PROMISE from a client")

    def _ping(self, flags: int, stream: int, payload: bytes, _events: list[Event]) -> None:
        if stream != 0:
            raise _ConnectionError(frames.PROTOCOL_ERROR, "PING of a stream")
        if len(payload) != 8:
            raise _ConnectionError(frames.FRAME_SIZE_ERROR, "PING is eight bytes")
        if not flags & ACK:
            self._out.append(frames.frame(frames.PING, ACK, 0, payload))

    def _goaway(self, _flags: int, stream: int, payload: bytes, _events: list[Event]) -> None:
        if stream != 0:
            raise _ConnectionError(frames.PROTOCOL_ERROR, "GOAWAY of a stream")
        if len(payload) < 8:
            raise _ConnectionError(frames.FRAME_SIZE_ERROR, "GOAWAY is eight bytes or more")
        # The client opens no more streams; those that are open go on.

    def _window_update(self, _flags: int, stream: int, payload: bytes, events: list[Event]) -> None:
        if len(payload) != 4:
            raise _ConnectionError(frames.FRAME_SIZE_ERROR, "WINDOW_UPDATE is four bytes")
        more = int.from_bytes(payload, "big") & LARGEST_WINDOW
        if stream == 0:
            self._window += more
            if more == 0 or self._window > LARGEST_WINDOW:
                code = frames.FLOW_CONTROL_ERROR if more else frames.PROTOCOL_ERROR
                raise _ConnectionError(code, f"the connection's window opened by {more}")
            self._send_what_waits(self._waiting, events)
            return
        state = self._streams.get(stream)
        if state is None:
            self._must_be_known(stream)
            return
        state.window += more
        if more == 0 or state.window > LARGEST_WINDOW:
            code = frames.FLOW_CONTROL_ERROR if more else frames.PROTOCOL_ERROR
            raise _StreamError(stream, code, f"the stream's window opened by {more}")
        if stream in self._waiting:
            self._send_what_waits((stream,), events)

    def _must_be_known(self, stream: int) -> None:
        """See that a stream is, or was, one that the peer opened."""
        if stream == 0 or stream % 2 == 0 or stream > self.last_stream:
            raise _ConnectionError(frames.PROTOCOL_ERROR, f"stream {stream} was not opened")

    def _count_cheap(self, many: int = 1) -> None:
        self._cheap += many
        if self._cheap > MOST_CHEAP_FRAMES:
            raise _ConnectionError(frames.ENHANCE_YOUR_CALM, "a flood of frames without content")

    def relent(self) -> None:
        """Forget the frames without content that were counted so far."""
        self._cheap = 0

    # -- what is sent -------------------------------------------------------------------------------------------------

    def send_headers(self, stream: int, block: bytes, *, last: bool = False) -> None:
        """Send an encoded header block of at most one frame; ``last`` ends the stream, after all that is unsent."""
        state = self._streams.get(stream)
        if state is None:
            return
        if not self._shrunk:
            # A dynamic table of size 0 (RFC 7541, section 6.3): none of our blocks uses it, and a client that wants a
            # smaller one than the usual is to be told that it has it.
            self._shrunk, block = True, b"\x20" + block
        if not last:
            self._out.append(frames.frame(HEADERS, END_HEADERS, stream, block))
            return
        state.last = frames.frame(HEADERS, END_HEADERS | END_STREAM, stream, block)
        if not state.unsent:
            self._end(stream, state)

    def send(self, stream: int, data: bytes) -> bool:
        """Send data, as soon as the peer's windows let it.

        Returns:
            Whether that was at once. If not, `Drained` says when it has been.
        """
        state = self._streams.get(stream)
        if state is None:
            return True
        length = len(data)
        if not state.unsent and length <= state.window and length <= self._window and length <= self._frame_size:
            state.window -= length
            self._window -= length
            self.sent += length
            self._cheap -= 2 if self._cheap > 0 else 0
            self._out.append(HEAD.pack(length >> 16, length & 0xFFFF, DATA, 0, stream))
            self._out.append(data)
            return True
        if data:
            state.unsent.append(memoryview(data))
            self._waiting[stream] = None
        self._pump(stream, state)
        return not state.unsent

    def _pump(self, stream: int, state: _Stream) -> None:
        unsent = state.unsent
        while unsent:
            length = min(len(unsent[0]), state.window, self._window, self._frame_size)
            if length <= 0:
                return
            state.window -= length
            self._window -= length
            self.sent += length
            self._cheap -= 2 if self._cheap > 0 else 0
            self._out.append(frames.head(DATA, 0, stream, length))
            self._out.append(unsent[0][:length])
            if length == len(unsent[0]):
                unsent.popleft()
            else:
                unsent[0] = unsent[0][length:]
        self._waiting.pop(stream, None)

    def _send_what_waits(self, streams: Iterable[int], events: list[Event]) -> None:
        for stream in list(streams):
            state = self._streams[stream]
            self._pump(stream, state)
            if not state.unsent:
                if state.last is not None:
                    self._end(stream, state)
                events.append(Drained(stream))
            elif self._window <= 0:
                return

    def _end(self, stream: int, state: _Stream) -> None:
        assert state.last is not None
        self._out.append(state.last)
        if not state.ended:
            self._out.append(frames.rst_stream(stream, frames.NO_ERROR))  # whatever else it has to say is not awaited
            self._ended.append(stream)
        self._forget(stream)

    def _forget(self, stream: int) -> bool:
        """Drop a stream; whether there was one."""
        self._waiting.pop(stream, None)
        return self._streams.pop(stream, None) is not None

    def has_unsent(self, stream: int) -> bool:
        """Whether something waits for the windows of a stream."""
        return stream in self._waiting

    def ping(self) -> None:
        """Ask the peer for a sign of life."""
        self._out.append(frames.frame(frames.PING, 0, 0, bytes(8)))

    def close(self, code: int, why: str) -> None:
        """Have the peer know that this connection is over."""
        if self.over is None:
            self.over = why
            self._out.append(frames.goaway(self.last_stream, code, why))
            self._streams.clear()
            self._waiting.clear()

    def take(self) -> bytes:
        """What is to be sent now."""
        out, self._out = self._out, []
        return b"".join(out)


def _unpadded(payload: bytes) -> bytes:
    if not payload or payload[0] >= len(payload):
        raise _ConnectionError(frames.PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - payload[0]]


ONCE = (b":method", b":scheme", b":path", b":authority")
NEVER = frozenset((b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"))


def _malformed(headers: Headers) -> str | None:
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

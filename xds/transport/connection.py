"""One HTTP/2 connection, the server's side of it: a state machine without I/O (RFC 9113).

Bytes go in by `Connection.receive`, which answers with what happened; what is to be sent gathers until
`Connection.take`. Whoever uses it takes what arrives at once, so a window that was used is opened again unasked.

A peer can't make it hold much: header blocks and streams are bounded, and frames that cost it nothing are counted
(`Connection.relent` forgets them, now and then).
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterable

from xds.transport import frames
from xds.transport.events import Data, Drained, Event, Gone, Opened
from xds.transport.faults import BrokenConnectionError, BrokenStreamError
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
    PREFACE,
)
from xds.transport.headers import MOST_HEADERS, SHRUNK, HeaderBlocks, Headers, malformed, unpadded
from xds.transport.sending import Sending

STREAM_WINDOW = 1 << 20
"""Bytes that a peer may send on a stream beyond what has been taken."""
CONNECTION_WINDOW = 4 << 20
MOST_STREAMS = 4
"""A proxy has one, for as long as it lives."""
MOST_CHEAP_FRAMES = 10_000
"""Frames without content that are borne between two calls of `Connection.relent`."""
REQUEST_COUNTS = 10
"""A request counts as so many of them."""
DATA_PAYS = 2
"""A frame of data that is sent pays for so many, since the peer has to open its windows again."""
MOST_ENDED = 64
"""Streams of which it is remembered that they were ended from here."""


class _Stream:
    """What the peer may still send on a stream."""

    __slots__ = ("ended", "room")

    def __init__(self, *, ended: bool) -> None:
        self.room = STREAM_WINDOW
        self.ended = ended


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
        self._blocks = HeaderBlocks()
        self._room = CONNECTION_WINDOW
        self._cheap = 0
        self._shrunk = False
        """Whether the client was told that its memory of headers is not needed."""
        self._sending = Sending()
        settings = {
            frames.MAX_CONCURRENT_STREAMS: MOST_STREAMS,
            frames.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
            frames.MAX_HEADER_LIST_SIZE: MOST_HEADERS,
        }
        self._sending.add(frames.settings(settings) + frames.window_update(0, CONNECTION_WINDOW - DEFAULT_WINDOW))
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
            except BrokenConnectionError as error:
                self.close(error.code, str(error))
        return events

    def _read(self, data: bytes, events: list[Event]) -> None:
        at, end = 0, len(data)
        if not self._greeted:
            if not PREFACE.startswith(data[: len(PREFACE)]):
                raise BrokenConnectionError(frames.PROTOCOL_ERROR, "the client does not speak HTTP/2")
            if end < len(PREFACE):
                self._rest = data
                return
            self._greeted, at = True, len(PREFACE)
        while end - at >= HEAD_SIZE:
            high, low, kind, flags, stream = HEAD.unpack_from(data, at)
            length = high << 16 | low
            if length > DEFAULT_FRAME_SIZE:
                raise BrokenConnectionError(frames.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
            start = at + HEAD_SIZE
            if end - start < length:
                break
            at = start + length
            try:
                self._frame(kind, flags, stream & LARGEST_WINDOW, data[start:at], events)
            except BrokenStreamError as error:
                self._tear_down(error, events)
        self._rest = data[at:]

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes, events: list[Event]) -> None:
        if self._blocks.stream is not None and (kind != CONTINUATION or stream != self._blocks.stream):
            raise BrokenConnectionError(frames.PROTOCOL_ERROR, "a header block was interrupted")
        if kind == DATA:
            self._data(flags, stream, payload, events)
            return
        if kind == HEADERS:
            self._blocks.begin(flags, stream, payload)
            self._see_whether_whole(flags, events)
            return
        self._count_cheap()
        if kind == CONTINUATION:
            if self._blocks.stream is None:
                raise BrokenConnectionError(frames.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
            self._blocks.go_on(payload)
            self._see_whether_whole(flags, events)
        elif kind in self._controls:
            self._controls[kind](flags, stream, payload, events)

    def _data(self, flags: int, stream: int, payload: bytes, events: list[Event]) -> None:
        # The windows open again when half of them is used, which is more than a frame: nobody can overrun them.
        length = len(payload)
        self._room -= length
        if self._room < CONNECTION_WINDOW // 2:
            self._sending.add(frames.window_update(0, CONNECTION_WINDOW - self._room))
            self._room = CONNECTION_WINDOW
        state = self._streams.get(stream)
        if state is None and stream in self._ended:
            return
        if state is None or state.ended:
            self._must_be_known(stream)
            raise BrokenStreamError(stream, frames.STREAM_CLOSED, "data after the end")
        state.room -= length
        if flags & frames.PADDED:
            payload = unpadded(payload)
        ended = bool(flags & END_STREAM)
        if ended:
            state.ended = True
        elif state.room < STREAM_WINDOW // 2:
            self._sending.add(frames.window_update(stream, STREAM_WINDOW - state.room))
            state.room = STREAM_WINDOW
        if payload or ended:
            events.append(Data(stream, payload, ended))
        else:
            self._count_cheap()

    def _see_whether_whole(self, flags: int, events: list[Event]) -> None:
        blocks = self._blocks
        if blocks.size > MOST_HEADERS:
            raise BrokenConnectionError(frames.ENHANCE_YOUR_CALM, f"more than {MOST_HEADERS} bytes of headers")
        if flags & END_HEADERS:
            assert blocks.stream is not None
            self._count_cheap(REQUEST_COUNTS + blocks.size // 100)  # the shorter, the less there is to decode
            self._whole_block(blocks.stream, blocks.whole(), ended=blocks.ends_stream, events=events)

    def _whole_block(self, stream: int, headers: Headers, *, ended: bool, events: list[Event]) -> None:
        state = self._streams.get(stream)
        if state is not None:
            if state.ended:
                raise BrokenStreamError(stream, frames.STREAM_CLOSED, "headers after the end")
            if not ended or any(name.startswith(b":") for name, _ in headers):
                raise BrokenStreamError(stream, frames.PROTOCOL_ERROR, "headers in the middle of a stream")
            state.ended = True
            events.append(Data(stream, b"", ended=True))
            return
        if stream in self._ended:
            return
        if stream <= self.last_stream:
            raise BrokenConnectionError(frames.STREAM_CLOSED, f"stream {stream} was closed")
        self.last_stream = stream
        fault = malformed(headers)
        if fault is not None:
            raise BrokenStreamError(stream, frames.PROTOCOL_ERROR, fault)
        if len(self._streams) >= MOST_STREAMS:
            raise BrokenStreamError(stream, frames.REFUSED_STREAM, f"more than {MOST_STREAMS} streams")
        self._streams[stream] = _Stream(ended=ended)
        self._sending.open(stream)
        events.append(Opened(stream, headers, ended))

    def _tear_down(self, error: BrokenStreamError, events: list[Event]) -> None:
        self._count_cheap()
        self._sending.add(frames.rst_stream(error.stream, error.code))
        self._ended.append(error.stream)
        if self._forget(error.stream):
            events.append(Gone(error.stream, str(error)))

    def _priority(self, _flags: int, stream: int, payload: bytes, _events: list[Event]) -> None:
        if stream == 0:
            raise BrokenConnectionError(frames.PROTOCOL_ERROR, "PRIORITY of no stream")
        if len(payload) != 5:
            raise BrokenStreamError(stream, frames.FRAME_SIZE_ERROR, "PRIORITY is five bytes")
        if int.from_bytes(payload[:4], "big") & LARGEST_WINDOW == stream:
            raise BrokenStreamError(stream, frames.PROTOCOL_ERROR, "a stream that depends on itself")

    def _rst_stream(self, _flags: int, stream: int, payload: bytes, events: list[Event]) -> None:
        if len(payload) != 4:
            raise BrokenConnectionError(frames.FRAME_SIZE_ERROR, "RST_STREAM is four bytes")
        self._must_be_known(stream)
        if self._forget(stream):
            events.append(Gone(stream, f"the client reset it, code {int.from_bytes(payload, 'big')}"))

    def _settings(self, flags: int, stream: int, payload: bytes, events: list[Event]) -> None:
        if stream != 0:
            raise BrokenConnectionError(frames.PROTOCOL_ERROR, "SETTINGS of a stream")
        if len(payload) % 6 or (flags & ACK and payload):
            raise BrokenConnectionError(frames.FRAME_SIZE_ERROR, f"SETTINGS of {len(payload)} bytes")
        if flags & ACK:
            return
        self._count_cheap(len(payload) // 6)
        said: dict[int, int] = dict(struct.iter_unpack(">HI", payload))  # of several values the last counts
        if said.get(frames.ENABLE_PUSH, 0) > 1:
            raise BrokenConnectionError(frames.PROTOCOL_ERROR, f"ENABLE_PUSH is {said[frames.ENABLE_PUSH]}")
        drained = self._sending.settings(said.get(frames.INITIAL_WINDOW_SIZE), said.get(frames.MAX_FRAME_SIZE))
        self._sending.add(frames.frame(frames.SETTINGS, ACK, 0))
        self._tell_drained(drained, events)

    def _push_promise(self, _flags: int, _stream: int, _payload: bytes, _events: list[Event]) -> None:
        raise BrokenConnectionError(frames.PROTOCOL_ERROR, "PUSH_PROMISE from a client")

    def _ping(self, flags: int, stream: int, payload: bytes, _events: list[Event]) -> None:
        if stream != 0:
            raise BrokenConnectionError(frames.PROTOCOL_ERROR, "PING of a stream")
        if len(payload) != 8:
            raise BrokenConnectionError(frames.FRAME_SIZE_ERROR, "PING is eight bytes")
        if not flags & ACK:
            self._sending.add(frames.frame(frames.PING, ACK, 0, payload))

    def _goaway(self, _flags: int, stream: int, payload: bytes, _events: list[Event]) -> None:
        if stream != 0:
            raise BrokenConnectionError(frames.PROTOCOL_ERROR, "GOAWAY of a stream")
        if len(payload) < 8:
            raise BrokenConnectionError(frames.FRAME_SIZE_ERROR, "GOAWAY is eight bytes or more")
        # The client opens no more streams; those that are open go on.

    def _window_update(self, _flags: int, stream: int, payload: bytes, events: list[Event]) -> None:
        if len(payload) != 4:
            raise BrokenConnectionError(frames.FRAME_SIZE_ERROR, "WINDOW_UPDATE is four bytes")
        more = int.from_bytes(payload, "big") & LARGEST_WINDOW
        if stream == 0:
            self._tell_drained(self._sending.opened_window(more), events)
        elif stream in self._streams:
            self._tell_drained(self._sending.opened_stream_window(stream, more), events)
        else:
            self._must_be_known(stream)

    def _tell_drained(self, drained: Iterable[tuple[int, bool]], events: list[Event]) -> None:
        for stream, ended in drained:
            if ended:
                self._has_ended(stream)
            events.append(Drained(stream))

    def _must_be_known(self, stream: int) -> None:
        """See that a stream is, or was, one that the peer opened."""
        if stream == 0 or stream % 2 == 0 or stream > self.last_stream:
            raise BrokenConnectionError(frames.PROTOCOL_ERROR, f"stream {stream} was not opened")

    def _count_cheap(self, many: int = 1) -> None:
        self._cheap += many
        if self._cheap - DATA_PAYS * self._sending.data_frames > MOST_CHEAP_FRAMES:
            raise BrokenConnectionError(frames.ENHANCE_YOUR_CALM, "a flood of frames without content")

    def relent(self) -> None:
        """Forget the frames without content that were counted so far."""
        self._cheap = self._sending.data_frames = 0

    # -- what is sent -------------------------------------------------------------------------------------------------

    def send_headers(self, stream: int, block: bytes, *, last: bool = False) -> None:
        """Send an encoded header block of at most one frame; ``last`` ends the stream, after all that is unsent."""
        if stream not in self._streams:
            return
        if not self._shrunk:
            self._shrunk, block = True, SHRUNK + block
        frame = frames.frame(HEADERS, END_HEADERS | (END_STREAM if last else 0), stream, block)
        if not last:
            self._sending.add(frame)
        elif self._sending.last(stream, frame):
            self._has_ended(stream)

    def send(self, stream: int, data: bytes) -> bool:
        """Send data, as soon as the peer's windows let it.

        Returns:
            Whether that was at once. If not, `Drained` says when it has been.
        """
        return stream not in self._streams or self._sending.data(stream, data)

    def _has_ended(self, stream: int) -> None:
        """All that there was to send on a stream has been."""
        if not self._streams[stream].ended:
            self._sending.add(frames.rst_stream(stream, frames.NO_ERROR))  # nobody waits for what else it has to say
            self._ended.append(stream)
        self._forget(stream)

    def _forget(self, stream: int) -> bool:
        """Drop a stream; whether there was one."""
        self._sending.forget(stream)
        return self._streams.pop(stream, None) is not None

    def has_unsent(self, stream: int) -> bool:
        """Whether something waits for the windows of a stream."""
        return self._sending.waits(stream)

    @property
    def sent(self) -> int:
        """How many bytes of data went out so far."""
        return self._sending.sent

    def ping(self) -> None:
        """Ask the peer for a sign of life."""
        self._sending.add(frames.frame(frames.PING, 0, 0, bytes(8)))

    def close(self, code: int, why: str) -> None:
        """Have the peer know that this connection is over."""
        if self.over is None:
            self.over = why
            self._sending.add(frames.goaway(self.last_stream, code, why))
            for stream in list(self._streams):
                self._forget(stream)

    def take(self) -> bytes:
        """What is to be written now."""
        return self._sending.take()

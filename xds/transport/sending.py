"""What a connection sends: as much at a time as the peer's windows let it (RFC 9113, section 5.2)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from xds.transport import frames
from xds.transport.faults import BrokenConnectionError, BrokenStreamError
from xds.transport.frames import DATA, LARGEST_WINDOW


@dataclass(slots=True)
class _Stream:
    window: int
    """Bytes that may be sent on it."""
    unsent: deque[memoryview] = field(default_factory=deque)
    last: bytes | None = None
    """The frame that ends it, to follow what is unsent."""


class Sending:
    """Frames on their way out, and the data that waits for a window."""

    def __init__(self) -> None:
        self.sent = 0
        """Bytes of data that went out."""
        self.data_frames = 0
        """Frames of data that did, since somebody set this to 0."""
        self._out: list[bytes | memoryview] = []
        self._window = self._first_window = frames.DEFAULT_WINDOW
        self._frame_size = frames.DEFAULT_FRAME_SIZE
        self._streams: dict[int, _Stream] = {}
        self._waiting: dict[int, None] = {}
        """The streams that have something unsent."""

    def add(self, frame: bytes) -> None:
        """Send a frame that no window holds back."""
        self._out.append(frame)

    def take(self) -> bytes:
        """What is to be written now."""
        out, self._out = self._out, []
        return b"".join(out)

    def open(self, stream: int) -> None:
        """There is a new stream."""
        self._streams[stream] = _Stream(self._first_window)

    def forget(self, stream: int) -> None:
        """A stream is over; what waited on it is not sent."""
        self._waiting.pop(stream, None)
        self._streams.pop(stream, None)

    def waits(self, stream: int) -> bool:
        """Whether something waits for the windows of a stream."""
        return stream in self._waiting

    def data(self, stream: int, data: bytes) -> bool:
        """Send data, as soon as it may be; whether that was at once."""
        state = self._streams[stream]
        length = len(data)
        if not state.unsent and length <= state.window and length <= self._window and length <= self._frame_size:
            self._frame(stream, state, data)
            return True
        if data:
            state.unsent.append(memoryview(data))
            self._waiting[stream] = None
        self._pump(stream, state)
        return not state.unsent

    def last(self, stream: int, frame: bytes) -> bool:
        """Send the frame that ends a stream behind everything that is unsent; whether that was at once."""
        self._streams[stream].last = frame
        if self.waits(stream):
            return False
        self._out.append(frame)
        return True

    def _frame(self, stream: int, state: _Stream, data: bytes | memoryview) -> None:
        length = len(data)
        state.window -= length
        self._window -= length
        self.sent += length
        self.data_frames += 1
        self._out.append(frames.head(DATA, 0, stream, length))
        self._out.append(data)

    def _pump(self, stream: int, state: _Stream) -> None:
        unsent = state.unsent
        while unsent:
            length = min(len(unsent[0]), state.window, self._window, self._frame_size)
            if length <= 0:
                return
            self._frame(stream, state, unsent[0][:length])
            if length == len(unsent[0]):
                unsent.popleft()
            else:
                unsent[0] = unsent[0][length:]
        self._waiting.pop(stream, None)

    def _send_what_waits(self, streams: Iterable[int]) -> Iterator[tuple[int, bool]]:
        for stream in list(streams):
            state = self._streams[stream]
            self._pump(stream, state)
            if not state.unsent:
                if state.last is not None:
                    self._out.append(state.last)
                yield stream, state.last is not None
            elif self._window <= 0:
                return

    # -- what the peer says of its windows ----------------------------------------------------------------------------
    # Each answers with the streams on which nothing waits any more, and whether that was the end of them.

    def opened_window(self, more: int) -> Iterator[tuple[int, bool]]:
        """The connection's window opened.

        Raises:
            BrokenConnectionError: by nothing, or too far.
        """
        self._window += more
        if more == 0 or self._window > LARGEST_WINDOW:
            code = frames.FLOW_CONTROL_ERROR if more else frames.PROTOCOL_ERROR
            raise BrokenConnectionError(code, f"the connection's window opened by {more}")
        return self._send_what_waits(self._waiting)

    def opened_stream_window(self, stream: int, more: int) -> Iterator[tuple[int, bool]]:
        """The window of one stream opened.

        Raises:
            BrokenStreamError: by nothing, or too far.
        """
        state = self._streams[stream]
        state.window += more
        if more == 0 or state.window > LARGEST_WINDOW:
            code = frames.FLOW_CONTROL_ERROR if more else frames.PROTOCOL_ERROR
            raise BrokenStreamError(stream, code, f"the stream's window opened by {more}")
        return self._send_what_waits((stream,) if self.waits(stream) else ())

    def settings(self, first_window: int | None, frame_size: int | None) -> Iterator[tuple[int, bool]]:
        """The peer set how much may be sent on a stream at first, and how large frames may be.

        Raises:
            BrokenConnectionError: a value is not allowed.
        """
        if frame_size is not None:
            if not frames.DEFAULT_FRAME_SIZE <= frame_size <= frames.LARGEST_FRAME_SIZE:
                raise BrokenConnectionError(frames.PROTOCOL_ERROR, f"frames of {frame_size} bytes")
            self._frame_size = frame_size
        if first_window is not None:
            if first_window > LARGEST_WINDOW:
                raise BrokenConnectionError(frames.FLOW_CONTROL_ERROR, f"a window of {first_window} bytes")
            for state in self._streams.values():
                state.window += first_window - self._first_window
                if state.window > LARGEST_WINDOW:
                    raise BrokenConnectionError(frames.FLOW_CONTROL_ERROR, "a window that is too large")
            self._first_window = first_window
        return self._send_what_waits(self._waiting)

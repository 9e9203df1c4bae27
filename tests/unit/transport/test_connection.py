"""HTTP/2 without sockets: against h2's client, and against what no client should send."""

from __future__ import annotations

import struct
from typing import Any

import h2.config
import h2.connection
import h2.events
import hpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from xds.transport import frames
from xds.transport.connection import MOST_CHEAP_FRAMES, MOST_STREAMS, REQUEST_COUNTS, Connection
from xds.transport.events import Data, Drained, Event, Gone, Opened
from xds.transport.headers import MOST_HEADERS, headers_block

REQUEST = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/service/Method"),
    (":authority", "gossamer"),
    ("content-type", "application/grpc"),
]
ANSWER = headers_block((":status", "200"))
LAST = headers_block(("grpc-status", "0"))


class Pair:
    """A client by h2, and a connection of ours, with the bytes between them cut as the test says."""

    def __init__(self, cuts: tuple[int, ...] = ()) -> None:
        self.client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self.server = Connection()
        self.happened: list[Event] = []
        self.seen: list[h2.events.Event] = []
        self._cuts = cuts or (1 << 20,)
        self._cut = 0
        self.client.initiate_connection()

    def exchange(self) -> None:
        """Carry bytes until neither side has any."""
        while True:
            there, back = self.client.data_to_send(), self.server.take()
            if not there and not back:
                return
            for piece in self._pieces(there):
                self.happened += self.server.receive(piece)
            for piece in self._pieces(back):
                self.seen += self.client.receive_data(piece)

    def _pieces(self, data: bytes) -> list[bytes]:
        pieces = []
        while data:
            size = self._cuts[self._cut % len(self._cuts)]
            self._cut += 1
            pieces.append(data[:size])
            data = data[size:]
        return pieces

    def open(self, stream: int = 1, *, end: bool = False) -> None:
        self.client.send_headers(stream, REQUEST, end_stream=end)
        self.exchange()

    def heard(self, stream: int = 1) -> bytes:
        """What the client got on a stream."""
        return b"".join(
            event.data for event in self.seen if isinstance(event, h2.events.DataReceived) and event.stream_id == stream
        )


sizes = st.lists(st.integers(0, 40_000), max_size=4)
cuts = st.lists(st.integers(1, 100) | st.integers(1000, 70_000), min_size=1, max_size=5).map(tuple)


@settings(deadline=None)
@given(sizes, cuts, st.integers(0, 70_000), st.integers(frames.DEFAULT_FRAME_SIZE, 100_000))
def test_what_is_sent_arrives_as_fast_as_the_windows_open(
    messages: list[int], pieces: tuple[int, ...], window: int, frame: int
) -> None:
    pair = Pair(pieces)
    pair.exchange()
    pair.client.update_settings(
        {h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window, h2.settings.SettingCodes.MAX_FRAME_SIZE: frame}
    )
    pair.open()
    pair.server.send_headers(1, ANSWER)
    sent = b""
    at_once = True
    for number, size in enumerate(messages):
        message = bytes([number]) * size
        at_once = pair.server.send(1, message)
        sent += message
    pair.server.send_headers(1, LAST, last=True)
    pair.exchange()
    while len(pair.heard()) < len(sent):
        assert pair.server.has_unsent(1)
        for stream in (None, 1):
            pair.client.increment_flow_control_window(5_000, stream)
        pair.exchange()
    assert pair.heard() == sent
    assert any(isinstance(event, h2.events.StreamEnded) for event in pair.seen)
    assert any(isinstance(event, Drained) for event in pair.happened) == (not at_once)


@settings(deadline=None)
@given(sizes, cuts)
@example([60_000] * 100, (50_000,))
def test_what_a_client_sends_arrives_and_its_window_opens_again(messages: list[int], pieces: tuple[int, ...]) -> None:
    pair = Pair(pieces)
    pair.open()
    sent = b""
    for number, size in enumerate(messages):
        rest = bytes([number % 256]) * size
        sent += rest
        while rest:
            now = min(len(rest), pair.client.local_flow_control_window(1), pair.client.max_outbound_frame_size)
            assert now > 0
            pair.client.send_data(1, rest[:now], pad_length=3 if now < 1000 else None)
            rest = rest[now:]
            pair.exchange()
    pair.client.end_stream(1)
    pair.exchange()
    arrived = [event for event in pair.happened if isinstance(event, Data)]
    assert b"".join(event.data for event in arrived) == sent
    assert [event.ended for event in arrived] == [False] * (len(arrived) - 1) + [True]


def test_a_request_says_what_it_is() -> None:
    pair = Pair()
    pair.open()
    pair.open(3, end=True)
    expected = [(name.encode(), value.encode()) for name, value in REQUEST]
    assert pair.happened == [Opened(1, expected, ended=False), Opened(3, expected, ended=True)]


def test_a_large_header_block_comes_in_parts() -> None:
    pair = Pair((1000,))
    pair.client.send_headers(1, [*REQUEST, ("x-long", "v" * 40_000)])
    pair.exchange()
    assert isinstance(pair.happened[0], Opened)
    assert len(pair.happened[0].headers[-1][1]) == 40_000


def test_what_waits_for_a_window_is_known_to_wait_and_told_when_it_has_gone() -> None:
    pair = Pair()
    pair.open()
    pair.server.send_headers(1, ANSWER)
    assert not pair.server.send(1, bytes(frames.DEFAULT_WINDOW + 1))
    pair.exchange()
    assert pair.server.has_unsent(1)
    pair.client.increment_flow_control_window(1, 1)
    pair.exchange()
    assert pair.server.has_unsent(1), "the connection's window is shut as well"
    pair.client.increment_flow_control_window(1)
    pair.exchange()
    assert not pair.server.has_unsent(1)
    assert pair.happened[-1] == Drained(1)


def test_a_windows_opening_is_followed_where_something_waits_for_it_alone() -> None:
    pair = Pair()
    pair.client.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 10})
    for stream in (1, 3, 5):
        pair.open(stream)
        pair.server.send_headers(stream, ANSWER)
    assert not pair.server.send(1, bytes(11))
    assert not pair.server.send(3, bytes(11))
    pair.exchange()
    pair.client.increment_flow_control_window(1, 3)
    pair.exchange()
    assert [event for event in pair.happened if isinstance(event, Drained)] == [Drained(3)]
    assert (pair.server.has_unsent(1), pair.server.has_unsent(3), pair.server.has_unsent(5)) == (True, False, False)
    pair.client.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 11})
    pair.exchange()
    assert pair.happened[-1] == Drained(1)
    assert pair.server.sent == 22


def test_a_client_that_remembers_no_headers_is_told_that_it_need_not() -> None:
    pair = Pair()
    pair.client.update_settings({h2.settings.SettingCodes.HEADER_TABLE_SIZE: 0})
    pair.exchange()
    for stream in (1, 3):
        pair.open(stream)
        pair.server.send_headers(stream, ANSWER)
        pair.server.send(stream, b"here")
        pair.server.send_headers(stream, LAST, last=True)
        pair.exchange()
        assert pair.heard(stream) == b"here"


def test_a_stream_that_is_reset_is_gone_and_the_others_stay() -> None:
    pair = Pair()
    pair.open(1)
    pair.open(3)
    pair.client.reset_stream(1)
    pair.exchange()
    assert isinstance(pair.happened[-1], Gone)
    assert pair.server.send(1, b"too late")
    pair.server.send_headers(3, ANSWER)
    pair.server.send(3, b"here")
    pair.exchange()
    assert (pair.heard(1), pair.heard(3)) == (b"", b"here")


def test_a_stream_ended_from_here_while_the_client_still_talks_is_over_for_both() -> None:
    pair = Pair()
    pair.open()
    pair.server.send_headers(1, ANSWER)
    pair.server.send_headers(1, LAST, last=True)
    pair.exchange()
    resets = [event for event in pair.seen if isinstance(event, h2.events.StreamReset)]
    assert [event.error_code for event in resets] == [frames.NO_ERROR]


def test_a_ping_is_answered_and_ours_is_too() -> None:
    pair = Pair()
    pair.client.ping(b"12345678")
    pair.server.ping()
    pair.exchange()
    assert any(isinstance(event, h2.events.PingAckReceived) for event in pair.seen)
    assert any(isinstance(event, h2.events.PingReceived) for event in pair.seen)
    assert pair.server.over is None


def test_more_streams_than_are_allowed_are_refused() -> None:
    server = greeted()
    block = encoded(REQUEST)
    for number in range(MOST_STREAMS + 1):
        server.receive(frames.frame(frames.HEADERS, frames.END_HEADERS, 2 * number + 1, block))
        block = encoded(REQUEST)
    assert frames.rst_stream(2 * MOST_STREAMS + 1, frames.REFUSED_STREAM) in server.take()
    assert server.over is None


# -- what no client should send ---------------------------------------------------------------------------------------


def greeted() -> Connection:
    server = Connection()
    server.receive(frames.PREFACE + frames.settings({}))
    server.take()
    return server


def encoded(headers: list[tuple[str, str]]) -> bytes:
    return headers_block(*headers)


def opening(stream: int = 1, flags: int = frames.END_HEADERS, headers: Any = REQUEST) -> bytes:
    return frames.frame(frames.HEADERS, flags, stream, encoded(headers))


END = frames.END_HEADERS | frames.END_STREAM
HUGE = struct.pack(">I", 2**31 - 1)

CONNECTION_FAULTS: dict[str, tuple[bytes, int]] = {
    "a frame that is too large": (frames.head(frames.DATA, 0, 1, 16_385), frames.FRAME_SIZE_ERROR),
    "data on no stream": (frames.frame(frames.DATA, 0, 0, b"x"), frames.PROTOCOL_ERROR),
    "data on a stream that nobody opened": (frames.frame(frames.DATA, 0, 5, b"x"), frames.PROTOCOL_ERROR),
    "more padding than data": (opening() + frames.frame(frames.DATA, 8, 1, b"\x09x"), frames.PROTOCOL_ERROR),
    "a stream of the server's": (opening(2), frames.PROTOCOL_ERROR),
    "a stream opened again": (opening(3, END) + opening(1), frames.STREAM_CLOSED),
    "headers that can't be decoded": (frames.frame(frames.HEADERS, 4, 1, b"\xff\xff\xff\xff\xff"), 9),
    "headers that are interrupted": (opening(1, 0) + frames.frame(frames.PING, 0, 0, bytes(8)), 1),
    "the rest of no headers": (frames.frame(frames.CONTINUATION, 4, 1, b""), frames.PROTOCOL_ERROR),
    "headers without an end": (opening(1, 0) + frames.frame(frames.CONTINUATION, 0, 1, bytes(16_384)) * 5, 11),
    "headers too short for their priority": (frames.frame(frames.HEADERS, 0x24, 1, b"abc"), 6),
    "a stream that depends on itself": (frames.frame(frames.HEADERS, 0x24, 1, b"\0\0\0\1\0"), 1),
    "priority of no stream": (frames.frame(frames.PRIORITY, 0, 0, bytes(5)), frames.PROTOCOL_ERROR),
    "a reset of a wrong size": (opening() + frames.frame(frames.RST_STREAM, 0, 1, b"abc"), 6),
    "a reset of a stream that nobody opened": (frames.rst_stream(7, 0), frames.PROTOCOL_ERROR),
    "settings of a stream": (frames.frame(frames.SETTINGS, 0, 1), frames.PROTOCOL_ERROR),
    "settings of a wrong size": (frames.frame(frames.SETTINGS, 0, 0, b"abc"), frames.FRAME_SIZE_ERROR),
    "an acknowledgement with settings": (frames.frame(frames.SETTINGS, 1, 0, bytes(6)), frames.FRAME_SIZE_ERROR),
    "a first window that is too large": (frames.settings({4: 2**31}), frames.FLOW_CONTROL_ERROR),
    "a window that becomes too large": (
        opening() + frames.window_update(1, 2**31 - 1 - frames.DEFAULT_WINDOW) + frames.settings({4: 70_000}),
        frames.FLOW_CONTROL_ERROR,
    ),
    "frames that are too small": (frames.settings({5: 100}), frames.PROTOCOL_ERROR),
    "push that is neither on nor off": (frames.settings({2: 2}), frames.PROTOCOL_ERROR),
    "a push": (opening() + frames.frame(frames.PUSH_PROMISE, 4, 1, bytes(4)), frames.PROTOCOL_ERROR),
    "a ping of a stream": (frames.frame(frames.PING, 0, 1, bytes(8)), frames.PROTOCOL_ERROR),
    "a ping of a wrong size": (frames.frame(frames.PING, 0, 0, b"abc"), frames.FRAME_SIZE_ERROR),
    "a goodbye of a stream": (frames.frame(frames.GOAWAY, 0, 1, bytes(8)), frames.PROTOCOL_ERROR),
    "a goodbye that is too short": (frames.frame(frames.GOAWAY, 0, 0, b"abc"), frames.FRAME_SIZE_ERROR),
    "a window update of a wrong size": (frames.frame(frames.WINDOW_UPDATE, 0, 0, b"abc"), 6),
    "a window opened by nothing": (frames.window_update(0, 0), frames.PROTOCOL_ERROR),
    "a window opened too far": (frames.frame(frames.WINDOW_UPDATE, 0, 0, HUGE), frames.FLOW_CONTROL_ERROR),
    "a window of a stream that nobody opened": (frames.window_update(9, 1), frames.PROTOCOL_ERROR),
    "a flood of settings": (frames.frame(frames.SETTINGS, 0, 0, bytes(16_380)) * 4, frames.ENHANCE_YOUR_CALM),
    "a flood of requests": (
        b"".join(opening(2 * number + 1, END) for number in range(MOST_CHEAP_FRAMES // REQUEST_COUNTS)),
        frames.ENHANCE_YOUR_CALM,
    ),
    "a flood": (frames.frame(frames.PING, 0, 0, bytes(8)) * (MOST_CHEAP_FRAMES + 1), frames.ENHANCE_YOUR_CALM),
}
STREAM_FAULTS: dict[str, tuple[bytes, int]] = {
    "data after the end": (opening(1, END) + frames.frame(frames.DATA, 0, 1, b"x"), frames.STREAM_CLOSED),
    "headers after the end": (opening(1, END) + opening(1, END), frames.STREAM_CLOSED),
    "headers in the middle": (opening() + opening(headers=[("a", "b")]), frames.PROTOCOL_ERROR),
    "a request at the end": (opening() + opening(1, END), frames.PROTOCOL_ERROR),
    "priority of a wrong size": (opening() + frames.frame(frames.PRIORITY, 0, 1, b"abc"), frames.FRAME_SIZE_ERROR),
    "priority over itself": (opening() + frames.frame(frames.PRIORITY, 0, 1, b"\0\0\0\1\0"), frames.PROTOCOL_ERROR),
    "a stream's window opened by nothing": (opening() + frames.window_update(1, 0), frames.PROTOCOL_ERROR),
    "a stream's window opened too far": (
        opening() + frames.frame(frames.WINDOW_UPDATE, 0, 1, HUGE),
        frames.FLOW_CONTROL_ERROR,
    ),
    "a header in capitals": (opening(headers=[*REQUEST, ("X-A", "b")]), frames.PROTOCOL_ERROR),
    "a header of the connection": (opening(headers=[*REQUEST, ("connection", "close")]), frames.PROTOCOL_ERROR),
    "te that is not trailers": (opening(headers=[*REQUEST, ("te", "gzip")]), frames.PROTOCOL_ERROR),
    "no path": (opening(headers=REQUEST[:2]), frames.PROTOCOL_ERROR),
    "an empty path": (opening(headers=[*REQUEST[:2], (":path", "")]), frames.PROTOCOL_ERROR),
    "a path twice": (opening(headers=[*REQUEST[:3], REQUEST[2]]), frames.PROTOCOL_ERROR),
    "an unknown pseudo-header": (opening(headers=[(":status", "200"), *REQUEST]), frames.PROTOCOL_ERROR),
    "a pseudo-header that comes late": (opening(headers=[("a", "b"), *REQUEST]), frames.PROTOCOL_ERROR),
}


@pytest.mark.parametrize(("sent", "code"), CONNECTION_FAULTS.values(), ids=CONNECTION_FAULTS.keys())
def test_a_fault_of_the_connection_ends_it(sent: bytes, code: int) -> None:
    server = greeted()
    server.receive(sent)
    assert server.over
    out = server.take()
    at = out.rindex(server.over.encode()) - 8
    assert struct.unpack_from(">II", out, at) == (server.last_stream, code)
    assert server.receive(opening(99)) == []


@pytest.mark.parametrize(("sent", "code"), STREAM_FAULTS.values(), ids=STREAM_FAULTS.keys())
def test_a_fault_of_a_stream_ends_that_stream(sent: bytes, code: int) -> None:
    server = greeted()
    server.receive(sent)
    assert server.over is None
    assert frames.rst_stream(1, code) in server.take()
    assert [type(event) for event in server.receive(opening(99))] == [Opened]


@pytest.mark.parametrize("greeting", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00", b"PRI * HTTP/2.0\r\n\r\nXX"])
def test_whoever_does_not_speak_http2_is_not_listened_to(greeting: bytes) -> None:
    server = Connection()
    server.receive(greeting)
    assert server.over == "the client does not speak HTTP/2"


def test_frames_without_content_are_forgiven_with_time() -> None:
    server = greeted()
    for _ in range(3):
        server.receive(frames.frame(frames.PING, 0, 0, bytes(8)) * (MOST_CHEAP_FRAMES - 10))
        server.relent()
    assert server.over is None


def test_data_that_is_taken_pays_for_the_windows_that_it_opens() -> None:
    server = greeted()
    server.receive(opening() + frames.window_update(1, 2**30) + frames.window_update(0, 2**30))
    for _ in range(2 * MOST_CHEAP_FRAMES):
        assert server.send(1, b"x")
        server.receive(frames.window_update(1, 1) + frames.window_update(0, 1))
    server.take()
    assert server.over is None


def test_headers_that_can_not_be_decoded_are_in_nobodys_words() -> None:
    server = greeted()
    server.receive(frames.frame(frames.HEADERS, frames.END_HEADERS, 1, b"\xff" * 12 + b"x-consul-token a-secret"))
    assert server.over is not None
    assert b"a-secret" not in server.take()
    assert "a-secret" not in server.over
    assert len(frames.goaway(1, 1, "x" * 100_000)) < frames.DEFAULT_FRAME_SIZE


def test_headers_that_unpack_to_very_many_are_refused() -> None:
    encoder = hpack.Encoder()
    bomb = encoder.encode([("x", "v" * 3000)])
    bomb += encoder.encode([("x", "v" * 3000)]) * (MOST_HEADERS // 3000 + 1)
    server = greeted()
    server.receive(frames.frame(frames.HEADERS, frames.END_HEADERS, 1, bomb))
    assert server.over is not None
    assert "headers can't be decoded" in server.over


@given(st.binary(max_size=300), st.sampled_from([b"", opening(), opening(1, 0)]))
def test_no_bytes_are_a_traceback(garbage: bytes, before: bytes) -> None:
    server = greeted()
    server.receive(before)
    server.receive(garbage)
    server.take()

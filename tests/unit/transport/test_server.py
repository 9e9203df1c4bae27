"""The server on loopback, with gRPC's own client where that can say what is to be said, and raw sockets where not."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from xds.transport import frames
from xds.transport import server as server_module
from xds.transport.call import Call
from xds.transport.headers import headers_block
from xds.transport.listening import ListenError, bind
from xds.transport.messages import CallError, Status, prefix
from xds.transport.server import GrpcServer

METHOD = "/test.Service/Talk"
HEADERS = headers_block(
    (":method", "POST"),
    (":scheme", "http"),
    (":path", METHOD),
    (":authority", "test"),
    ("content-type", "application/grpc"),
    ("x-consul-token", "a-secret"),
)


class Talk:
    """A conversation that does what it is told, and notes what happened."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.said: list[bytes] = []
        self.over: str | None = None
        self.has_room = asyncio.Event()
        self.changed = asyncio.Event()

    def message(self, message: bytes) -> None:
        self.said.append(message)
        self.changed.set()
        if message == b"refuse":
            raise CallError(Status.INVALID_ARGUMENT, "that is ünheard of")
        if message == b"fail":
            raise RuntimeError("a fault of ours")
        if message.startswith(b"send "):
            self.call.send(bytes(int(message[5:])))
        elif message != b"note":
            self.call.send(b"heard " + message)
        self.call.flush()

    def half_closed(self) -> None:
        self.call.end(Status.OK)

    def written(self) -> None:
        self.has_room.set()

    def ended(self, why: str) -> None:
        self.over = why
        self.changed.set()

    async def has_heard(self) -> None:
        await self.until(lambda: self.said)

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


class Running:
    """A server, and the conversations that it had."""

    def __init__(self) -> None:
        self.talks: list[Talk] = []
        self.begun = asyncio.Event()
        self.server = GrpcServer({METHOD: self._begin})
        self.clients: list[Raw] = []
        self.port = 0

    def _begin(self, call: Call) -> Talk:
        self.talks.append(Talk(call))
        self.begun.set()
        return self.talks[-1]

    async def raw(self, settings: dict[int, int] | None = None, *, receives: int = 0) -> Raw:
        self.clients.append(await Raw.to(self.port, settings, receives=receives))
        return self.clients[-1]

    async def talk(self, number: int = 0) -> Talk:
        async with asyncio.timeout(20):
            while len(self.talks) <= number:
                self.begun.clear()
                await self.begun.wait()
        return self.talks[number]


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    made = Running()
    made.port = await made.server.start("127.0.0.1:0")
    yield made
    async with asyncio.timeout(20):
        await made.server.stop()
        for client in made.clients:
            await client.close()


@pytest.fixture
async def channel(running: Running) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as made:
        yield made


class Raw:
    """A client that sends what it likes and reads when it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def to(cls, port: int, settings: dict[int, int] | None = None, *, receives: int = 0) -> Raw:
        plain = socket.socket()
        if receives:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receives)
        plain.setblocking(False)
        await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", port))
        made = cls(*await asyncio.open_connection(sock=plain, limit=1 << 16))
        made.writer.write(frames.PREFACE + frames.settings(settings or {}))
        return made

    def open(self, *messages: bytes, stream: int = 1) -> None:
        self.writer.write(frames.frame(frames.HEADERS, frames.END_HEADERS, stream, HEADERS))
        for message in messages:
            self.writer.write(frames.frame(frames.DATA, 0, stream, prefix(len(message)) + message))

    async def read_until(self, wanted: bytes) -> bytes:
        found = b""
        async with asyncio.timeout(20):
            while wanted not in found:
                piece = await self.reader.read(1 << 16)
                if not piece:
                    raise AssertionError(f"the server hung up after {found!r}")
                found += piece
        return found

    async def read_to_end(self) -> bytes:
        async with asyncio.timeout(20):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


async def said_by(stream: Any) -> Any:
    async with asyncio.timeout(20):
        return await stream.read()


async def test_a_conversation_with_grpcs_own_client(running: Running, channel: grpc.aio.Channel) -> None:
    stream = channel.stream_stream(METHOD)(metadata=(("x-consul-token", "t"),))
    for message in (b"one", b"", bytes(100_000)):
        await stream.write(message)
        assert await said_by(stream) == b"heard " + message
    talk = await running.talk()
    assert talk.call.metadata["x-consul-token"] == "t"
    assert talk.call.peer.startswith("127.0.0.1:")
    await stream.done_writing()
    assert await said_by(stream) is grpc.aio.EOF
    assert await stream.code() is grpc.StatusCode.OK


async def test_several_calls_on_one_connection_know_nothing_of_each_other(
    running: Running, channel: grpc.aio.Channel
) -> None:
    streams = [channel.stream_stream(METHOD)(metadata=(("number", str(number)),)) for number in range(3)]
    for number, stream in enumerate(streams):
        await stream.write(b"%d" % number)
    streams[1].cancel()
    await running.talk(2)
    (cancelled,) = [talk for talk in running.talks if talk.call.metadata["number"] == "1"]
    await cancelled.until(lambda: cancelled.over)
    assert [await said_by(streams[0]), await said_by(streams[2])] == [b"heard 0", b"heard 2"]
    await streams[0].write(b"again")
    assert await said_by(streams[0]) == b"heard again"
    assert len(running.server.connections) == 1


@pytest.mark.parametrize(
    ("message", "code", "details"),
    [
        (b"refuse", grpc.StatusCode.INVALID_ARGUMENT, "that is ünheard of"),
        (b"fail", grpc.StatusCode.INTERNAL, "its log says how"),
    ],
)
async def test_what_goes_wrong_on_a_call_ends_that_call_and_says_why(
    running: Running, channel: grpc.aio.Channel, message: bytes, code: grpc.StatusCode, details: str
) -> None:
    bystander, stream = channel.stream_stream(METHOD)(), channel.stream_stream(METHOD)()
    await stream.write(message)
    async with asyncio.timeout(20):
        assert await stream.code() is code
    assert details in await stream.details()
    await bystander.write(b"still here")
    assert await said_by(bystander) == b"heard still here"


async def test_a_method_that_is_not_there_is_told_apart(channel: grpc.aio.Channel) -> None:
    stream = channel.stream_stream("/test.Service/Other")()
    async with asyncio.timeout(20):
        assert await stream.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "/test.Service/Other" in await stream.details()


async def test_a_large_answer_arrives_whole(running: Running) -> None:
    options = [("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}", options=options) as channel:
        stream = channel.stream_stream(METHOD)()
        await stream.write(b"send 20000000")
        assert len(await said_by(stream)) == 20_000_000
        talk = await running.talk()
        if talk.call.clogged:
            await asyncio.wait_for(talk.has_room.wait(), 20)
        assert not talk.call.clogged


async def test_a_client_that_takes_nothing_is_noticed_and_keeps_nobody_waiting(
    running: Running, channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck = await running.raw({frames.INITIAL_WINDOW_SIZE: 100})
    stuck.open(b"send 1000")
    talk = await running.talk()
    await talk.until(lambda: talk.call.clogged)
    stream = channel.stream_stream(METHOD)()
    await stream.write(b"me")
    assert await said_by(stream) == b"heard me"
    monkeypatch.setattr(server_module, "TAKE_WITHIN_S", 0.0)
    for connection in list(running.server.connections):
        connection.look(running.server.now() + 1)
    await talk.until(lambda: talk.over)
    await stream.write(b"and still me")
    assert await said_by(stream) == b"heard and still me"


async def test_a_client_that_takes_slowly_is_not_taken_for_one_that_takes_next_to_nothing(running: Running) -> None:
    slow = await running.raw({frames.INITIAL_WINDOW_SIZE: 100})
    slow.open(b"send 1000000")
    talk = await running.talk()
    await talk.until(lambda: talk.call.clogged)
    (connection,) = running.server.connections
    now = running.server.now()

    async def take(size: int, after: float) -> None:
        sent = connection.h2.sent
        slow.writer.write(frames.window_update(1, size))
        async with asyncio.timeout(20):
            while connection.h2.sent == sent:  # noqa: ASYNC110 - the server has no event for it
                await asyncio.sleep(0)
        connection.look(now + after * server_module.TAKE_WITHIN_S)

    for number in range(1, 4):
        await take(server_module.TAKE_AT_LEAST, 0.9 * number)
    assert not talk.over
    await take(1, 3.5)
    await take(1, 4)
    await talk.until(lambda: talk.over)


async def test_a_call_that_ends_while_nothing_is_read_has_the_rest_read(running: Running) -> None:
    client = await running.raw({frames.INITIAL_WINDOW_SIZE: 100})
    client.open(b"send 1000")
    client.open(b"note", stream=3)
    one, other = await running.talk(), await running.talk(1)
    await one.until(lambda: one.call.clogged)
    one.call.stop_reading()
    one.call.end(Status.OK)
    client.writer.write(frames.frame(frames.DATA, 0, 3, prefix(4) + b"note"))
    await other.until(lambda: len(other.said) == 2)
    client.writer.write(frames.window_update(1, 10_000))
    await client.read_until(b"grpc-status")


async def test_what_is_said_to_a_call_that_has_ended_is_not_heard(running: Running) -> None:
    client = await running.raw()
    client.open(b"refuse", b"note")
    talk = await running.talk()
    await talk.until(lambda: talk.over)
    client.writer.write(frames.frame(frames.DATA, 0, 1, prefix(4) + b"note") * 100)
    client.writer.write(
        frames.frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, 1, headers_block(("a", "b")))
    )
    client.open(b"one", stream=3)
    await client.read_until(b"heard one")
    assert talk.said == [b"refuse"]


@pytest.mark.parametrize("takes", [True, False])
async def test_what_a_call_sent_before_its_end_is_taken_or_the_client_let_go(running: Running, takes: bool) -> None:
    client = await running.raw({frames.INITIAL_WINDOW_SIZE: 100})
    client.open(b"send 1000")
    client.writer.write(frames.frame(frames.DATA, frames.END_STREAM, 1))
    talk = await running.talk()
    await talk.until(lambda: talk.over)
    (connection,) = running.server.connections
    assert connection.calls
    if takes:
        client.writer.write(frames.window_update(1, 10_000))
        await client.read_until(b"grpc-status")
        assert not connection.calls
        client.writer.write(frames.frame(frames.PING, 0, 0, bytes(8)))
        await client.read_until(frames.frame(frames.PING, frames.ACK, 0, bytes(8)))
    else:
        connection.look(running.server.now() + server_module.TAKE_WITHIN_S + 1)
        await client.read_to_end()
        assert not running.server.connections


@pytest.mark.parametrize("by", ["its window", "its socket"])
async def test_a_client_that_takes_again_is_sent_on(running: Running, by: str) -> None:
    windows = 100 if by == "its window" else 2**31 - 1
    slow = await running.raw({frames.INITIAL_WINDOW_SIZE: windows}, receives=4096)
    slow.writer.write(frames.window_update(0, 2**31 - 1 - frames.DEFAULT_WINDOW))
    slow.open(b"send 9000000")
    talk = await running.talk()
    await talk.has_heard()
    assert talk.call.clogged
    if by == "its window":
        slow.writer.write(frames.window_update(1, 2**30))
    reading = asyncio.create_task(slow.read_to_end())
    await asyncio.wait_for(talk.has_room.wait(), 20)
    assert not talk.call.clogged
    await slow.close()
    await reading


async def test_who_is_silent_is_asked_and_who_does_not_answer_is_let_go(running: Running) -> None:
    dead, alive = await running.raw(), await running.raw()
    for client in (dead, alive):
        client.open(b"note")
    for number in range(2):
        talk = await running.talk(number)
        await talk.has_heard()
    later = running.server.now() + server_module.SILENT_S + 1
    for connection in list(running.server.connections):
        connection.look(later)
    ping = frames.frame(frames.PING, 0, 0, bytes(8))
    for client in (dead, alive):
        await client.read_until(ping)
    alive.writer.write(frames.frame(frames.PING, frames.ACK, 0, bytes(8)) + frames.frame(frames.PING, 0, 0, bytes(8)))
    await alive.read_until(frames.frame(frames.PING, frames.ACK, 0, bytes(8)))
    for connection in list(running.server.connections):
        connection.look(later + server_module.ANSWER_WITHIN_S + 1)
    await dead.read_to_end()
    assert sorted(bool(talk.over) for talk in running.talks) == [False, True]


async def test_who_never_begins_is_let_go(running: Running) -> None:
    idle = await running.raw()
    await idle.read_until(frames.frame(frames.SETTINGS, frames.ACK, 0))
    for connection in list(running.server.connections):
        connection.look(running.server.now() + server_module.SILENT_S + 1)
    await idle.read_to_end()
    assert not running.server.connections


async def test_who_does_not_read_what_it_was_sent_can_not_ask_for_more(running: Running) -> None:
    flooding = await running.raw({frames.INITIAL_WINDOW_SIZE: 2**31 - 1}, receives=4096)
    flooding.writer.write(frames.window_update(0, 2**30))
    flooding.open(b"send 9000000")
    talk = await running.talk()
    await talk.until(lambda: talk.call.clogged)
    (connection,) = running.server.connections
    waiting = connection.transport.get_write_buffer_size()
    for _ in range(100):
        flooding.writer.write(frames.frame(frames.PING, 0, 0, bytes(8)) * 1000)
        await asyncio.sleep(0)
    assert connection.transport.get_write_buffer_size() <= waiting
    reading = asyncio.create_task(flooding.read_to_end())
    await asyncio.wait_for(talk.has_room.wait(), 20)
    await flooding.close()
    await reading


async def test_a_client_that_leaves_is_missed(running: Running) -> None:
    client = await running.raw()
    client.open(b"one")
    await client.read_until(b"heard one")
    await client.close()
    talk = await running.talk()
    await talk.until(lambda: talk.over)
    assert not running.server.connections
    talk.call.send(b"nobody hears that")
    talk.call.flush()
    talk.call.end(Status.OK)


async def test_what_is_no_call_is_told_so(running: Running) -> None:
    client = await running.raw()
    block = headers_block((":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "test"))
    client.writer.write(frames.frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, 1, block))
    await client.read_until(b"415")


@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03"]
)
async def test_who_does_not_speak_http2_is_hung_up_on(
    running: Running, said: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    writer.write(said)
    assert b"does not speak HTTP/2" in await asyncio.wait_for(reader.read(), 20)
    writer.close()
    assert "no TLS" in caplog.text


async def test_nothing_is_read_while_a_call_does_not_want_it(running: Running) -> None:
    client = await running.raw()
    client.open(b"note")
    client.open(b"note", stream=3)
    one, other = await running.talk(), await running.talk(1)
    await other.has_heard()
    for talk in (one, other):
        talk.call.stop_reading()
    client.open(b"note", stream=5)
    one.call.read_on()
    await asyncio.sleep(0.05)
    assert len(running.talks) == 2, "the other does not want it yet"
    other.call.end(Status.OK)
    await running.talk(2)


async def test_stopping_says_goodbye_to_all(running: Running) -> None:
    client, stuck = await running.raw(), await running.raw(receives=4096)
    client.open(b"one")
    await client.read_until(b"heard one")
    stuck.writer.write(frames.settings({frames.INITIAL_WINDOW_SIZE: 2**31 - 1}))
    stuck.writer.write(frames.window_update(0, 2**30))
    stuck.open(b"send 9000000")
    talk = await running.talk(1)
    await talk.until(lambda: talk.call.clogged)
    async with asyncio.timeout(20):
        await running.server.stop()
    assert b"the server stops" in await client.read_to_end()
    assert all(talk.over for talk in running.talks)


async def test_a_token_is_in_no_log(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    client = await running.raw()
    client.open(b"one")
    await client.read_until(b"heard one")
    assert "a-secret" not in caplog.text


async def test_where_it_can_not_listen_it_says_why(running: Running) -> None:
    with pytest.raises(ListenError, match=rf"can't listen on 127\.0\.0\.1:{running.port}: .*in use"):
        await GrpcServer({}).start(f"127.0.0.1:{running.port}")
    with pytest.raises(ListenError, match=r"can't listen on no\.such\.host\.invalid:1"):
        await GrpcServer({}).start("no.such.host.invalid:1")


async def test_every_address_of_a_host_is_listened_on_at_one_port() -> None:
    for address in ("[::]:0", "127.0.0.1:0"):
        server = GrpcServer({})
        port = await server.start(address)
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        await server.stop()


async def test_an_address_that_the_machine_does_not_have_is_passed_over_where_there_is_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here, elsewhere = (
        (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (ip, 0)) for ip in ("127.0.0.1", "192.0.2.1")
    )
    names = {"both": [elsewhere, here, elsewhere], "elsewhere": [elsewhere]}

    async def resolve(host: str, *_: Any, **__: Any) -> list[Any]:
        return names[host]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    (bound,) = await bind("both:0")
    assert bound.getsockname()[0] == "127.0.0.1"
    bound.close()
    with pytest.raises(ListenError, match="can't listen on elsewhere:0: Cannot assign"):
        await bind("elsewhere:0")


async def test_several_may_share_a_port() -> None:
    (first,) = await bind("127.0.0.1:0", shared=True)
    (second,) = await bind(f"127.0.0.1:{first.getsockname()[1]}", shared=True)
    for each in (first, second):
        each.close()

"""Tests of clients that misbehave: each states what happens to that client, and that others are served meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import resource
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import grpc
import grpc.aio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import generate_latest

from benchmarks.http2 import DATA, END_HEADERS, HEADERS, PREFACE, SETTINGS, frame, headers_block, prefix
from tests.unit.ads.test_server import Serving, first_request, read, serving, until
from xds.admin import status
from xds.ads import codec
from xds.ads import server as ads_server
from xds.ads.server import SERVICE
from xds.envoy.resource import CLUSTER, ENDPOINT, LISTENER
from xds.mesh.facts import StreamRefused
from xds.mesh.mesh import Key, Kind
from xds.wire.envoy.config import core_pb2 as core
from xds.wire.envoy.service import discovery_pb2 as discovery

__all__ = ["serving"]

RESOURCE_EXHAUSTED, INVALID_ARGUMENT = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INVALID_ARGUMENT


class Victim:
    """A well-behaved sidecar of web on the same server."""

    def __init__(self, serving: Serving, stream: Any) -> None:
        self._bench = serving.bench
        self._stream = stream
        self._number = 0

    async def acknowledge(self, response: discovery.DeltaDiscoveryResponse) -> None:
        request = discovery.DeltaDiscoveryRequest(type_url=response.type_url, response_nonce=response.nonce)
        await self._stream.write(request.SerializeToString())

    async def follows(self) -> None:
        """See that a change reaches it."""
        self._number += 1
        self._bench.service(f"new-{self._number}", f"240.3.0.{self._number}")
        response = await read(self._stream)
        assert [each.name for each in response.resources] == [f"vip:240.3.0.{self._number}"]
        await self.acknowledge(response)


@pytest.fixture
async def victim(serving: Serving) -> AsyncIterator[Victim]:
    serving.bench.service("web", "240.0.0.1")
    serving.bench.leaf("web")
    async with grpc.aio.insecure_channel(
        f"127.0.0.1:{serving.port}", options=[("grpc.use_local_subchannel_pool", 1)]
    ) as channel:
        stream = channel.stream_stream(f"/{SERVICE}/DeltaAggregatedResources")()
        await stream.write(first_request())
        made = Victim(serving, stream)
        await made.acknowledge(await read(stream))
        yield made
        stream.cancel()


def subscription(*names: str, node: core.Node | None = None, type_url: str = CLUSTER) -> bytes:
    request = discovery.DeltaDiscoveryRequest(node=node, type_url=type_url, resource_names_subscribe=names)
    return request.SerializeToString()


async def ends_with(stream: Any, *statuses: grpc.StatusCode) -> str:
    async with asyncio.timeout(60):
        with contextlib.suppress(grpc.aio.AioRpcError):
            while await stream.read() is not grpc.aio.EOF:
                pass
        assert await stream.code() in statuses
        return str(await stream.details())


ONE_TOO_LARGE = ads_server.MAX_MESSAGE + 1
OTHER_NODE = core.Node(id="api-1-sidecar-proxy", cluster="api")


@pytest.mark.parametrize(
    ("messages", "status", "words"),
    [
        pytest.param([b"\xff\xff"], INVALID_ARGUMENT, "not a discovery request", id="garbage"),
        pytest.param([b"\x0a\x02\xff\xff"], INVALID_ARGUMENT, "not a discovery request", id="another message's fields"),
        pytest.param([b"\0" * ONE_TOO_LARGE], RESOURCE_EXHAUSTED, "larger than max", id="a message of 8 MiB"),
        pytest.param([subscription("x" * 10_000_000)], RESOURCE_EXHAUSTED, "larger than max", id="a name of 10 MB"),
        pytest.param([subscription(node=OTHER_NODE)], INVALID_ARGUMENT, "node differs", id="another node"),
        pytest.param(
            [subscription(*(f"{each}-{number}" for number in range(60_000)), type_url=ENDPOINT) for each in range(4)],
            RESOURCE_EXHAUSTED,
            "names were asked for",
            id="240,000 names",
        ),
    ],
)
async def test_an_invalid_request_ends_its_stream_with_a_status(
    serving: Serving, victim: Victim, messages: list[bytes], status: grpc.StatusCode, words: str
) -> None:
    stream = serving.stream()
    await stream.write(first_request())
    await read(stream)
    for message in messages:
        with contextlib.suppress(grpc.aio.AioRpcError):
            await stream.write(message)
    assert words in await ends_with(stream, status)
    await victim.follows()


@pytest.mark.parametrize("node_id", ["", "x" * 65_536, "a\nb", "\u202eevil", "\x00", "\u2028"])
async def test_a_node_with_unprintable_fields_is_refused(serving: Serving, victim: Victim, node_id: str) -> None:
    stream = serving.stream()
    await stream.write(subscription(node=core.Node(id=node_id, cluster="web")))
    await ends_with(stream, INVALID_ARGUMENT)
    await victim.follows()


@pytest.mark.parametrize("node_id", ["\U0001f4a9", "e\u0301", "web-1-sidecar-proxy ", "WEB-1-SIDECAR-PROXY"])
async def test_a_node_that_is_not_registered_gets_nothing(serving: Serving, victim: Victim, node_id: str) -> None:
    stream = serving.stream()
    await stream.write(subscription(node=core.Node(id=node_id, cluster="web")))
    await until(lambda: len(serving.bench.plane.proxies()) == 2)
    (odd,) = [each for each in serving.bench.plane.proxies() if each.client.node.id == node_id]
    await victim.follows()
    assert "is registered for service 'web'" in str(odd.blocker)
    assert odd.session.state(CLUSTER).sent == 0
    stream.cancel()


async def test_a_token_is_in_no_log_no_metric_and_no_answer(
    serving: Serving, victim: Victim, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    token = "3c6a5f0e-secret"
    serving.bench.leaf("web", token)
    for authorizes in (True, False):
        serving.bench.authorizes = authorizes
        made = serving.channel.stream_stream(f"/{SERVICE}/DeltaAggregatedResources")
        stream = made(metadata=(("x-consul-token", token),))
        await stream.write(first_request())
        if authorizes:
            await read(stream)
        else:
            await until(lambda: any(each.admitted is None for each in serving.bench.plane.proxies()))
            (proxy,) = [each for each in serving.bench.plane.proxies() if each.admitted is None]
            serving.bench.plane.apply({Key(Kind.STREAM, proxy.stream_key): StreamRefused("it needs service:write")})
            await ends_with(stream, grpc.StatusCode.PERMISSION_DENIED)
        shown = [json.dumps(status.sidecars(serving.bench.plane)), repr(serving.bench.plane.proxies())]
        shown.append(generate_latest(serving.bench.plane.metrics.registry).decode())
        shown.append(repr([each.stream_key for each in serving.bench.plane.proxies()]))
        stream.cancel()
        assert not any(token in text for text in (*shown, caplog.text))
    assert "PRIVATE KEY" not in caplog.text


@pytest.mark.parametrize("reads", [0, 1], ids=["nothing", "one byte at a time"])
async def test_a_client_that_reads_too_slowly_is_disconnected(
    serving: Serving, victim: Victim, monkeypatch: pytest.MonkeyPatch, reads: int
) -> None:
    """Time passes sixty times as fast as for a client that reads one byte per second."""
    monkeypatch.setattr(ads_server, "WRITE_TIMEOUT", 0.5)
    monkeypatch.setattr(ads_server, "WRITE_CHECK_INTERVAL", 0.1)
    serving.server._checking.cancel()  # type: ignore[union-attr]
    serving.server._checking = asyncio.create_task(serving.server._run_checks())
    reader, writer = await asyncio.open_connection("127.0.0.1", serving.port, limit=1)
    writer.write(raw_call(first_request()))

    async def read_slowly() -> None:
        while await reader.read(1):  # noqa: ASYNC110 - slowly is the point
            await asyncio.sleep(1 / 60)

    reading = asyncio.create_task(read_slowly()) if reads else None
    await until(lambda: len(serving.bench.plane.proxies()) == 2)
    for number in range(400):  # more than the client's window of 64 KiB takes
        serving.bench.service(f"many-{number}", f"240.4.{number // 250}.{number % 250}")
    await until(lambda: len(serving.bench.plane.proxies()) == 1)
    if reading is not None:
        reading.cancel()
    writer.close()


def raw_call(message: bytes) -> bytes:
    """Return what begins a call on a connection of its own, whose client then never reads."""
    headers = headers_block(
        (":method", "POST"), (":scheme", "http"), (":path", f"/{SERVICE}/DeltaAggregatedResources"),
        (":authority", "test"), ("te", "trailers"), ("content-type", "application/grpc"),
    )  # fmt: skip
    return (
        PREFACE
        + frame(SETTINGS, 0, 0)
        + frame(HEADERS, END_HEADERS, 1, headers)
        + frame(DATA, 0, 1, prefix(len(message)) + message)
    )


async def flood(serving: Serving) -> None:
    stream = serving.stream()
    await stream.write(first_request())
    for number in range(2000):
        await stream.write(subscription(f"name-{number}", type_url=ENDPOINT))
    stream.cancel()


async def subscribe_to_many(serving: Serving) -> None:
    stream = serving.stream()
    await stream.write(first_request())
    await read(stream)
    await stream.write(subscription(*(f"name-{number}" for number in range(100_000)), type_url=ENDPOINT))
    await until(lambda: any(each.session.state(ENDPOINT).named for each in serving.bench.plane.proxies()))
    stream.cancel()


async def acknowledge_nothing(serving: Serving) -> None:
    stream = serving.stream()
    await stream.write(first_request())
    await read(stream)
    for number in range(100):
        serving.bench.service("web", f"240.5.0.{number + 1}")
    await stream.write(subscription(type_url=LISTENER))
    sent = sum(state.sent for each in serving.bench.plane.proxies() for state in [each.session.state(CLUSTER)])
    assert sent <= 4, "one response of a type is outstanding at a time"
    stream.cancel()


async def connect_and_leave(serving: Serving) -> None:
    for _ in range(10):
        made = [await asyncio.open_connection("127.0.0.1", serving.port) for _ in range(100)]
        for _, writer in made:
            writer.close()


async def connect_and_say_nothing(serving: Serving) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = hard if hard != resource.RLIM_INFINITY else 1 << 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    sockets = []
    # Both ends are in this process.
    for _ in range(min(10_000, (most - 1000) // 2)):
        made = socket.socket()
        made.setblocking(False)
        await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", serving.port))
        sockets.append(made)
    stream = serving.stream()
    await stream.write(first_request())
    await read(stream)
    stream.cancel()
    for made in sockets:
        made.close()
    await until(lambda: sum(1 for _ in os.scandir("/proc/self/fd")) < soft)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def half_close(serving: Serving) -> None:
    stream = serving.stream()
    await stream.write(first_request())
    await read(stream)
    await stream.done_writing()
    await ends_with(stream, grpc.StatusCode.OK)


@pytest.mark.parametrize(
    "misbehave",
    [
        flood, subscribe_to_many, acknowledge_nothing, connect_and_leave, connect_and_say_nothing, half_close,
    ],
)  # fmt: skip
async def test_other_streams_are_served_meanwhile(
    serving: Serving, victim: Victim, misbehave: Callable[[Serving], Coroutine[Any, Any, None]]
) -> None:
    misbehaving = asyncio.create_task(misbehave(serving))
    if misbehave is not acknowledge_nothing:
        for _ in range(5):
            await victim.follows()
    await misbehaving
    await until(lambda: len(serving.bench.plane.proxies()) == 1)


VALID = [
    first_request(),
    subscription("a", "b", node=OTHER_NODE),
    discovery.DiscoveryRequest(node=OTHER_NODE).SerializeToString(),
]


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Bytes that are a request with some of them changed, left out or put in, or no request at all."""
    message = bytearray(draw(st.one_of(st.sampled_from(VALID), st.binary(max_size=300))))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(message)))
        message[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=4))
    return bytes(message)


@settings(max_examples=int(os.environ.get("GOSSAMER_EXAMPLES", "200")), deadline=None)
@given(requests(), st.booleans())
def test_no_bytes_make_the_decoders_of_requests_fail(message: bytes, delta: bool) -> None:
    with contextlib.suppress(codec.BadRequestError):
        codec.decode(message, delta=delta)
        codec.without_node(message, delta=delta)

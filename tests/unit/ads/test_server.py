"""The gRPC server with a real client on loopback: how streams begin, wait, and end.

Longer than 400 lines because all tests share one server and its client.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.unit.control.bench import Bench
from tests.unit.facts import FREE_PORT
from xds.ads import server as ads_server
from xds.ads import session
from xds.ads import stream as ads_stream
from xds.ads.listening import ListenError
from xds.ads.messages import Response
from xds.ads.server import SERVICE, AdsServer
from xds.ads.slots import AT_ONCE
from xds.ads.stream import Stream
from xds.control.ads_adapter import AdsAdapter
from xds.envoy.resource import CLUSTER, ENDPOINT, LISTENER
from xds.mesh import mesh
from xds.mesh.addresses import HostPort
from xds.mesh.facts import Authorized, StreamRefused
from xds.mesh.mesh import Key, Kind
from xds.wire.envoy.config import core_pb2 as core
from xds.wire.envoy.service import discovery_pb2 as discovery

NODE = core.Node(id="web-1-sidecar-proxy", cluster="web")


class Serving:
    """A server over a control plane that the test feeds."""

    def __init__(self, bench: Bench, server: AdsServer, port: int) -> None:
        self.bench = bench
        self.server = server
        self.port = port
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")

    def stream(self, *, delta: bool = True) -> Any:
        method = "DeltaAggregatedResources" if delta else "StreamAggregatedResources"
        return self.channel.stream_stream(f"/{SERVICE}/{method}")(metadata=(("x-consul-token", ""),))


@pytest.fixture
async def serving() -> AsyncIterator[Serving]:
    bench = Bench()
    server = AdsServer(AdsAdapter(bench.plane))
    made = Serving(bench, server, await server.start(FREE_PORT))
    yield made
    await made.channel.close()
    await server.stop()
    async with asyncio.timeout(20):
        while bench.plane.proxies():  # noqa: ASYNC110 - the plane has no event for it
            await asyncio.sleep(0)


def first_request(type_url: str = CLUSTER, node: core.Node | None = NODE) -> bytes:
    return discovery.DeltaDiscoveryRequest(node=node, type_url=type_url).SerializeToString()


async def read(stream: Any) -> discovery.DeltaDiscoveryResponse:
    async with asyncio.timeout(20):
        return discovery.DeltaDiscoveryResponse.FromString(await stream.read())


@pytest.mark.parametrize(
    "first",
    [
        b"\xff\xff",
        first_request(node=None),
        first_request(node=core.Node(id="web-1-sidecar-proxy")),
        first_request(node=core.Node(cluster="web")),
        first_request(node=core.Node(id="a", cluster="web/../db")),
    ],
    ids=["garbage", "no node", "no service", "no id", "another service's path"],
)
@pytest.mark.parametrize("delta", [True, False])
async def test_a_stream_without_an_identity_ends_with_what_to_send(serving: Serving, first: bytes, delta: bool) -> None:
    stream = serving.stream(delta=delta)
    await stream.write(first)
    async with asyncio.timeout(20):
        assert await stream.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "not a discovery request" in await stream.details() or "node.cluster" in await stream.details()


async def test_a_proxy_is_answered_when_everything_about_it_is_known(serving: Serving) -> None:
    stream = serving.stream()
    await stream.write(first_request())
    serving.bench.service("web", "240.0.0.1")
    serving.bench.service("api", "240.0.0.2")
    serving.bench.leaf("web")
    answer = await read(stream)
    assert {resource.name for resource in answer.resources} == {"local_app", "original-destination", "vip:240.0.0.2"}
    stream.cancel()


async def test_a_first_response_does_not_wait_forever(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ads_stream, "FIRST_ANSWER_WAIT", 0.05)
    serving.bench.service("web", "240.0.0.1")
    serving.bench.leaf("web")
    serving.bench.plane.apply({mesh.SERVICE_NAMES: frozenset({"web", "never-read"})})
    stream = serving.stream()
    await stream.write(first_request())
    answer = await read(stream)
    assert {resource.name for resource in answer.resources} == {"local_app", "original-destination"}
    stream.cancel()


async def test_a_change_reaches_a_proxy_that_has_acknowledged(serving: Serving) -> None:
    serving.bench.service("web", "240.0.0.1")
    serving.bench.leaf("web")
    stream = serving.stream()
    await stream.write(first_request())
    first = await read(stream)
    await stream.write(
        discovery.DeltaDiscoveryRequest(type_url=CLUSTER, response_nonce=first.nonce).SerializeToString()
    )
    serving.bench.service("api", "240.0.0.2")
    assert [resource.name for resource in (await read(stream)).resources] == ["vip:240.0.0.2"]
    stream.cancel()


async def test_a_client_that_leaves_ends_only_its_own_stream(serving: Serving) -> None:
    serving.bench.service("web", "240.0.0.1")
    serving.bench.leaf("web")
    leaving, staying = serving.stream(), serving.stream()
    for stream in (leaving, staying):
        await stream.write(first_request())
        await read(stream)
    assert len(serving.bench.plane.proxies()) == 2
    leaving.cancel()
    async with asyncio.timeout(20):
        while len(serving.bench.plane.proxies()) != 1:  # noqa: ASYNC110 - the plane has no event for it
            await asyncio.sleep(0)
    await staying.write(discovery.DeltaDiscoveryRequest(type_url=LISTENER).SerializeToString())
    staying_answer = await asyncio.wait_for(_listeners(staying), 20)
    assert "outbound_listener:127.0.0.1:15001" in staying_answer
    staying.cancel()


async def _listeners(stream: Any) -> set[str]:
    """Acknowledges clusters until listeners come."""
    nonce = "1"
    await stream.write(discovery.DeltaDiscoveryRequest(type_url=CLUSTER, response_nonce=nonce).SerializeToString())
    while (answer := await read(stream)).type_url != LISTENER:
        pass
    return {resource.name for resource in answer.resources}


async def test_garbage_in_the_middle_ends_that_stream(serving: Serving) -> None:
    serving.bench.service("web", "240.0.0.1")
    serving.bench.leaf("web")
    stream = serving.stream()
    await stream.write(first_request())
    await read(stream)
    await stream.write(b"\xff\xff")
    async with asyncio.timeout(20):
        while serving.bench.plane.proxies():  # noqa: ASYNC110 - the plane has no event for it
            await asyncio.sleep(0)


async def test_a_port_that_is_taken_is_an_error(serving: Serving) -> None:
    with pytest.raises(ListenError, match=f"can't listen on 127.0.0.1:{serving.port}"):
        await AdsServer(AdsAdapter(serving.bench.plane)).start(HostPort("127.0.0.1", serving.port))


async def test_a_large_response_and_a_change_made_meanwhile_both_arrive(serving: Serving) -> None:
    bench = serving.bench
    for number in range(2 * ads_stream.SMALL):
        bench.service(f"s-{number}", f"240.1.0.{number}")
    bench.service("web", "240.0.0.1")
    bench.leaf("web")
    stream = serving.stream()
    await stream.write(first_request())
    response = await read(stream)
    assert len(response.resources) > 2 * ads_stream.SMALL
    await stream.write(
        discovery.DeltaDiscoveryRequest(type_url=CLUSTER, response_nonce=response.nonce).SerializeToString()
    )
    bench.service("later", "240.2.0.1")
    assert [resource.name for resource in (await read(stream)).resources] == ["vip:240.2.0.1"]


class Context:
    """gRPC's context of a call whose client accepts messages when the test says so."""

    def __init__(self, *, accepts: bool) -> None:
        self.accepts = asyncio.Event()
        if accepts:
            self.accepts.set()
        self.sent: list[str] = []

    def peer(self) -> str:
        return "ipv4:127.0.0.1:9"

    def invocation_metadata(self) -> None:
        return None

    def auth_context(self) -> dict[str, list[bytes]]:
        return {}

    async def write(self, message: bytes) -> None:
        self.sent.append(discovery.DeltaDiscoveryResponse.FromString(message).nonce)
        await self.accepts.wait()


class Pushed:
    """A peer that first has a small response to send and then a large one."""

    def __init__(self, server: AdsServer, *, takes: bool) -> None:
        self.session = self
        self.ready, self.incomplete, self.held_back, self.admitted = True, False, False, True
        self.small, self.large = 0, True
        self.context = Context(accepts=takes)
        self.stream = Stream(server, self.context, delta=True)
        self.stream._peer = self  # type: ignore[assignment]
        self.wake = self.stream.wake

    @property
    def may_send(self) -> bool:
        return bool(self.small or self.large)

    @property
    def sent(self) -> list[str]:
        return self.context.sent

    def next_response(self, most: int | None = None) -> Response | None:
        self.held_back = self.large and most is not None
        if self.small:
            self.small -= 1
            return Response(CLUSTER, "small", "small", (), ())
        if not self.large or most is not None:
            return None
        self.large = False
        return Response(CLUSTER, "large", "large", (), ())

    def take(self) -> None:
        """Accept what was sent, and everything from now on."""
        self.context.accepts.set()


class Nobody:
    """Counts nothing."""

    def sent(self, *_: object) -> None: ...


async def test_a_proxy_that_reads_nothing_does_not_block_large_responses_to_others() -> None:
    server = AdsServer(Nobody())  # type: ignore[arg-type]
    stuck, other = Pushed(server, takes=False), Pushed(server, takes=True)
    ahead = [Pushed(server, takes=False) for _ in range(AT_ONCE)]
    for each in (*ahead, stuck, other):
        server.slots.ask(each.wake)
    stuck.small = 1
    stuck.wake()  # it has something to say while it waits for its turn, and does not take it
    async with asyncio.timeout(20):
        while not other.sent:  # noqa: ASYNC110 - the other end has no event for it
            await asyncio.sleep(0)
    assert (other.sent, stuck.sent) == (["large"], ["small"])
    stuck.take()
    async with asyncio.timeout(20):
        while len(stuck.sent) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert stuck.sent == ["small", "large"]


async def test_a_slot_that_comes_while_nothing_is_accepted_goes_to_the_next() -> None:
    server = AdsServer(Nobody())  # type: ignore[arg-type]
    stuck, other = [Pushed(server, takes=False) for _ in range(AT_ONCE)], Pushed(server, takes=True)
    for each in stuck:
        each.stream.call.write(discovery.DeltaDiscoveryResponse(nonce="before").SerializeToString())
    for each in (*stuck, other):
        server.slots.ask(each.wake)
    await until(lambda: bool(other.sent))
    for each in stuck:
        each.take()
    await until(lambda: all(each.sent == ["before", "large"] for each in stuck))


async def test_a_stream_that_fails_while_it_is_served_ends_no_others() -> None:
    class Failing(Pushed):
        def next_response(self, most: int | None = None) -> Response | None:
            raise RuntimeError("a fault of ours")

    server = AdsServer(Nobody())  # type: ignore[arg-type]
    failing = Failing(server, takes=True)
    failing.stream.call._handler = asyncio.create_task(asyncio.Event().wait())
    everybody = [failing, *(Pushed(server, takes=True) for _ in range(ads_server.SERVED_AT_ONCE))]
    for each in everybody:
        each.small = 1
        each.wake()
    await until(lambda: all(each.sent for each in everybody[1:]))
    with pytest.raises(asyncio.CancelledError):
        await failing.stream.call._handler


async def test_large_requests_are_processed_one_after_the_other_and_in_order(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving.bench.service("web", "240.0.0.1")
    serving.bench.leaf("web")
    monkeypatch.setattr(ads_stream, "LARGE_REQUEST", 1)
    streams = [serving.stream() for _ in range(20)]
    for stream in streams:
        await stream.write(first_request())
        await stream.write(discovery.DeltaDiscoveryRequest(type_url=LISTENER).SerializeToString())
    for stream in streams:
        answer = await read(stream)
        assert answer.type_url == CLUSTER
        acknowledgement = discovery.DeltaDiscoveryRequest(type_url=CLUSTER, response_nonce=answer.nonce)
        await stream.write(acknowledgement.SerializeToString())
        assert (await read(stream)).type_url == LISTENER
        stream.cancel()


def subscription(number: int, size: int = 1000) -> bytes:
    names = [f"{number}-{each}" for each in range(size)]
    return discovery.DeltaDiscoveryRequest(type_url=CLUSTER, resource_names_subscribe=names).SerializeToString()


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not done():  # noqa: ASYNC110 - the other end has no event for it
            await asyncio.sleep(0)


async def test_before_authentication_one_request_is_kept_undecoded(serving: Serving) -> None:
    bench, server = serving.bench, serving.server
    bench.authorizes = False
    bench.service("web", "240.0.0.1")
    bench.service("api", "240.0.0.2")
    bench.leaf("web")
    stream = serving.stream()
    large = core.Node(id="web-1-sidecar-proxy", cluster="web")
    large.metadata["more"] = "x" * 50_000
    await stream.write(first_request(node=large))
    await stream.write(subscription(1))
    await until(lambda: server.held == len(first_request(node=None)))
    (proxy,) = bench.plane.proxies()
    assert not proxy.session.state(CLUSTER).asked, "nothing of it is decoded"
    assert not bench.demand.leaves, "nothing is read on its behalf"
    bench.plane.apply({Key(Kind.STREAM, proxy.stream_key): Authorized()})
    assert "vip:240.0.0.2" in {resource.name for resource in (await read(stream)).resources}
    assert server.held == 0
    await until(lambda: len(proxy.session.state(CLUSTER).named) == 1000)
    stream.cancel()


@pytest.mark.parametrize(
    ("unauthenticated", "status"),
    [(True, grpc.StatusCode.UNAUTHENTICATED), (False, grpc.StatusCode.PERMISSION_DENIED)],
)
@pytest.mark.parametrize("served", [False, True])
async def test_a_stream_that_is_refused_ends_with_the_reason(
    serving: Serving, unauthenticated: bool, status: grpc.StatusCode, served: bool
) -> None:
    bench, server = serving.bench, serving.server
    bench.authorizes = served
    bench.service("web", "240.0.0.1")
    bench.leaf("web")
    stream = serving.stream()
    await stream.write(first_request())
    if served:
        await read(stream)
    await until(lambda: bool(bench.plane.proxies()))
    (proxy,) = bench.plane.proxies()
    refusal = StreamRefused("it needs service:write on 'web'", unauthenticated)
    bench.plane.apply({Key(Kind.STREAM, proxy.stream_key): refusal})
    async with asyncio.timeout(20):
        assert await stream.code() == status
    assert await stream.details() == refusal.reason
    await until(lambda: not bench.plane.proxies())
    assert server.held == 0
    assert bench.plane.refused() == [proxy]
    bench.authorizes = True
    again = serving.stream()
    await again.write(first_request())
    await read(again)
    assert bench.plane.refused() == []
    again.cancel()


async def test_more_than_may_be_held_before_authentication_ends_the_stream(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ads_stream, "MAX_HELD", 20_000)
    serving.bench.authorizes = False
    stream = serving.stream()
    names = [f"name-{each}" for each in range(10_000)]
    first = discovery.DeltaDiscoveryRequest(node=NODE, type_url=CLUSTER, resource_names_subscribe=names)
    await stream.write(first.SerializeToString())
    async with asyncio.timeout(20):
        assert await stream.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    await until(lambda: serving.server.held == 0)


@pytest.mark.parametrize("delta", [True, False])
async def test_too_many_names_end_the_stream(serving: Serving, delta: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "MOST_NAMES", 999)
    serving.bench.service("web", "240.0.0.1")
    serving.bench.leaf("web")
    stream = serving.stream(delta=delta)
    kind: Any = discovery.DeltaDiscoveryRequest if delta else discovery.DiscoveryRequest
    await stream.write(kind(node=NODE, type_url=CLUSTER).SerializeToString())
    names = [str(each) for each in range(1000)]
    named = {"resource_names_subscribe" if delta else "resource_names": names}
    await stream.write(kind(type_url=ENDPOINT, **named).SerializeToString())
    async with asyncio.timeout(20):
        with contextlib.suppress(grpc.aio.AioRpcError):
            while await stream.read() is not grpc.aio.EOF:
                pass
        assert await stream.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "1000 names" in await stream.details()


async def test_a_status_set_while_the_call_ends_arrives(serving: Serving) -> None:
    class Ending:
        def receive(self, request: object) -> object:
            (stream,) = serving.server._streams
            stream.end("first")
            raise session.LimitError("second")

    serving.bench.service("web", "240.0.0.1")
    serving.bench.leaf("web")
    stream = serving.stream()
    await stream.write(first_request())
    await read(stream)
    (proxy,) = serving.bench.plane.proxies()
    proxy.session.receive = Ending().receive  # type: ignore[method-assign, assignment]
    await stream.write(first_request(LISTENER))
    async with asyncio.timeout(20):
        assert await stream.code() == grpc.StatusCode.UNAVAILABLE
        assert await stream.details() == "first"


# -- health and the end -----------------------------------------------------------------------------------------------


async def health(serving: Serving, service: str = "") -> int:
    stub = health_pb2_grpc.HealthStub(serving.channel)
    return int((await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=20)).status)


async def test_the_health_service_reports_whether_sidecars_can_be_served(serving: Serving) -> None:
    states = health_pb2.HealthCheckResponse
    assert await health(serving) == await health(serving, SERVICE) == states.NOT_SERVING
    watching = health_pb2_grpc.HealthStub(serving.channel).Watch(health_pb2.HealthCheckRequest())
    assert (await watching.read()).status == states.NOT_SERVING
    serving.server.set_ready(True)
    assert (await watching.read()).status == states.SERVING
    assert await health(serving, SERVICE) == states.SERVING
    serving.server.set_ready(False)
    assert (await watching.read()).status == states.NOT_SERVING
    watching.cancel()


@pytest.mark.parametrize("seconds", [0.0, 60.0])
async def test_a_server_that_stops_ends_every_stream_and_says_so(serving: Serving, seconds: float) -> None:
    serving.bench.service("web", "240.0.0.1")
    serving.bench.leaf("web")
    streams = [serving.stream() for _ in range(5)]
    for stream in streams:
        await stream.write(first_request())
        await read(stream)
    watching = health_pb2_grpc.HealthStub(serving.channel).Watch(health_pb2.HealthCheckRequest())
    await watching.read()
    async with asyncio.timeout(20):
        await serving.server.drain(seconds)
        for stream in streams:
            assert await stream.code() == grpc.StatusCode.UNAVAILABLE
            assert await stream.details() == "the server stops: connect again"
    assert not serving.bench.plane.proxies()

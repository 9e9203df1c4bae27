"""Several worker processes on one port, fed and watched by this one."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from prometheus_client import CollectorRegistry, Counter

from tests.unit.facts import FREE_PORT, ROOTS, make_instances, make_leaf
from xds.ads.listening import ListenError
from xds.ads.server import SERVICE
from xds.envoy.resource import CLUSTER
from xds.mesh import mesh
from xds.mesh.addresses import HostPort
from xds.mesh.chains import default_chain
from xds.mesh.config_entries import ConfigEntries
from xds.mesh.facts import Authorized, ServiceInstances
from xds.mesh.mesh import Demand, Key, Kind
from xds.wire.envoy.config import core_pb2 as core
from xds.wire.envoy.service import discovery_pb2 as discovery
from xds.workers.pool import WorkerPool, added_up
from xds.workers.xds_settings import XdsSettings

COUNT = 2
INSTANCES = {"web": make_instances("web", "240.0.0.1"), "api": make_instances("api", "240.0.0.2")}


class Pooled:
    """A pool whose source is the test: what is wanted is there at once."""

    def __init__(self) -> None:
        self.instances = dict(INSTANCES)
        self.demands: list[Demand] = []
        self.pool = WorkerPool(XdsSettings(listen=FREE_PORT), self._wanted, COUNT)
        self.port = 0
        self.streams: list[grpc.aio.Channel] = []

    def _wanted(self, demand: Demand) -> None:
        self.demands.append(demand)
        batch: dict[Key, object] = {Key(Kind.LEAF, key): make_leaf(key.service) for key in demand.leaves}
        batch |= {Key(Kind.STREAM, key): Authorized() for key in demand.streams}
        for service in demand.services:
            batch[Key(Kind.INSTANCES, service)] = self.instances.get(service, ServiceInstances(service))
            batch[Key(Kind.CHAIN, service)] = default_chain(service)
        self.pool.apply(batch)

    async def connect(self) -> Any:
        """Connect a sidecar of web, and return once it has been sent its clusters."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", options=options)
        self.streams.append(channel)
        stream = channel.stream_stream(f"/{SERVICE}/DeltaAggregatedResources")()
        node = core.Node(id="web-1-sidecar-proxy", cluster="web")
        await stream.write(discovery.DeltaDiscoveryRequest(node=node, type_url=CLUSTER).SerializeToString())
        return stream

    async def clusters(self, stream: Any) -> set[str]:
        async with asyncio.timeout(30):
            message = discovery.DeltaDiscoveryResponse.FromString(await stream.read())
        return {resource.name for resource in message.resources}

    async def by_worker(self) -> list[int]:
        """Return how many streams each worker has."""
        return [len(found) for found in await self.pool._ask("sidecars")]


@pytest.fixture
async def pooled() -> AsyncIterator[Pooled]:
    made = Pooled()
    made.port = await made.pool.start()
    watching = asyncio.create_task(made.pool.watch())
    made.pool.apply(
        {
            mesh.ROOTS: ROOTS,
            mesh.INTENTIONS: (),
            mesh.DEFAULT_ALLOW: True,
            mesh.DATACENTER: "dc1",
            mesh.SERVICE_NAMES: frozenset(INSTANCES),
            mesh.CONFIG_ENTRIES: ConfigEntries(),
        }
    )
    yield made
    for channel in made.streams:
        await channel.close()
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    await made.pool.stop()


async def until(what: str, seen: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not await seen():  # noqa: ASYNC110 - other processes have no event for it
            await asyncio.sleep(0.05)


async def test_every_worker_serves_and_what_they_need_is_read_once(pooled: Pooled) -> None:
    streams = [await pooled.connect() for _ in range(32)]
    for stream in streams:
        assert "vip:240.0.0.2" in await pooled.clusters(stream)
    assert all(await pooled.by_worker()), "the kernel gives each of them some"
    assert len(await pooled.pool.sidecars()) == len(streams)
    assert pooled.demands[-1].services == {"web", "api"}
    samples = {s.name: s.value for family in await pooled.pool.families() for s in family.samples if s.labels}
    assert samples["gossamer_streams"] == len(streams)


async def test_a_change_reaches_the_sidecars_of_every_worker(pooled: Pooled) -> None:
    streams = [await pooled.connect() for _ in range(16)]
    for stream in streams:
        await pooled.clusters(stream)
        await stream.write(discovery.DeltaDiscoveryRequest(type_url=CLUSTER, response_nonce="1").SerializeToString())
    pooled.instances["new"] = make_instances("new", "240.0.0.3")
    pooled.pool.apply({mesh.SERVICE_NAMES: frozenset(pooled.instances)})
    for stream in streams:
        assert await pooled.clusters(stream) == {"vip:240.0.0.3"}


async def test_a_killed_worker_is_replaced_and_the_others_continue(
    pooled: Pooled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xds.workers.pool.FIRST_PAUSE_S", 0.01)
    for stream in [await pooled.connect() for _ in range(16)]:
        await pooled.clusters(stream)
    victim = pooled.pool._workers[0].process.pid
    os.kill(victim, signal.SIGKILL)

    async def replaced() -> bool:
        worker = pooled.pool._workers.get(0)
        return worker is not None and worker.process.pid != victim

    await until("another worker", replaced)
    streams = [await pooled.connect() for _ in range(32)]
    for stream in streams:
        assert "vip:240.0.0.2" in await pooled.clusters(stream)
    assert all(await pooled.by_worker())


async def test_a_port_in_use_is_refused(pooled: Pooled) -> None:
    with pytest.raises(ListenError, match="Address already in use"):
        await WorkerPool(XdsSettings(listen=HostPort("127.0.0.1", pooled.port)), lambda _: None, 1).start()


def test_counters_of_several_processes_are_added_up() -> None:
    registries = [CollectorRegistry(), CollectorRegistry()]
    for number, registry in enumerate(registries, 1):
        Counter("seen", "what was seen", ["what"], registry=registry).labels("x").inc(number)
    found = {s.name: s.value for family in added_up(list(r.collect()) for r in registries) for s in family.samples}
    assert found["seen_total"] == 3

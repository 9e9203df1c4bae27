"""Measures what the configuration of one service costs everybody else while the server takes it.

Each input is as large as its owner may make it, or larger. It is decoded as a source decodes it, in a thread, and
applied to a control plane with a hundred sidecars of other services. Meanwhile it is noted for how long the event loop
did nothing else, which is how long another service's change waits.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from benchmarks.stage import Stage
from xds.ads.codec import Node
from xds.control.plane import ControlPlane
from xds.control.proxy import Client
from xds.mesh.chains import default_chain
from xds.mesh.facts import Authorized, Leaf, LeafKey, Roots, StreamKey
from xds.mesh.mesh import CONFIG_ENTRIES, INTENTIONS, SERVICE_NAMES, Key, Kind
from xds.metrics import Metrics
from xds.policy.mesh_wide_settings import MeshWideSettings
from xds.sources.file.document import Document, parse
from xds.sources.file.facts import FileFacts, facts_of
from xds.workers.serving import prepare_process

OTHERS = 100
TENANT = "tenant"
Entry = dict[str, Any]


def inputs() -> Iterator[tuple[str, list[Entry], int]]:
    """Yield what one owner writes: what it is called, the entries, and how many instances there are."""

    def router(count: int, match: str, path: str) -> list[Entry]:
        routes = [{"Match": {"HTTP": {match: path.format(number)}}} for number in range(count)]
        return [{"Kind": "service-router", "Name": TENANT, "Routes": routes}]

    def resolver(**fields: Any) -> list[Entry]:
        return [{"Kind": "service-resolver", "Name": TENANT, **fields}]

    def intentions(sources: list[Entry]) -> list[Entry]:
        return [{"Kind": "service-intentions", "Name": TENANT, "Sources": sources}]

    yield "500 routes, as many as the quota allows", router(500, "PathExact", "/{}"), 1
    yield "10,000 routes", router(10_000, "PathExact", "/{}"), 1
    yield "100 routes with expressions", router(100, "PathRegex", "/(a|b|[c-z]{{1,20}}){}"), 1
    yield "300 routes with large expressions", router(300, "PathRegex", "/" + "(a|b|[c-z]{{1,50}})" * 20 + "{}"), 1
    rings = {"Policy": "ring_hash", "RingHashConfig": {"MinimumRingSize": 8_000_000, "MaximumRingSize": 8_000_000}}
    subsets: Entry = {f"s{number}": {"Filter": f'Service.Meta.v == "{number}"'} for number in range(8)}
    yield "8 subsets with rings of 8 million", resolver(LoadBalancer=rings, Subsets=subsets), 8
    compared = " or ".join(f'Service.Meta.v == "{number}"' for number in range(160))
    yield (
        "a filter of 160 terms, 300 instances",
        resolver(Subsets={"v1": {"Filter": compared}}, DefaultSubset="v1"),
        300,
    )
    yield "3,000 instances", [], 3000
    yield "1,000 denied sources", intentions([{"Name": f"s-{n}", "Action": "deny"} for n in range(1000)]), 1
    yield "1,500 allowed sources", intentions([{"Name": f"s-{n}", "Action": "allow"} for n in range(1500)]), 1
    yield "5,000 allowed sources", intentions([{"Name": f"s-{n}", "Action": "allow"} for n in range(5000)]), 1
    permissions = [{"Action": "deny", "HTTP": {"PathPrefix": f"/{number}"}} for number in range(100)]
    yield "100 permissions", intentions([{"Name": "*", "Permissions": permissions}]), 1


def documents() -> Iterator[tuple[str, Document]]:
    """Yield each input, read and checked."""
    for name, entries, instances in inputs():
        services = [
            {
                "name": TENANT,
                "id": f"{TENANT}-{number}",
                "port": 8080,
                "address": f"10.1.{number // 250}.{number % 250 + 1}",
                "meta": {"v": str(number % 8)},
                "connect": {"sidecar_service": {"port": 20000}},
            }
            for number in range(instances)
        ]
        http = {"Kind": "service-defaults", "Name": TENANT, "Protocol": "http"}
        data = {
            "default_intention_policy": "allow",
            "services": services,
            "config_entries": {"bootstrap": [http, *entries]},
        }
        yield name, parse(name, json.dumps(data))


class Mesh:
    """A control plane with the sidecars of other services, and one of the tenant's."""

    def __init__(self, before: FileFacts) -> None:
        self.plane = ControlPlane(MeshWideSettings(), lambda _: None, Metrics(), self._soon, self._soon)
        self.names = frozenset({TENANT, *(f"other-{number}" for number in range(OTHERS))})
        batch = before.base(Roots("benchmark.consul", ("",))) | {SERVICE_NAMES: self.names}
        instance = before.instances[TENANT].instances[0]
        assert instance.sidecar is not None
        for number, service in enumerate(sorted(self.names)):
            sidecar = replace(instance.sidecar, service=service, service_id=service)
            mine = replace(instance, service_id=service, sidecar=sidecar)
            batch[Key(Kind.INSTANCES, service)] = replace(before.instances[TENANT], service=service, instances=(mine,))
            batch[Key(Kind.CHAIN, service)] = replace(default_chain(service), virtual_ips=(f"240.0.0.{number + 1}",))
            batch[Key(Kind.LEAF, LeafKey(service, ""))] = Leaf(service, "", "", "1")
            batch[Key(Kind.STREAM, StreamKey(LeafKey(service, ""), service))] = Authorized()
        self.plane.apply(batch)
        for service in self.names:
            self.plane.attach(Client(Node(service, service, "", ""), "", "", True, service))

    def _soon(self, then: Any) -> None:
        asyncio.get_running_loop().call_soon(then)

    def apply(self, facts: FileFacts) -> None:
        """Take what the tenant wrote."""
        chain = replace(facts.chains.get(TENANT) or default_chain(TENANT), virtual_ips=("240.0.0.200",))
        batch: Mapping[Key, object] = {
            CONFIG_ENTRIES: facts.entries,
            INTENTIONS: facts.intentions,
            Key(Kind.INSTANCES, TENANT): facts.instances[TENANT],
            Key(Kind.CHAIN, TENANT): chain,
        }
        for key, fact in batch.items():
            self.plane.apply({key: fact})


async def measure(_stage: Stage) -> Any:
    """Return, for each input, how long it took and how long the event loop did nothing else, in milliseconds."""
    plain = facts_of(parse("plain", json.dumps(_plain())))
    prepare_process()  # as a server is: what it looks through for garbage would count otherwise
    found = {}
    for name, document in documents():
        mesh = Mesh(plain)
        await asyncio.sleep(0.1)
        longest = 0.0
        over = asyncio.Event()

        async def beat(over: asyncio.Event = over) -> None:
            nonlocal longest
            last = time.perf_counter()
            while not over.is_set():
                await asyncio.sleep(0)
                now = time.perf_counter()
                longest, last = max(longest, now - last), now

        beating = asyncio.create_task(beat())
        await asyncio.sleep(0)
        began = time.perf_counter()
        facts = await asyncio.to_thread(facts_of, document)
        mesh.apply(facts)
        await asyncio.sleep(0)
        took = time.perf_counter() - began
        over.set()
        await beating
        found[name] = {"took_ms": took * 1e3, "blocked_ms": longest * 1e3}
    return found


def _plain() -> dict[str, Any]:
    service = {"name": TENANT, "port": 8080, "connect": {"sidecar_service": {"port": 20000}}}
    http = {"Kind": "service-defaults", "Name": TENANT, "Protocol": "http"}
    return {"default_intention_policy": "allow", "services": [service], "config_entries": {"bootstrap": [http]}}

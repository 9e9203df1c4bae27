"""Clusters that a sidecar is sent when they are first dialed, and the change-over from sending them at once."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from tests.integration.helpers import answers
from tests.integration.requests import Answer, request, until
from xds.control.service_view import LARGE
from xds.lab.application import Held, who_answers
from xds.lab.commands import ADMIN_PORT
from xds.lab.mesh import Lab, Member, get
from xds.lab.mesh_file import MeshFile
from xds.lab.processes import eventually

ADDRESSES = {
    "api": "240.9.0.11",
    "shop": "240.9.0.12",
    "spare": "240.9.0.13",
    "later": "240.9.0.14",
    "store": "240.9.0.15",
    "book": "240.9.0.16",
    "stock": "240.9.0.17",
    "depot": "240.9.0.18",
}


@dataclass
class OnDemand:
    """web calls api and depot, TCP services; shop, book, store and stock, HTTP services; primary fails over to spare.

    shop and book have routes of their own.
    """

    lab: Lab
    web: Member
    api: Member

    async def clusters(self) -> set[str]:
        """Those of web's clusters that are named after addresses, or that are members of these."""
        resources = (await self.lab.sidecars())[self.web.sidecar_id]["resources"]["clusters"]
        return {name for name in resources["sent"] if "vip:" in name}

    async def routes(self) -> set[str]:
        """Return the routes that it asked for."""
        resources = (await self.lab.sidecars())[self.web.sidecar_id]["resources"]["routes on demand"]
        return {name for name in resources["sent"] if "vip:" in name}

    async def sent(self, kind: str) -> int:
        """Return how many responses of a type all sidecars were sent."""
        _, text = await get(self.lab.control, ADMIN_PORT, "/metrics")
        samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return round(float(samples[f'gossamer_responses_sent_total{{type="{kind}"}}']))

    async def ask(self, service: str) -> Answer:
        """Return the response to a request to an HTTP service."""
        return await request(self.web.host, f"http://{ADDRESSES[service]}/", "POST")

    async def dial(self, address: str) -> tuple[str | None, float]:
        """Return who answers, and after how many seconds the answer or a refusal came."""
        began = time.monotonic()
        return await who_answers(self.web.host, address, 80), time.monotonic() - began


@pytest.fixture(scope="module")
async def mesh() -> AsyncIterator[OnDemand]:
    async with Lab(mesh_file=True, default_policy="allow", serve_arguments=("--clusters", "on-demand")) as lab:
        for name in ("shop", "book", "store", "stock"):
            await lab.catalog.entry({"Kind": "service-defaults", "Name": name, "Protocol": "http"})
        for name in ("shop", "book"):
            route = {"Match": {"HTTP": {"PathPrefix": "/"}}, "Destination": {"RequestTimeout": "20s"}}
            await lab.catalog.entry({"Kind": "service-router", "Name": name, "Routes": [route]})
        await lab.catalog.entry(
            {"Kind": "service-resolver", "Name": "primary", "Failover": {"*": {"Service": "spare"}}}
        )
        members = await asyncio.gather(
            lab.member("web"),
            lab.member("api", virtual_ip=ADDRESSES["api"]),
            lab.member("spare", virtual_ip=ADDRESSES["spare"]),
            lab.member("depot", virtual_ip=ADDRESSES["depot"]),
            *(
                lab.member(name, virtual_ip=ADDRESSES[name], speaks="http")
                for name in ("shop", "book", "store", "stock")
            ),
        )
        await lab.served(*members)
        yield OnDemand(lab, members[0], members[1])


async def test_on_demand_only_dialed_clusters_are_sent(mesh: OnDemand) -> None:
    assert await mesh.clusters() == set()
    assert (await mesh.dial(ADDRESSES["api"]))[0] == "api-1", "the first dial waits for its cluster"
    assert await mesh.clusters() == {f"vip:{ADDRESSES['api']}"}


async def test_the_endpoints_of_a_dialed_cluster_are_sent_once(mesh: OnDemand) -> None:
    before = await mesh.sent("endpoints")
    assert (await mesh.dial(ADDRESSES["depot"]))[0] == "depot-1"
    assert await mesh.sent("endpoints") == before + 1, "Envoy's subscription crosses what it asks for"


async def test_a_first_request_fetches_its_routes_and_cluster(mesh: OnDemand) -> None:
    assert await mesh.routes() == set()
    slow = await request(mesh.web.host, f"http://{ADDRESSES['shop']}/?wait=4", "POST")
    assert slow.service == "shop-1", "the first request waits for both, and after that no less long than any"
    assert await mesh.routes() == {f"vip:{ADDRESSES['shop']}"}
    assert not any("store" in name for name in await mesh.clusters())


async def test_a_first_request_to_a_service_without_routes_fetches_its_cluster_only(mesh: OnDemand) -> None:
    before = await mesh.routes()
    slow = await request(mesh.web.host, f"http://{ADDRESSES['store']}/?wait=4", "POST")
    assert slow.service == "store-1", "the wait for a cluster has a limit, the wait for an answer has not"
    assert f"http:vip:{ADDRESSES['store']}" in await mesh.clusters()
    assert await mesh.routes() == before


async def test_routes_of_a_service_can_be_added_and_removed(mesh: OnDemand) -> None:
    sockets: list[socket.socket] = []

    def connect(info: Any) -> socket.socket:
        sockets.append(mesh.web.host.socket(info[0], info[1]))
        return sockets[-1]

    async with aiohttp.ClientSession(
        f"http://{ADDRESSES['store']}", connector=aiohttp.TCPConnector(socket_factory=connect)
    ) as session:

        async def ask() -> str:
            async with session.get("/") as answer:
                return str((await answer.json())["service"])

        assert await ask() == "store-1"
        route = {"Match": {"HTTP": {"PathPrefix": "/"}}, "Destination": {"Service": "book"}}
        await mesh.lab.catalog.entry({"Kind": "service-router", "Name": "store", "Routes": [route]})
        await eventually("its new routes", ask, until="book-1".__eq__)
        await mesh.lab.catalog.remove_entry("service-router", "store")
        await eventually("store itself", ask, until="store-1".__eq__)
    assert len(sockets) == 1, "a connection that stands is routed by what holds when a request comes"


async def test_requested_routes_are_kept_current(mesh: OnDemand) -> None:
    assert (await mesh.ask("shop")).service == "shop-1"
    redirect = {"Kind": "service-resolver", "Name": "shop", "Redirect": {"Service": "store"}}
    await mesh.lab.catalog.entry(redirect)
    await until(lambda: mesh.ask("shop"), "the redirect", lambda found: found.service == "store-1")
    await mesh.lab.catalog.remove_entry("service-resolver", "shop")
    await until(lambda: mesh.ask("shop"), "shop itself", lambda found: found.service == "shop-1")

    async def refused() -> bool:
        try:
            await mesh.ask("shop")
        except ConnectionError:
            return True
        return False

    await mesh.lab.catalog.intention("web", "shop", "deny")
    await eventually("a refusal", refused)
    assert f"vip:{ADDRESSES['shop']}" not in await mesh.routes(), "taken back"
    await mesh.lab.catalog.intention("web", "shop", None)
    await until(lambda: mesh.ask("shop"), "shop again", lambda found: found.service == "shop-1")


async def test_the_members_of_an_aggregate_are_sent_with_it(mesh: OnDemand) -> None:
    primary = (await mesh.lab.catalog.virtual_ips("primary"))[0]
    assert (await mesh.dial(primary))[0] == "spare-1", "they are there before it"
    assert f"failover-target~1~vip:{primary}" in await mesh.clusters()


async def test_an_unassigned_address_is_remembered_until_it_is_assigned(mesh: OnDemand) -> None:
    assert (await mesh.dial(ADDRESSES["later"]))[0] is None
    await mesh.lab.served(await mesh.lab.member("later", virtual_ip=ADDRESSES["later"]))
    await answers(mesh.web.host, ADDRESSES["later"], 80, "later-1")


async def test_a_denied_cluster_is_removed_and_sent_again_when_allowed(mesh: OnDemand) -> None:
    await answers(mesh.web.host, ADDRESSES["api"], 80, "api-1")
    await mesh.lab.catalog.intention("web", "api", "deny")
    await answers(mesh.web.host, ADDRESSES["api"], 80, None)
    assert f"vip:{ADDRESSES['api']}" not in await mesh.clusters()
    await mesh.lab.catalog.intention("web", "api", None)
    await answers(mesh.web.host, ADDRESSES["api"], 80, "api-1")


async def test_without_the_control_plane_dialed_clusters_work_and_others_fail_soon(mesh: OnDemand) -> None:
    await answers(mesh.web.host, ADDRESSES["api"], 80, "api-1")
    await mesh.lab.stop_gossamer()
    try:
        assert (await mesh.dial(ADDRESSES["api"]))[0] == "api-1"
        answered, seconds = await mesh.dial(ADDRESSES["spare"])
        assert answered is None
        assert seconds < 5
        assert (await mesh.ask("shop")).service == "shop-1"
        for service, most in (("stock", 5), ("book", 18)):
            began = time.monotonic()
            assert (await mesh.ask(service)).status >= 400
            assert time.monotonic() - began < most, "the first request to a service with routes waits longest"
    finally:
        await mesh.lab.start_gossamer()
    await answers(mesh.web.host, ADDRESSES["spare"], 80, "spare-1")
    await until(lambda: mesh.ask("stock"), "stock", lambda found: found.service == "stock-1")
    await until(lambda: mesh.ask("book"), "book", lambda found: found.service == "book-1")
    await mesh.lab.served(mesh.web)
    found = await mesh.clusters()
    assert {f"vip:{ADDRESSES[name]}" for name in ("api", "spare")} <= found, "what it has is remembered"


async def test_a_registration_overrides_the_server(mesh: OnDemand) -> None:
    eager = await mesh.lab.member("eager", config={"gossamer_clusters": "eager"})
    await mesh.lab.served(eager)
    sent = (await mesh.lab.sidecars())[eager.sidecar_id]["resources"]["clusters"]["sent"]
    assert f"vip:{ADDRESSES['api']}" in sent


async def test_the_switch_to_on_demand_drops_no_connection_and_removes_unrequested_clusters() -> None:
    async with (
        Lab(mesh_file=True, default_policy="allow", serve_arguments=("--clusters", "auto")) as lab,
        AsyncExitStack() as stack,
    ):
        await lab.catalog.entry({"Kind": "service-defaults", "Name": "shop", "Protocol": "http"})
        web, api, shop = await asyncio.gather(
            lab.member("web"),
            lab.member("api", virtual_ip=ADDRESSES["api"]),
            lab.member("shop", virtual_ip=ADDRESSES["shop"], speaks="http"),
        )
        await lab.served(web, api, shop)
        await answers(web.host, ADDRESSES["api"], 80, "api-1")
        catalog = lab.catalog
        assert isinstance(catalog, MeshFile)
        dialing = web.host.socket()
        await asyncio.get_running_loop().sock_connect(dialing, (ADDRESSES["api"], 80))
        reader, writer = await asyncio.open_connection(sock=dialing)
        try:
            assert await reader.readline() == b"api-1\n"
            held = await stack.enter_async_context(Held(web.host, f"http://{ADDRESSES['shop']}/"))
            await eventually("shop", held.still_open)

            async def clusters() -> set[str]:
                resources: dict[str, Any] = (await lab.sidecars())[web.sidecar_id]["resources"]["clusters"]
                return {name for name in resources["acknowledged"] if "vip:" in name}

            assert f"vip:{ADDRESSES['api']}" in await clusters()
            fill(catalog, LARGE + 1)
            await eventually("the change-over", clusters, until=lambda found: not found)
            writer.write(b"still there?\n")
            assert await asyncio.wait_for(reader.readline(), 10), "the connection from before goes on"
            assert await held.still_open(), "and so does one with requests, which need what was taken away"
            await answers(web.host, ADDRESSES["api"], 80, "api-1")
            fill(catalog, 0)
            both = {f"vip:{ADDRESSES['api']}", f"http:vip:{ADDRESSES['shop']}"}
            await eventually("the way back", clusters, until=both.__eq__)
            writer.write(b"and now?\n")
            assert await asyncio.wait_for(reader.readline(), 10)
            assert await held.still_open()
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


def fill(catalog: MeshFile, count: int) -> None:
    """Have so many more services, with nobody behind them."""
    for name in [name for name in catalog.services if name.startswith("more-")]:
        del catalog.services[name]
    for number in range(count):
        catalog.services[f"more-{number}"] = {"id": f"more-{number}", "name": f"more-{number}", "port": 80}
    catalog.write()

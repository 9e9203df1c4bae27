"""HTTP upstreams through a discovery chain that Consul compiled: routes, splits, subsets, redirects, failover."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from tests.integration.entries import Entries
from tests.integration.requests import Answer, request, until
from xds.lab.application import Held, who_answers
from xds.lab.mesh import Lab, Member, get
from xds.lab.processes import eventually

PORT = 80


@dataclass
class Routed:
    """web calls api, of which there are two versions, and other; everything speaks HTTP."""

    lab: Lab
    web: Member
    api: dict[str, Member]
    other: Member

    async def ask(self, path: str = "/", to: str = "api", method: str = "GET", **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await request(self.web.host, f"http://{ADDRESSES[to]}:{PORT}{path}", method, named)


ADDRESSES = {"api": "240.0.2.1", "other": "240.0.2.2", "web": "240.0.2.3"}


@pytest.fixture(scope="module")
async def routed() -> AsyncIterator[Routed]:
    async with Lab() as lab:
        await lab.catalog.entry({"Kind": "proxy-defaults", "Name": "global", "Config": {"protocol": "http"}})
        members = await asyncio.gather(
            lab.member("web", virtual_ip=ADDRESSES["web"], speaks="http"),
            lab.member("api", virtual_ip=ADDRESSES["api"], instance="1", speaks="http", meta={"version": "v1"}),
            lab.member("api", virtual_ip=ADDRESSES["api"], instance="2", speaks="http", meta={"version": "v2"}),
            lab.member("other", virtual_ip=ADDRESSES["other"], speaks="http"),
        )
        await lab.served(*members)
        yield Routed(lab, members[0], {"1": members[1], "2": members[2]}, members[3])


SUBSETS = {
    "Kind": "service-resolver",
    "Name": "api",
    "Subsets": {
        "v1": {"Filter": "Service.Meta.version == v1"},
        "v2": {"Filter": 'Service.Meta["version"] == "v2"'},
    },
}


async def test_requests_reach_the_application_with_the_identity_of_the_caller(routed: Routed) -> None:
    answer = await until(routed.ask, "api", lambda found: found.service in ("api-1", "api-2"))
    assert "spiffe://" in answer.seen["x-forwarded-client-cert"]
    assert answer.seen["x-forwarded-client-cert"].endswith("/svc/web")
    assert "x-gossamer-dialed" not in answer.seen


async def test_a_header_with_the_dialed_address_is_ignored(routed: Routed) -> None:
    answer = await routed.ask(x_gossamer_dialed=f"vip:{ADDRESSES['other']}")
    assert answer.service in ("api-1", "api-2")
    assert answer.seen.get("x-gossamer-dialed") is None


async def test_the_sidecars_speak_http2_among_themselves_where_both_can(routed: Routed) -> None:
    """The application and its client speak HTTP/1.1."""
    for _ in range(4):
        await routed.ask()
    counted = [
        await routed.lab.stat(api, r"http\.public_listener\.downstream_cx_http2_total") for api in routed.api.values()
    ]
    assert all(counted)


async def test_a_websocket_is_carried(routed: Routed) -> None:
    host = routed.web.host
    connector = aiohttp.TCPConnector(socket_factory=lambda info: host.socket(info[0], info[1]))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.ws_connect(f"http://{ADDRESSES['api']}:{PORT}/socket") as socket,
    ):
        assert (await socket.receive_str(timeout=10)).startswith("api-")
        await socket.send_str("hello")
        assert await socket.receive_str(timeout=10) == "hello"


async def test_an_unassigned_address_is_answered_by_the_sidecar_or_refused(routed: Routed) -> None:
    assert await who_answers(routed.web.host, "240.0.2.99", PORT, within_s=5, say="GET / HTTP/1.0\r\n") is None


def to_subset(subset: str, **match: Any) -> dict[str, Any]:
    """Return a route of some requests to a subset of the router's own service."""
    return {"Match": {"HTTP": match}, "Destination": {"ServiceSubset": subset}}


async def test_a_router_matches_path_header_query_and_method_and_modifies_requests(routed: Routed) -> None:
    router = {
        "Kind": "service-router",
        "Name": "api",
        "Routes": [
            {
                "Match": {"HTTP": {"PathPrefix": "/other/"}},
                "Destination": {
                    "Service": "other",
                    "PrefixRewrite": "/",
                },
            },
            {
                "Match": {"HTTP": {"Header": [{"Name": "x-version", "Exact": "2"}]}},
                "Destination": {"ServiceSubset": "v2"},
            },
            {
                "Match": {"HTTP": {"QueryParam": [{"Name": "v", "Regex": "[1]"}]}},
                "Destination": {"ServiceSubset": "v1"},
            },
            {"Match": {"HTTP": {"PathExact": "/slow"}}, "Destination": {"RequestTimeout": "500ms"}},
            {
                "Match": {"HTTP": {"PathRegex": "/retried.*"}},
                "Destination": {"ServiceSubset": "v1", "NumRetries": 3, "RetryOnStatusCodes": [503]},
            },
            to_subset("v2", Methods=["PUT"]),
        ],
    }
    async with Entries(routed.lab, SUBSETS, router):
        answer = await until(lambda: routed.ask("/other/x?y=1"), "other", lambda found: found.service == "other-1")
        assert answer.body["path"] == "/x?y=1"
        for _ in range(4):
            assert (await routed.ask(x_version="2")).service == "api-2"
            assert (await routed.ask("/?v=1")).service == "api-1"
            assert (await routed.ask(method="PUT")).service == "api-2"
        assert (await routed.ask("/slow?wait=3")).status == 504
        retries = await _sum(routed, "upstream_rq_retry$")
        assert (await routed.ask("/retried?status=503")).status == 503
        assert await _sum(routed, "upstream_rq_retry$") == retries + 3
        assert {(await routed.ask()).service for _ in range(8)} == {"api-1", "api-2"}
    await until(lambda: routed.ask("/other/x"), "api itself", lambda found: found.body.get("path") == "/other/x")


async def _sum(routed: Routed, name: str) -> int:
    _, text = await get(routed.web.host, 19000, f"/stats?filter={name}")
    return sum(int(line.rpartition(":")[2]) for line in str(text).splitlines())


async def test_a_splitter_divides_by_weight(routed: Routed) -> None:
    splits = [{"Weight": 90, "ServiceSubset": "v1"}, {"Weight": 10, "Service": "other"}]
    async with Entries(routed.lab, SUBSETS, {"Kind": "service-splitter", "Name": "api", "Splits": splits}):
        await until(routed.ask, "a split", lambda found: found.service == "other-1", again=False)
        answers = await asyncio.gather(*(routed.ask() for _ in range(200)))
        found = Counter(answer.service for answer in answers)
        assert set(found) == {"api-1", "other-1"}
        assert 130 < found["api-1"] < 199
    # The split sends nothing to the second version, so its answer proves that the split is not in force any more.
    await until(routed.ask, "no split", lambda found: found.service == "api-2", again=False)


async def test_a_redirect_leads_to_another_service_with_that_services_identity(routed: Routed) -> None:
    redirect = {"Kind": "service-resolver", "Name": "api", "Redirect": {"Service": "other"}}
    async with Entries(routed.lab, redirect):
        await until(routed.ask, "other", lambda found: found.service == "other-1")
    await until(routed.ask, "api", lambda found: found.service != "other-1")


async def test_failover_uses_the_next_target_while_none_is_healthy_and_returns(routed: Routed) -> None:
    resolver = {
        "Kind": "service-resolver",
        "Name": "api",
        "DefaultSubset": "v1",
        "Subsets": SUBSETS["Subsets"],
        "Failover": {"*": {"Service": "other"}},
    }
    first = routed.api["1"]

    async def health(status: str) -> None:
        await routed.lab.catalog.check(first.node, first.host.address, first.sidecar_id, status)

    async with Entries(routed.lab, resolver):
        await health("critical")
        await until(routed.ask, "failover", lambda found: found.service == "other-1")
        await health("passing")
        await until(routed.ask, "api again", lambda found: found.service == "api-1")


async def test_mistakes_of_an_entry_are_reported_for_its_sidecars_and_change_nothing_else(routed: Routed) -> None:
    right = {"Kind": "proxy-defaults", "Name": "global", "Config": {"protocol": "http"}}
    config = {"protocol": "http", "local_connect_timeout_ms": "soon"}

    async def told() -> str:
        return json.dumps([sidecar["set_aside"] for sidecar in (await routed.lab.sidecars()).values()])

    assert "proxy-defaults/global" not in await told()
    await routed.lab.catalog.entry({**right, "Config": config})
    field = "proxy-defaults/global: Config.local_connect_timeout_ms"
    found = await eventually("all to be told", told, until=lambda found: found.count(field) == len(routed.lab.members))
    assert "soon" in found
    assert (await routed.ask()).status == 200
    await routed.lab.catalog.entry(right)
    await eventually("it to be well again", told, until=lambda found: "proxy-defaults/global" not in found)


async def test_a_change_of_routes_leaves_the_listener_and_open_connections_alone(routed: Routed) -> None:
    async def sent() -> Any:
        return (await routed.lab.sidecars())[routed.web.sidecar_id]["resources"]["listeners"]["sent"]

    listeners = await sent()
    async with Held(routed.web.host, f"http://{ADDRESSES['api']}:{PORT}/") as held:
        await held.ask()
        async with Entries(routed.lab, {"Kind": "service-resolver", "Name": "api", "Redirect": {"Service": "other"}}):
            await until(routed.ask, "other", lambda found: found.service == "other-1")
            assert (await held.ask())["service"] == "other-1", "the same connection follows the new route"
    assert await sent() == listeners

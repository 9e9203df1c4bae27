"""The pooled client against a real HTTP server that plays Consul's part."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from xds.sources.consul.client import Consul, ConsulError
from xds.sources.consul.settings import ConsulSettings


async def _answer(request: web.Request) -> web.Response:
    status = int(request.query.get("status", "200"))
    headers = {"X-Consul-Index": "0", "X-Consul-Results-Filtered-By-ACLs": "true", "X-Token": "-"}
    body = {"query": request.query_string, "token": request.headers.get("X-Consul-Token")}
    if status != 200:
        return web.Response(status=status, text="rpc error: No cluster leader", headers={"X-Consul-Index": "1"})
    return web.json_response(body, headers=headers)


async def _broken(_request: web.Request) -> web.Response:
    return web.Response(text="<html>")


async def _about(request: web.Request) -> web.Response:
    return web.json_response(["dc1", str(request.headers.get("X-Consul-Token"))])


@pytest.fixture
async def consul() -> AsyncIterator[Consul]:
    app = web.Application()
    app.router.add_get("/v1/thing", _answer)
    app.router.add_get("/v1/broken", _broken)
    app.router.add_get("/v1/agent/self", _about)
    async with TestServer(app) as server:
        client = Consul(ConsulSettings(address=str(server.make_url("/")).rstrip("/"), token="own", datacenter="dc9"))
        yield client
        await client.close()


async def test_a_blocking_read_says_what_it_waits_for(consul: Consul) -> None:
    reply = await consul.read("/v1/thing", index=7, wait_s=45)
    assert reply.data == {"query": "dc=dc9&index=7&wait=45s", "token": "own"}
    assert (reply.index, reply.filtered) == (1, True)


async def test_a_presented_token_stands_in_for_our_own_even_when_it_is_empty(consul: Consul) -> None:
    assert (await consul.read("/v1/thing", token="theirs")).data["token"] == "theirs"
    assert (await consul.read("/v1/thing", token="")).data["token"] is None


async def test_a_token_that_is_no_header_is_an_error(consul: Consul) -> None:
    with pytest.raises(ConsulError, match="can't reach Consul"):
        await consul.read("/v1/thing", token="one\r\ntwo: 3")


async def test_the_librarys_own_endpoint_works_over_the_pool(consul: Consul) -> None:
    assert await consul.awaited(consul.agent.self()) == ["dc1", "own"]


@pytest.mark.parametrize("status", [301, 400, 403, 404, 429, 500])
async def test_any_other_status_is_an_error_with_consuls_words(consul: Consul, status: int) -> None:
    with pytest.raises(ConsulError, match="No cluster leader") as caught:
        await consul.read("/v1/thing", params=[("status", status)])
    assert caught.value.status == status
    assert caught.value.forbidden is (status == 403)


async def test_a_body_that_is_no_json_is_an_error(consul: Consul) -> None:
    with pytest.raises(ConsulError, match="not JSON"):
        await consul.read("/v1/broken")


async def test_a_consul_that_is_away_is_an_error_that_names_it() -> None:
    client = Consul(ConsulSettings(address="http://127.0.0.1:1"))
    with pytest.raises(ConsulError, match=r"can't reach Consul at http://127.0.0.1:1"):
        await client.read("/v1/thing")
    await client.close()

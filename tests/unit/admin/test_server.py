"""The admin server answers only who asks for it by its own name."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.unit.facts import FREE_PORT
from xds.admin.server import AdminServer
from xds.workers.serving import Serving
from xds.workers.xds_settings import XdsSettings


@pytest.fixture
async def port() -> AsyncIterator[int]:
    server = AdminServer(Serving(XdsSettings(), lambda _demand: None), dict)
    yield await server.start(FREE_PORT)
    await server.stop()


@pytest.mark.parametrize("path", ["/ready", "/metrics", "/v1/sidecars", "/else"])
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:18001", "127.0.0.1.evil.example", "localhost.evil", "", "a:b:c"]
)
async def test_a_foreign_host_name_that_resolves_to_this_server_is_refused(port: int, path: str, host: str) -> None:
    async with (
        aiohttp.ClientSession() as client,
        client.get(f"http://127.0.0.1:{port}{path}", headers={"Host": host}) as answer,
    ):
        assert answer.status in (400, 421)


@pytest.mark.parametrize(
    "host", ["127.0.0.1:{port}", "127.0.0.1", "localhost:{port}", "LOCALHOST", "[::1]:{port}", socket.gethostname()]
)
async def test_an_address_and_its_own_names_are_answered(port: int, host: str) -> None:
    async with (
        aiohttp.ClientSession() as client,
        client.get(f"http://127.0.0.1:{port}/metrics", headers={"Host": host.format(port=port)}) as answer,
    ):
        assert answer.status == 200

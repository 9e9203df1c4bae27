"""Tests of the file of the mesh's authorities, kept by a companion. The server plays the part of a Consul agent."""

from __future__ import annotations

import asyncio
import base64
import os
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.certificates import TestAuthority
from xds.companion.roots import RootsFile
from xds.lab.processes import eventually
from xds.sources.authority import new_authority
from xds.sources.consul.settings import AGENT_ROOTS_PATH, ConsulSettings

DOMAIN = "11111111-2222.consul"
FIRST, SECOND = (new_authority(datetime.now(UTC), DOMAIN).certificate for _ in range(2))


def answer(*active_first: str, domain: str = DOMAIN) -> dict[str, Any]:
    roots = [
        {"ID": str(number), "Active": not number, "RootCert": each.strip()} for number, each in enumerate(active_first)
    ]
    return {"TrustDomain": domain, "Roots": roots[::-1]}


class Agent:
    """An agent that answers with ``says``."""

    def __init__(self) -> None:
        self.says: Any = answer(FIRST)
        self.status = 200
        self.asked: list[web.Request] = []

    async def handle(self, request: web.Request) -> web.Response:
        self.asked.append(request)
        if isinstance(self.says, str):
            return web.Response(status=self.status, text=self.says)
        return web.json_response(self.says, status=self.status)


@asynccontextmanager
async def agent(*, unix: Path | None = None, tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[Agent, str]]:
    """Start an agent, at a Unix socket or a port of loopback, and return its address."""
    made = Agent()
    app = web.Application()
    app.router.add_get(AGENT_ROOTS_PATH, made.handle)
    app.router.add_get("/prefix" + AGENT_ROOTS_PATH, made.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        if unix is not None:
            await web.UnixSite(runner, str(unix)).start()
            yield made, f"unix://{unix}"
        else:
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
            yield made, f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def roots_file(folder: Path, settings: ConsulSettings) -> tuple[Path, RootsFile]:
    file = folder / "web.roots.pem"
    file.write_text(FIRST)
    return file, RootsFile(file, DOMAIN, settings)


async def test_a_rotation_is_followed(tmp_path: Path) -> None:
    async with agent() as (consul, url):
        file, roots = roots_file(tmp_path, ConsulSettings(address=url, datacenter="dc/1"))
        following = asyncio.create_task(roots.follow(interval=0.01))
        consul.says = answer(SECOND, FIRST)

        async def written() -> str:
            return file.read_text()

        await eventually("the file to be replaced", written, until=lambda found: found == SECOND + FIRST)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        assert consul.asked[0].query["dc"] == "dc/1"
    assert file.stat().st_mode & 0o777 == 0o644
    assert [each.name for each in os.scandir(tmp_path)] == [file.name]


@pytest.mark.parametrize(
    ("says", "status", "words"),
    [
        ([], 200, "its answer has no authorities"),
        ({}, 200, "its answer has no authorities"),
        (None, 200, "its answer has no authorities"),
        ({"TrustDomain": DOMAIN, "Roots": []}, 200, "its answer has no authorities"),
        ("<html>", 200, "JSONDecodeError"),
        ("no leader", 500, "it answers 500"),
        (answer(SECOND, domain="other.consul"), 200, "trust domain is 'other.consul' now"),
        ({"TrustDomain": DOMAIN, "Roots": [{"RootCert": FIRST}]}, 200, "its answer makes no sense"),
        ({"TrustDomain": DOMAIN, "Roots": "many"}, 200, "its answer makes no sense"),
        (answer("garbage"), 200, "ValueError"),
        (answer(FIRST, ""), 200, "ValueError"),
    ],
)
async def test_a_malformed_answer_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, says: Any, status: int, words: str
) -> None:
    async with agent() as (consul, url):
        file, roots = roots_file(tmp_path, ConsulSettings(address=url))
        consul.says, consul.status = says, status
        for _ in range(2):
            await asyncio.to_thread(roots.update)
    assert file.read_text() == FIRST
    (line,) = caplog.messages
    assert words in line
    assert "those in" in line


async def test_an_unreachable_agent_is_reported_without_its_password(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, roots = roots_file(tmp_path, ConsulSettings(address="http://user:secret@127.0.0.1:1"))
    await asyncio.to_thread(roots.update)
    assert file.read_text() == FIRST
    assert "can't read the mesh's certificate authorities from Consul at http://127.0.0.1:1" in caplog.text
    assert "secret" not in caplog.text


async def test_credentials_and_a_path_of_the_address_are_sent(tmp_path: Path) -> None:
    async with agent() as (consul, url):
        address = url.replace("http://", "http://user:p%40ss@") + "/prefix"
        file, roots = roots_file(tmp_path, ConsulSettings(address=address))
        consul.says = answer(SECOND)
        await asyncio.to_thread(roots.update)
        assert file.read_text() == SECOND
        assert consul.asked[0].path == "/prefix" + AGENT_ROOTS_PATH
        assert consul.asked[0].headers["Authorization"] == f"Basic {base64.b64encode(b'user:p@ss').decode()}"


async def test_a_unix_socket_is_asked(tmp_path: Path) -> None:
    async with agent(unix=tmp_path / "consul.sock") as (consul, address):
        consul.says = answer(SECOND)
        file, roots = roots_file(tmp_path, ConsulSettings(address=address))
        await asyncio.to_thread(roots.update)
    assert file.read_text() == SECOND


@pytest.mark.parametrize("trusted", [True, False])
async def test_an_agent_with_tls_is_verified(tmp_path: Path, trusted: bool) -> None:
    authority, other = TestAuthority(tmp_path), TestAuthority(tmp_path, "other")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*authority.issue("server", "server.dc1.consul"))
    async with agent(tls=context) as (consul, address):
        consul.says = answer(SECOND)
        settings = ConsulSettings(
            address=address,
            ca_file=str((authority if trusted else other).file),
            tls_server_name="server.dc1.consul",
        )
        file, roots = roots_file(tmp_path, settings)
        await asyncio.to_thread(roots.update)
    assert file.read_text() == (SECOND if trusted else FIRST)


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(b"\xff")], ids=["removed", "damaged"])
async def test_a_file_that_is_gone_or_damaged_is_written_again(tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    async with agent() as (_, url):
        file, roots = roots_file(tmp_path, ConsulSettings(address=url))
        damage(file)
        await asyncio.to_thread(roots.update)
    assert file.read_text() == FIRST

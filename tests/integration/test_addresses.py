"""Addresses: ports that share one, IPv6, and names that the sidecar itself answers for."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import struct
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.helpers import answers, descendants
from tests.integration.requests import request, until
from xds.lab.application import who_answers
from xds.lab.mesh import Lab, Member
from xds.lab.network import Host
from xds.lab.processes import eventually, run_to_end

SHARED = "10.96.0.10"
SIX = "fd00:9::2"
FOUR = "240.0.9.2"
DNS_PORT = 8653
RESOLV_CONF = Path("/etc/resolv.conf")


@dataclass
class Addressed:
    """web may call main and admin, which share an address, six, which is dialed over IPv6, and page, which is HTTP."""

    lab: Lab
    web: Member
    six: Member


async def give_ipv6(host: Host) -> str:
    """Give a host an IPv6 address and a default route."""
    address = f"fd77::{host.address.rpartition('.')[2]}"
    await run_to_end(*host.command("ip", "address", "add", f"{address}/64", "dev", "eth0", "nodad"))
    await run_to_end(*host.command("ip", "-6", "route", "add", "default", "dev", "eth0"))
    return address


@pytest.fixture(scope="module")
async def addressed() -> AsyncIterator[Addressed]:
    async with Lab(mesh_file=True) as lab:
        await lab.catalog.entry({"Kind": "service-defaults", "Name": "page", "Protocol": "http"})
        for name in ("main", "admin", "six", "page"):
            await lab.catalog.intention("web", name, "allow")
        web, main, admin, page = await asyncio.gather(
            lab.member("web", sidecar=("--dns-port", str(DNS_PORT)), redirect=("--dns-port", str(DNS_PORT))),
            lab.member("main", tagged={"virtual": (SHARED, 80)}),
            lab.member("admin", tagged={"virtual": (SHARED, 81)}),
            lab.member("page", tagged={"virtual": (SHARED, 82)}, speaks="http"),
        )
        six = await lab.member("six", tagged={"virtual": (SIX, 80), "consul-virtual": (FOUR, 0)}, start=False)
        six.registered["Address"] = await give_ipv6(six.host)
        await give_ipv6(web.host)
        await lab.register(six)
        await lab.start(six)
        await lab.served(web, main, admin, page, six)
        yield Addressed(lab, web, six)


async def test_the_port_decides_where_several_services_share_an_address(addressed: Addressed) -> None:
    await answers(addressed.web.host, SHARED, 80, "main-1")
    await answers(addressed.web.host, SHARED, 81, "admin-1")
    found = await until(
        lambda: request(addressed.web.host, f"http://{SHARED}:82/"), "page", lambda found: found.service == "page-1"
    )
    assert found.status == 200
    await answers(addressed.web.host, SHARED, 83, None)


async def test_ipv6_is_dialed_redirected_and_carried_to_a_sidecar_that_has_nothing_else(addressed: Addressed) -> None:
    async def six() -> str | None:
        return await dial6(addressed.web.host, SIX)

    await eventually("six over IPv6", six, until=lambda found: found == "six-1")
    await answers(addressed.web.host, FOUR, 80, "six-1")
    assert addressed.six.registered["Address"].startswith("fd77::")
    assert await dial6(addressed.web.host, "fd00:9::99") is None


async def dial6(host: Host, address: str) -> str | None:
    """Return who answers over IPv6."""
    made = host.socket(socket.AF_INET6)
    try:
        async with asyncio.timeout(5):
            await asyncio.get_running_loop().sock_connect(made, (address, 80))
            return (await asyncio.get_running_loop().sock_recv(made, 100)).decode().strip() or None
    except (OSError, TimeoutError):
        return None
    finally:
        made.close()


def _question(name: str, kind: int) -> bytes:
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    return struct.pack("!6H", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", kind, 1)


async def resolve(host: Host, name: str, server: str, kind: int = 1) -> str | None:
    """Return the address that a DNS server returns for a name; ``kind`` 28 for IPv6."""
    made = host.socket(socket.AF_INET, socket.SOCK_DGRAM)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(5):
            await loop.sock_connect(made, (server, 53))
            await loop.sock_sendall(made, _question(name, kind))
            answer = await loop.sock_recv(made, 512)
    except (OSError, TimeoutError):
        return None
    finally:
        made.close()
    if struct.unpack("!H", answer[6:8])[0] == 0:
        return None
    size = 4 if kind == 1 else 16
    return socket.inet_ntop(socket.AF_INET if kind == 1 else socket.AF_INET6, answer[-size:])


DIAL_BY_NAME = """
import socket, sys
found = socket.getaddrinfo(sys.argv[1], 80, int(sys.argv[2]), socket.SOCK_STREAM)
family, kind, protocol, _, address = found[0]
with socket.socket(family, kind, protocol) as made:
    made.settimeout(10)
    made.connect(address)
    print(made.recv(100).decode().strip())
"""


async def dial_by_name(host: Host, name: str, family: int) -> str:
    """Return who answers at the first address that the C library gives for a name."""
    return (await run_to_end(*host.command(sys.executable, "-c", DIAL_BY_NAME, name, str(family)))).strip()


async def test_the_sidecar_answers_queries_for_virtual_names_to_every_server(addressed: Addressed) -> None:
    host = addressed.web.host
    for name in ("six.virtual.consul", "six.virtual.default.ns.default.ap.dc1.dc.consul"):
        assert await resolve(host, name, "192.0.2.53") == FOUR
        assert await resolve(host, name, "192.0.2.53", 28) == SIX
    for name in ("main.virtual.consul", "MAIN.virtual.consul", "MAIN.VIRTUAL.CONSUL", "mAin.Virtual.coNsul"):
        assert await resolve(host, name, "192.0.2.53") == SHARED
        assert await resolve(host, name, "192.0.2.53", 28) == f"::ffff:{SHARED}"
    # As a program does that asks for both families and takes the first address that it can connect to.
    for family in (socket.AF_UNSPEC, socket.AF_INET, socket.AF_INET6):
        assert await dial_by_name(host, "main.virtual.consul", family) == "main-1"
        assert await dial_by_name(host, "Main.Virtual.Consul", family) == "main-1"
    await addressed.lab.catalog.intention("web", "main", "deny")

    async def main() -> str | None:
        return await resolve(host, "main.virtual.consul", "192.0.2.53")

    await eventually("main to have no address any more", main, until=lambda found: found is None)
    await addressed.lab.catalog.intention("web", "main", "allow")
    await eventually("main to have one again", main, until=lambda found: found == SHARED)


async def test_a_companion_that_ends_is_started_again_and_ends_with_its_envoy(addressed: Addressed) -> None:
    host, web = addressed.web.host, addressed.web

    async def main() -> str | None:
        return await resolve(host, "Main.virtual.consul", "192.0.2.53")

    waiting, working = descendants(web.processes["sidecar"].pid)
    os.kill(working, signal.SIGKILL)
    await eventually("an answer of the new companion", main, until=lambda found: found == SHARED)
    (again,) = descendants(waiting)
    await web.processes["sidecar"].stop(signal.SIGKILL)

    async def gone() -> bool:
        return not await asyncio.to_thread(lambda: any(Path(f"/proc/{each}").exists() for each in (waiting, again)))

    await eventually("the companion to end", gone)
    await addressed.lab.start_sidecar(web)
    await addressed.lab.served(web)
    await eventually("an answer of the next companion", main, until=lambda found: found == SHARED)


FORWARDER = """
import socket, struct, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((sys.argv[1], 53))
while True:
    question, client = server.recvfrom(512)
    end = question.index(b"\\0", 12) + 5
    answer = question[:2] + struct.pack("!5H", 0x8180, 1, 1, 0, 0) + question[12:end]
    answer += b"\\xc0\\x0c" + struct.pack("!2HIH", 1, 1, 60, 4) + bytes([198, 51, 100, 7])
    server.sendto(answer, client)
"""


async def test_the_rest_is_forwarded_to_the_hosts_resolver(addressed: Addressed) -> None:
    """Envoy asks whom /etc/resolv.conf names, or 127.0.0.1; that address is the host's own here."""
    said = await asyncio.to_thread(RESOLV_CONF.read_text)
    named = re.findall(r"(?m)^nameserver\s+(\d+\.\d+\.\d+\.\d+)", said)
    server, host = named[0] if named else "127.0.0.1", addressed.web.host
    if not server.startswith("127."):
        await run_to_end(*host.command("ip", "address", "add", f"{server}/32", "dev", "lo"))
    await addressed.lab.run("dns", host, sys.executable, "-c", FORWARDER, server)

    async def forwarded() -> str | None:
        return await resolve(host, "elsewhere.example", "192.0.2.53")

    await eventually("the forwarder's answer", forwarded, until=lambda found: found == "198.51.100.7")
    assert await who_answers(host, SHARED, 80) == "main-1"

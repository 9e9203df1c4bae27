"""Tests of DNS queries in any letter case. The server that is asked knows small letters only, as Envoy does."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import dns.asyncquery
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from xds.companion import dns as companion
from xds.companion import sockets
from xds.companion.tasks import Tasks


class Small(asyncio.DatagramProtocol):
    """A server that compares letter by letter."""

    def __init__(self) -> None:
        self.silent = False

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self.transport = transport

    def datagram_received(self, data: bytes, client: Any) -> None:
        query = dns.message.from_wire(data)
        response = dns.message.make_response(query)
        name = query.question[0].name
        if str(name) == "api.virtual.consul.":
            response.answer.append(dns.rrset.from_text(name, 30, "IN", "A", "240.0.0.1"))
        else:
            response.set_rcode(dns.rcode.NXDOMAIN)
        if not self.silent:
            self.transport.sendto(response.to_wire(), client)


@asynccontextmanager
async def both() -> AsyncIterator[tuple[int, companion.DnsServer, Small]]:
    """Start the companion's servers, and return their port."""
    loop = asyncio.get_running_loop()
    upstream, small = await loop.create_datagram_endpoint(Small, ("127.0.0.1", 0))
    port = sockets.free_port(dual_stack=False)
    (listening,) = sockets.bind(port, dual_stack=False)
    _, server = await loop.create_datagram_endpoint(
        lambda: companion.DnsServer(upstream.get_extra_info("sockname")[1]), sock=listening
    )
    try:
        yield port, server, small
    finally:
        await server.close()
        upstream.close()


async def ask(port: int, name: str) -> dns.message.Message:
    return await dns.asyncquery.udp(dns.message.make_query(name, "A", use_edns=0), "127.0.0.1", 20, port)


@pytest.mark.parametrize("name", ["api.virtual.consul", "Api.virtual.consul", "aPI.Virtual.conSUL"])
async def test_a_name_is_found_in_any_case_and_answered_as_it_was_asked(name: str) -> None:
    async with both() as (port, _, _):
        response = await ask(port, name)
    assert response.rcode() == dns.rcode.NOERROR
    assert [str(record.name) for record in response.answer] == [f"{name}."]
    assert str(response.question[0].name) == f"{name}."
    assert response.answer[0][0].to_text() == "240.0.0.1"


async def test_an_unknown_name_is_unknown() -> None:
    async with both() as (port, _, _):
        assert (await ask(port, "Other.virtual.consul")).rcode() == dns.rcode.NXDOMAIN


async def test_an_invalid_query_has_no_answer() -> None:
    async with both() as (port, _, _):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            for garbage in (b"", b"x", b"\0" * 12, b"\xff" * 600, b"\0" * 11 + b"\xc0\x0c"):
                client.sendto(garbage, ("127.0.0.1", port))
        assert (await ask(port, "API.virtual.consul")).rcode() == dns.rcode.NOERROR


async def test_unanswered_queries_are_bounded_and_end_with_the_server() -> None:
    async with both() as (_, server, small):
        small.silent = True
        query = dns.message.make_query("Api.virtual.consul", "A").to_wire()
        for _ in range(companion.PENDING + 10):
            server.datagram_received(query, ("127.0.0.1", 9))
        assert len(server.pending) == companion.PENDING
        await server.close()
        assert not server.pending


def test_a_port_in_use_is_an_error() -> None:
    port = sockets.free_port(dual_stack=False)
    first = sockets.bind(port, dual_stack=False)
    with pytest.raises(OSError, match="in use") as error:
        sockets.bind(port, dual_stack=False)
    assert error.value.errno == errno.EADDRINUSE
    for each in first:
        each.close()


def test_tasks_are_equal_after_their_encoding() -> None:
    tasks = Tasks(1, (3, 4), 5)
    assert Tasks.from_file(tasks.as_file()) == tasks
    assert tasks
    assert not Tasks(1)

"""Tests of TLS with the mesh's certificate: it is demanded, the port opens with it, and another one takes its place."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from tests.unit.facts import FREE_PORT
from xds.ads.listening import ListenError
from xds.ads.tls import MeshTls
from xds.lab.processes import eventually
from xds.mesh.addresses import HostPort
from xds.mesh.facts import CONTROL_PLANE_CERTIFICATE, CONTROL_PLANE_LEAF, CONTROL_PLANE_SERVICE, Leaf, LeafRefused
from xds.mesh.mesh import Demand
from xds.sources.authority import Authority, issue, new_authority
from xds.workers.serving import OWN_CERTIFICATE, Serving
from xds.workers.xds_settings import XdsSettings

NOW = datetime.now(UTC)


def leaf(authority: Authority) -> Leaf:
    return issue(authority, CONTROL_PLANE_SERVICE, "dc1", NOW, 0.5).leaf


@asynccontextmanager
async def served() -> AsyncIterator[tuple[Serving, int, list[Demand]]]:
    demands: list[Demand] = []
    serving = Serving(XdsSettings(listen=FREE_PORT, tls=MeshTls()), demands.append)
    port = await serving.start()
    watching = asyncio.create_task(serving.watch())
    try:
        yield serving, port, demands
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        await serving.stop()


def presented(port: int) -> str:
    """Return the certificate that the port presents."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port), 20) as connection,
        context.wrap_socket(connection) as secured,
    ):
        found = secured.getpeercert(binary_form=True)
        assert found is not None
        return ssl.DER_cert_to_PEM_cert(found).strip()


async def test_the_port_opens_with_the_certificate_and_follows_it() -> None:
    authority = new_authority(NOW)
    async with served() as (serving, port, demands):

        async def demanded() -> bool:
            return bool(demands)

        await eventually("the certificate to be demanded", demanded)
        assert demands == [Demand(leaves=frozenset({CONTROL_PLANE_LEAF}))]
        assert CONTROL_PLANE_CERTIFICATE in serving.missing()
        serving.apply({OWN_CERTIFICATE: LeafRefused("not yet")})
        assert CONTROL_PLANE_CERTIFICATE in serving.missing()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.to_thread(presented, port)

        async def presents() -> str:
            return await asyncio.to_thread(presented, port)

        one, two = leaf(authority), leaf(authority)
        serving.apply({OWN_CERTIFICATE: one})
        assert CONTROL_PLANE_CERTIFICATE not in serving.missing()
        await eventually("the certificate", presents, until=lambda seen: seen == one.certificate_chain.strip())
        taken = XdsSettings(listen=HostPort("127.0.0.1", port), tls=MeshTls())
        with pytest.raises(ListenError, match="Address already in use"):
            await Serving(taken, demands.append).start()
        serving.apply({OWN_CERTIFICATE: two})
        assert await presents() == two.certificate_chain.strip()
        serving.apply({OWN_CERTIFICATE: LeafRefused("no more")})
        assert CONTROL_PLANE_CERTIFICATE not in serving.missing()
        assert await presents() == two.certificate_chain.strip()


async def test_a_certificate_that_can_not_be_used_leaves_the_one_in_use(caplog: pytest.LogCaptureFixture) -> None:
    one, other = leaf(new_authority(NOW)), leaf(new_authority(NOW))
    async with served() as (serving, port, _):
        serving.apply({OWN_CERTIFICATE: replace(one, private_key=other.private_key)})
        assert CONTROL_PLANE_CERTIFICATE in serving.missing()
        serving.apply({OWN_CERTIFICATE: one})
        serving.apply({OWN_CERTIFICATE: replace(one, certificate_chain="garbage")})

        async def presents() -> str:
            return await asyncio.to_thread(presented, port)

        await eventually("the certificate", presents, until=lambda seen: seen == one.certificate_chain.strip())
    assert "the key of gossamer is not that of the certificate" in caplog.text
    assert "the leaf certificate of gossamer has no certificate in PEM" in caplog.text
    assert "PRIVATE KEY" not in caplog.text

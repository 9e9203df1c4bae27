"""The pooled client against a real HTTP server that plays Consul's part."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

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


async def _half_a_pair(_request: web.Request) -> web.Response:
    return web.Response(text='{"Meta": "\\ud83d"}')  # as Go writes it where a text was cut off


async def _about(request: web.Request) -> web.Response:
    return web.json_response(["dc1", str(request.headers.get("X-Consul-Token"))])


@pytest.fixture
async def consul() -> AsyncIterator[Consul]:
    app = web.Application()
    app.router.add_get("/v1/thing", _answer)
    app.router.add_get("/v1/broken", _broken)
    app.router.add_get("/v1/half", _half_a_pair)
    app.router.add_get("/v1/agent/self", _about)
    async with TestServer(app) as server:
        client = Consul(ConsulSettings(address=str(server.make_url("/")).rstrip("/"), token="own", datacenter="dc9"))
        yield client
        await client.close()


async def test_a_blocking_read_sends_its_index_and_wait(consul: Consul) -> None:
    reply = await consul.read("/v1/thing", index=7, wait_s=45)
    assert reply.data == {"query": "dc=dc9&index=7&wait=45s", "token": "own"}
    assert (reply.index, reply.filtered) == (1, True)


async def test_a_presented_token_replaces_our_own_even_when_it_is_empty(consul: Consul) -> None:
    assert (await consul.read("/v1/thing", token="theirs")).data["token"] == "theirs"
    assert (await consul.read("/v1/thing", token="")).data["token"] is None


async def test_a_token_that_is_invalid_in_a_header_is_an_error(consul: Consul) -> None:
    with pytest.raises(ConsulError, match="can't reach Consul"):
        await consul.read("/v1/thing", token="one\r\ntwo: 3")


async def test_the_librarys_health_endpoint_works_over_the_pool(consul: Consul) -> None:
    assert await consul.awaited(consul.agent.self()) == ["dc1", "own"]


async def test_input_that_only_the_tolerant_decoder_accepts_is_accepted(consul: Consul) -> None:
    assert (await consul.read("/v1/half")).data == {"Meta": "\ud83d"}


@pytest.mark.parametrize("status", [301, 400, 403, 404, 429, 500])
async def test_any_other_status_is_an_error_with_the_text_of_consul(consul: Consul, status: int) -> None:
    with pytest.raises(ConsulError, match="No cluster leader") as caught:
        await consul.read("/v1/thing", params=[("status", status)])
    assert caught.value.status == status
    assert caught.value.forbidden is (status == 403)


async def test_a_body_that_is_not_json_is_an_error(consul: Consul) -> None:
    with pytest.raises(ConsulError, match="not JSON"):
        await consul.read("/v1/broken")


async def test_an_unreachable_consul_is_an_error_that_names_it() -> None:
    client = Consul(ConsulSettings(address="http://127.0.0.1:1"))
    with pytest.raises(ConsulError, match=r"can't reach Consul at http://127.0.0.1:1"):
        await client.read("/v1/thing")
    await client.close()


async def test_a_private_ca_and_a_client_certificate_are_used(tmp_path: Path) -> None:
    """A listener that verifies its clients, as Consul's does with verify_incoming."""
    files = make_certificates(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files["server.pem"], files["server.key"])
    context.load_verify_locations(files["ca.pem"])
    context.verify_mode = ssl.CERT_REQUIRED
    app = web.Application()
    app.router.add_get("/v1/thing", _answer)
    server = TestServer(app, scheme="https")
    await server.start_server(ssl=context)
    address = f"https://127.0.0.1:{server.port}"
    both = ConsulSettings(
        address=address,
        ca_file=str(files["ca.pem"]),
        tls_server_name="server.dc1.consul",
        client_cert=str(files["client.pem"]),
        client_key=str(files["client.key"]),
    )
    client = Consul(both)
    assert (await client.read("/v1/thing")).filtered
    await client.close()
    for less, words in (
        (replace(both, client_cert="", client_key=""), "can't reach Consul"),
        (replace(both, ca_file=""), "its certificate can't be verified: .*certificate.*compare --ca-file"),
    ):
        without = Consul(less)
        with pytest.raises(ConsulError, match=words):
            await without.read("/v1/thing")
        await without.close()
    await server.close()


def make_certificates(folder: Path) -> dict[str, Path]:
    """Make a CA, and a server's and a client's certificate of it."""
    now = datetime.datetime.now(datetime.UTC)
    files: dict[str, Path] = {}
    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("ca", "server", "client")}
    for name, key in keys.items():
        host = "server.dc1.consul" if name == "server" else name
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=name == "ca", path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
            .sign(keys["ca"], hashes.SHA256())
        )
        files[f"{name}.pem"], files[f"{name}.key"] = folder / f"{name}.pem", folder / f"{name}.key"
        files[f"{name}.pem"].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        files[f"{name}.key"].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
    return files


async def test_a_token_file_that_changes_is_followed(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("one")
    client = Consul(ConsulSettings(token_file=str(file)))
    following = asyncio.create_task(client.follow_token_file(every_s=0.01))
    file.write_text("two")
    async with asyncio.timeout(20):
        while client.token != "two":  # noqa: ASYNC110 - the client has no event for it
            await asyncio.sleep(0.01)
    file.write_bytes(b"\xff")
    await asyncio.sleep(0.1)
    assert (client.token, following.done()) == ("two", False)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)

"""xDS over TLS with real Envoys: server and client certificates, and certificates that are replaced."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.certificates import TestAuthority
from tests.integration.helpers import answers, log_says
from xds.lab.mesh import Lab, Member
from xds.lab.processes import run_to_end
from xds.sources.authority import new_authority
from xds.sources.file.settings import roots_file

NAME = "gossamer.test"


@dataclass
class Secured:
    """web calls api in a mesh whose control plane serves TLS, with the certificate in ``folder``."""

    lab: Lab
    folder: Path
    authority: TestAuthority
    web: Member
    address: str


@pytest.fixture(scope="module")
async def secured() -> AsyncIterator[Secured]:
    with tempfile.TemporaryDirectory(dir="/tmp") as made:
        folder = Path(made)
        await asyncio.to_thread(folder.chmod, 0o755)
        authority = TestAuthority(folder)
        certificate, key = authority.issue("server", NAME)
        arguments = ("--tls-cert", str(certificate), "--tls-key", str(key))
        trust = ("--xds-ca", str(authority.file), "--xds-sni", NAME)
        async with Lab(mesh_file=True, default_policy="allow", serve_arguments=arguments) as lab:
            web = await lab.member("web", sidecar=trust)
            api = await lab.member("api", sidecar=trust)
            await lab.served(web, api)
            yield Secured(lab, folder, authority, web, (await lab.catalog.virtual_ips("api"))[0])


async def test_sidecars_are_served_over_tls_while_the_certificate_is_replaced(secured: Secured) -> None:
    lab = secured.lab
    await answers(secured.web.host, secured.address, 80, "api-1")
    other = TestAuthority(secured.folder, "other")
    other.issue("server", NAME)
    late = await lab.member("late", sidecar=("--xds-ca", str(other.file), "--xds-sni", NAME))
    await lab.served(late)
    await lab.catalog.intention("web", "api", "deny")
    await answers(secured.web.host, secured.address, 80, None)
    await lab.catalog.intention("web", "api", None)
    await answers(secured.web.host, secured.address, 80, "api-1")
    secured.authority.issue("server", NAME)


HANDSHAKE = """
import socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
context.set_alpn_protocols(["h2"])
with socket.create_connection((sys.argv[1], 18000), 20) as connection, context.wrap_socket(connection):
    pass
"""

SIDES = {
    "authority": ("is not of an authority in --xds-ca", "its authority is unknown there"),
    "name": ("is not for 'other.test'", "it is for another name"),
    "mesh": ("is not of an authority of the mesh", "its authority is unknown there"),
    "plain text": ("expects TLS: give --tls mesh", "the client speaks plain text, and this port TLS"),
    "expired": ("has expired: replace the file", "it has expired, by the client's clock"),
}
"""Parts of the lines about each mismatch: the sidecar's, and the server's about that sidecar's host."""


@pytest.mark.parametrize("wrong", SIDES)
async def test_a_tls_mismatch_is_reported_on_both_sides(secured: Secured, wrong: str) -> None:
    lab, gossamer = secured.lab, secured.lab.gossamer
    assert gossamer is not None
    roots = roots_file(lab.folder / "mesh.yaml")
    trust = {
        "authority": ("--xds-ca", str(TestAuthority(secured.folder, "wrong").file), "--xds-sni", NAME),
        "name": ("--xds-ca", str(secured.authority.file), "--xds-sni", "other.test"),
        "mesh": (),
        "plain text": ("--plaintext",),
        "expired": ("--xds-ca", str(secured.authority.file), "--xds-sni", NAME),
    }[wrong]
    if wrong == "mesh":  # those of a mesh that this server has no certificate of
        now = datetime.now(UTC)
        roots.write_text(new_authority(now).trusted(now).pem())
    if wrong == "expired":
        secured.authority.issue("server", NAME, life=timedelta(seconds=10))
        # The server takes the files at a handshake, while the certificate is valid still.
        await run_to_end(*lab.control.command(sys.executable, "-c", HANDSHAKE, lab.control.address))
        await asyncio.sleep(11)  # until it has expired, which no event tells
    member = await lab.member("odd", instance=wrong.replace(" ", "-"), sidecar=trust)
    of_sidecar, of_server = SIDES[wrong]
    await log_says(member.processes["sidecar"], of_sidecar)
    await log_says(gossamer, f"TLS with {member.host.address} failed: ")
    line = next(each for each in gossamer.tail(1000).splitlines() if f"TLS with {member.host.address} failed" in each)
    assert of_server in line
    assert member.sidecar_id not in await lab.sidecars()
    await member.processes["sidecar"].stop()
    await lab.deregister(member)
    secured.authority.issue("server", NAME)
    roots.unlink(missing_ok=True)

"""xDS over TLS with real Envoys: server and client certificates, and certificates that are replaced."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.certificates import TestAuthority
from tests.integration.helpers import answers
from xds.lab.mesh import Lab, Member
from xds.lab.processes import eventually

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


@pytest.mark.parametrize("wrong", ["authority", "name", "plain text"])
async def test_a_sidecar_that_can_not_verify_its_control_plane_says_so_and_gets_nothing(
    secured: Secured, wrong: str
) -> None:
    lab = secured.lab
    trust = {
        "authority": ("--xds-ca", str(TestAuthority(secured.folder, "wrong").file), "--xds-sni", NAME),
        "name": ("--xds-ca", str(secured.authority.file), "--xds-sni", "other.test"),
        "plain text": ("--plaintext",),
    }[wrong]
    member = await lab.member("odd", instance=wrong.replace(" ", "-"), sidecar=trust)
    expected = {
        "authority": "is not of an authority in --xds-ca",
        "name": "is not for 'other.test'",
        "plain text": "expects TLS: give --tls mesh",
    }[wrong]

    async def said() -> str:
        return member.processes["sidecar"].tail()

    await eventually("the reason in the sidecar's log", said, until=lambda text: expected in text)
    assert member.sidecar_id not in await lab.sidecars()
    await lab.deregister(member)

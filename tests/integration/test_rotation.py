"""A connection held open while certificates rotate and upstreams come."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Mesh
from tests.integration.helpers import answers
from tests.integration.test_traffic import native
from xds.lab.application import dial
from xds.lab.commands import ENVOY_ADMIN_PORT
from xds.lab.mesh import get
from xds.lab.processes import eventually

PORT = 80


async def sent(mesh: Mesh, kind: str) -> dict[str, Any]:
    return dict((await mesh.lab.sidecars())[mesh.web.sidecar_id]["resources"][kind])


async def test_a_held_connection_survives_ten_new_upstreams(denying: Mesh) -> None:
    lab = denying.lab
    async with await dial(denying.web.host, denying.api_ip, PORT) as held:
        listeners = await sent(denying, "listeners")
        for number in range(10):
            await lab.member(f"new-{number}", virtual_ip=f"240.0.1.{number}", start=False)
            await lab.consul.intention("web", f"new-{number}", "allow")

        async def all_there() -> bool:
            names: dict[str, str] = (await sent(denying, "clusters"))["acknowledged"]
            return {f"vip:240.0.1.{number}" for number in range(10)} <= names.keys()

        await eventually("ten more clusters to be acknowledged", all_there)
        assert await sent(denying, "listeners") == listeners, "a new upstream must not touch a listener"
        assert await held.echo("still here") == "still here"


@pytest.mark.timeout(300)
async def test_a_held_connection_survives_a_leaf_rotation_and_new_ones_show_the_new_certificate(denying: Mesh) -> None:
    lab = denying.lab
    await native(lab, "witness", "240.9.0.60", leaf_of="witness")
    await lab.consul.intention("web", "witness", "allow")

    async def serial() -> str:
        async with await dial(denying.web.host, "240.9.0.60", PORT) as connection:
            return connection.greeting.split()[1]

    before = await eventually("the witness to see a certificate", serial)
    held = await dial(denying.web.host, denying.api_ip, PORT)
    witnessed = await dial(denying.web.host, "240.9.0.60", PORT)
    clusters = (await sent(denying, "clusters"))["sent"]
    await lab.consul.rotate_ca()
    # Consul itself makes new leaves at a random moment within half a minute.
    after = await eventually("a new certificate to be shown", serial, until=lambda seen: seen != before, within_s=120)
    assert after != before
    assert await held.echo("same connection") == "same connection"
    assert await witnessed.echo("same connection") == "same connection"
    assert (await sent(denying, "clusters"))["sent"] == clusters, "a rotation must touch secrets only"
    await answers(denying.web.host, denying.api_ip, PORT, "api-1")
    await held.close()
    await witnessed.close()
    await the_control_plane_is_verified_with_the_new_root(denying)


async def the_control_plane_is_verified_with_the_new_root(denying: Mesh) -> None:
    lab = denying.lab
    _, dump = await get(denying.web.host, ENVOY_ADMIN_PORT, "/config_dump")
    # Its bootstrap names a file with a secret, which names a file with the roots.
    secret = re.search(r'"path_config_source": \{"path": "([^"]+)"', json.dumps(dump))
    assert secret is not None
    roots = re.search(r'"([^"]+\.roots\.pem)"', await asyncio.to_thread(Path(secret[1]).read_text))
    assert roots is not None
    file = Path(roots[1])

    async def certificates() -> int:
        return (await asyncio.to_thread(file.read_text)).count("BEGIN CERTIFICATE")

    await eventually("the companion to have both roots", certificates, until=lambda count: count >= 2, within_s=90)
    # Its certificate is of the new root by now, and every stream begins anew.
    await lab.stop_gossamer()
    await lab.start_gossamer()
    await lab.served(denying.web, denying.api)
    await lab.consul.intention("web", "api", "deny")
    await answers(denying.web.host, denying.api_ip, PORT, None)
    await lab.consul.intention("web", "api", "allow")
    await answers(denying.web.host, denying.api_ip, PORT, "api-1")

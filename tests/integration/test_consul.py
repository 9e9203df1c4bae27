"""Tests of reading a real Consul: with the permissions that the docs name, and from real config entries."""

from __future__ import annotations

import itertools
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.conftest import Mesh, start_mesh
from tests.integration.helpers import answers
from xds.lab.application import who_answers
from xds.lab.commands import ADMIN_PORT
from xds.lab.consul import version
from xds.lab.mesh import Lab, get
from xds.lab.processes import eventually

GUIDE = Path(__file__).parents[2] / "docs" / "operating.md"
PORT = 80


DEBUG = ("--log-level", "debug")
"""For every line that there is: what a lab wrote is searched for credentials when it ends."""


def documented_rules(release: tuple[int, int]) -> str:
    """Return the ACL rules in the operating guide for this Consul."""
    found = re.search(r"```hcl\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert found is not None
    return found[1] if release >= (1, 11) else re.sub(r"(?m)^mesh = .*$", "", found[1])


@pytest.fixture(scope="module")
async def guarded() -> AsyncIterator[Mesh]:
    """Gossamer with no more than the documented permissions."""
    async with Lab(acl=True, serve_rules=documented_rules(await version()), serve_arguments=DEBUG) as lab:
        await lab.consul.intention("web", "api", "allow")
        yield await start_mesh(lab)


async def test_the_documented_permissions_are_enough(guarded: Mesh) -> None:
    await answers(guarded.web.host, guarded.api_ip, PORT, "api-1")
    _, about = await get(guarded.lab.control, ADMIN_PORT, "/ready")
    assert about == {"ready": True, "not_read_yet": [], "troubles": {}}


async def test_a_token_that_loses_its_permissions_loses_nothing_that_was_read(guarded: Mesh) -> None:
    lab = guarded.lab
    policies = (await lab.consul.client.read("/v1/acl/policies")).data
    [policy] = [p for p in policies if p["Name"] != "global-management" and p["Name"].startswith("policy-")]
    about = (await lab.consul.client.read(f"/v1/acl/policy/{policy['ID']}")).data
    await lab.consul.put(f"/v1/acl/policy/{policy['ID']}", about | {"Rules": 'key_prefix "" { policy = "read" }'})
    others = itertools.count()

    async def troubles() -> dict[str, str]:
        # Consul answers a query that is blocked already with the old permissions; the next one has the new.
        await lab.consul.intention("web", "elsewhere", "deny" if next(others) % 2 else "allow")
        name = f"other-{next(others)}"
        await lab.consul.register("other", "10.77.0.200", {"ID": name, "Service": name})
        status, ready = await get(lab.control, ADMIN_PORT, "/ready")
        assert status == 200
        return dict(ready["troubles"])

    both = {"intentions", "catalog"}
    await eventually("the lost permissions to be reported", troubles, lambda found: both <= found.keys(), every_s=0.5)
    await answers(guarded.web.host, guarded.api_ip, PORT, "api-1")
    await lab.consul.put(f"/v1/acl/policy/{policy['ID']}", about)
    await lab.consul.intention("web", "api", "deny")
    await eventually("it to be read again", troubles, until=lambda found: not found, within_s=60, every_s=0.5)
    await answers(guarded.web.host, guarded.api_ip, PORT, None)


async def test_the_mode_can_come_from_the_config_entries(allowing: Mesh) -> None:
    lab = allowing.lab
    registered_without = {"config": {"mode": ""}, "proxy": {"Mode": ""} if lab.consul.transparent else {}}
    member = await lab.member("defaulted", virtual_ip="240.9.0.30", **registered_without)  # type: ignore[arg-type]

    async def transparent() -> bool:
        return bool((await lab.sidecars()).get(member.sidecar_id, {}).get("transparent"))

    await lab.served(member)
    assert not await transparent()
    assert await who_answers(member.host, allowing.api_ip, PORT) is None
    if lab.consul.transparent:
        entry = {"Kind": "service-defaults", "Name": "defaulted", "Protocol": "tcp", "Mode": "transparent"}
    else:
        entry = {"Kind": "proxy-defaults", "Name": "global", "Config": {"mode": "transparent"}}  # type: ignore[dict-item]
    await lab.consul.put("/v1/config", entry)
    await eventually("it to be transparent", transparent)
    await answers(member.host, allowing.api_ip, PORT, "api-1")
    await lab.consul.put(f"/v1/config/{entry['Kind']}/{entry['Name']}", None, method="DELETE")
    await eventually("it to be direct again", transparent, until=lambda found: not found)


async def test_destinations_only_comes_from_the_mesh_entry(allowing: Mesh) -> None:
    lab = allowing.lab
    if not lab.consul.transparent:
        pytest.skip("this Consul has no mesh entry; the flag that stands in for it is tested with the redirection")
    outside = lab.host("beyond")
    await lab.application("beyond", outside, 9000, outside.address)
    await answers(allowing.web.host, outside.address, 9000, "beyond")
    await lab.consul.put("/v1/config", {"Kind": "mesh", "TransparentProxy": {"MeshDestinationsOnly": True}})
    await answers(allowing.web.host, outside.address, 9000, None)
    await answers(allowing.web.host, allowing.api_ip, PORT, "api-1")
    await lab.consul.put("/v1/config/mesh/mesh", None, method="DELETE")
    await answers(allowing.web.host, outside.address, 9000, "beyond")


async def test_a_virtual_ip_assigned_by_consul_is_dialed(allowing: Mesh) -> None:
    lab = allowing.lab
    if not lab.consul.transparent:
        pytest.skip("this Consul gives no virtual IPs")
    [address] = [ip for ip in await lab.consul.virtual_ips("api") if ip != allowing.api_ip]
    await answers(allowing.web.host, address, PORT, "api-1")


async def test_a_tcp_service_follows_its_resolver(allowing: Mesh) -> None:
    lab = allowing.lab
    await lab.consul.entry({"Kind": "service-resolver", "Name": "api", "Redirect": {"Service": "web"}})
    await answers(allowing.web.host, allowing.api_ip, PORT, "web-1")
    await lab.consul.remove_entry("service-resolver", "api")
    await answers(allowing.web.host, allowing.api_ip, PORT, "api-1")

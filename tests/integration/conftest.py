"""Meshes for the integration tests. Each module that needs one of a kind makes its own; these two are shared."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from xds.lab.mesh import Lab, Member


@dataclass(slots=True)
class Mesh:
    """A lab with two members and the addresses at which they are dialed."""

    lab: Lab
    web: Member
    api: Member
    api_ip: str


async def start_mesh(lab: Lab) -> Mesh:
    """web and api, running; ``api_ip`` is a virtual IP of api.

    It is far from those that a newer Consul assigns, one after the other from 240.0.0.1 on: these win.
    """
    web = await lab.member("web", virtual_ip="240.9.0.10")
    api = await lab.member("api", virtual_ip="240.9.0.11")
    await lab.served(web, api)
    return Mesh(lab, web, api, "240.9.0.11")


@pytest.fixture(scope="session")
async def denying() -> AsyncIterator[Mesh]:
    """ACLs on, default deny, one intention: web may call api."""
    async with Lab(acl=True) as lab:
        await lab.consul.intention("web", "api", "allow")
        yield await start_mesh(lab)


@pytest.fixture(scope="session")
async def allowing() -> AsyncIterator[Mesh]:
    """ACLs off, so default allow, and no intention; services may claim addresses of a Kubernetes' services."""
    async with Lab(serve_arguments=("--virtual-ip-range", "10.96.0.0/16")) as lab:
        yield await start_mesh(lab)

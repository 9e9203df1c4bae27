"""The demo's mesh: a small shop whose services dial each other by virtual IP, and its intentions.

web calls api, api calls payments and the database; the database speaks plain TCP, the others HTTP. There are two
instances of api.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from xds.lab.commands import APPLICATION_PORT
from xds.lab.mesh import Lab, Member

PORT = 80
CALLS = {"web": ("api",), "api": ("payments", "db"), "payments": (), "db": ()}
"""Calls between the services."""
ALLOWED = tuple((source, destination) for source, calls in CALLS.items() for destination in calls)
INSTANCES = (("web", "1"), ("api", "1"), ("api", "2"), ("payments", "1"), ("db", "1"))
PLAIN_TCP = ("db",)
VIRTUAL_IPS = {"web": "240.0.1.1", "api": "240.0.1.2", "payments": "240.0.1.3", "db": "240.0.1.4"}
"""Virtual IPs for a mesh that assigns none (Consul before 1.11), or where they must be known beforehand."""


def calls(service: str, addresses: dict[str, str]) -> list[str]:
    """Return the calls of the application of ``service``, as `xds.lab.application` expects them."""
    return [f"{name}={url(name, addresses[name])}" for name in CALLS[service]]


def url(service: str, address: str) -> str:
    """Return the URL of ``service``, by its virtual IP or its name."""
    return f"tcp://{address}:{PORT}" if service in PLAIN_TCP else f"http://{address}:{PORT}/"


@dataclass(slots=True)
class Shop:
    """The shop, running."""

    members: dict[str, Member]
    """Members by instance: ``api-2``."""
    addresses: dict[str, str]
    """The virtual IPs, by service."""

    def url(self, service: str) -> str:
        """Return the URL of a service."""
        return url(service, self.addresses[service])


async def open_shop(lab: Lab) -> Shop:
    """Register the shop's services, let those call who have to, and start everything."""
    members: dict[str, Member] = {}
    tokens = {service: await lab.catalog.token_for(service) for service in CALLS}
    for service, instance in INSTANCES:
        members[f"{service}-{instance}"] = await lab.member(
            service,
            instance=instance,
            token=tokens[service],
            virtual_ip=None if lab.catalog.transparent else VIRTUAL_IPS[service],
            start=False,
        )
    for source, destination in ALLOWED:
        await lab.catalog.intention(source, destination, "allow")
    addresses = {service: (await lab.catalog.virtual_ips(service))[0] for service in CALLS}
    async with asyncio.TaskGroup() as tasks:
        for member in members.values():
            tasks.create_task(_start(lab, member, calls(member.service, addresses)))
    await lab.served(*members.values())
    return Shop(members, addresses)


async def _start(lab: Lab, member: Member, called: list[str]) -> None:
    name = f"{member.service}-{member.instance}"
    member.processes["application"] = await lab.application(
        name, member.host, APPLICATION_PORT, speaks="tcp" if member.service in PLAIN_TCP else "http", calls=called
    )
    await lab.redirect(member)
    await lab.start_sidecar(member)

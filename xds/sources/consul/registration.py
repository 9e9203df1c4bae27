"""Finds a sidecar's registration in Consul."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from xds.sources import decode
from xds.sources.consul.client import Consul, understanding
from xds.sources.consul.config_entry_watches import FOLLOWED, read_all
from xds.sources.consul.settings import AGENT_ROOTS_PATH, ConsulSettings
from xds.sources.registration import Registration, choose, registration


async def find(
    settings: ConsulSettings,
    *,
    proxy_id: str = "",
    sidecar_for: str = "",
    node_name: str = "",
    with_roots: bool = False,
) -> Registration:
    """Return the sidecar with service ID ``proxy_id``, or the one of the service with ID ``sidecar_for``.

    It is looked up on the agent, or in the catalog when ``node_name`` names the node; ``with_roots``, the mesh's
    authorities are read too.

    Raises:
        NotRegisteredError: there is none, or several.
        ConsulError: Consul can't be read.
    """
    consul = Consul(settings)
    try:
        services = await _services(consul, node_name)
        entries = decode.config_entries(await read_all(consul, FOLLOWED))
        with understanding():
            roots = decode.roots((await consul.read(AGENT_ROOTS_PATH)).data) if with_roots else None
    finally:
        await consul.close()
    where = f"on node {node_name!r}" if node_name else f"with the agent at {settings.shown_address}"
    hint = "" if node_name else "; for one that is registered on another node, name that with --node-name"
    found = choose(services, proxy_id, sidecar_for, where, hint)
    return replace(registration(node_name, found, entries), roots=roots)


async def _services(consul: Consul, node_name: str) -> list[Any]:
    if node_name:
        answer = await consul.read(f"/v1/catalog/node-services/{node_name}")
        return list((answer.data or {}).get("Services") or ())
    return list((await consul.awaited(consul.agent.services()) or {}).values())

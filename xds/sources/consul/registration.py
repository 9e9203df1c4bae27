"""Finding a sidecar's registration in Consul, once: for the commands that run beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from xds.mesh.facts import ConfigEntries, ProxySettings, Sidecar
from xds.policy.proxies import effective_settings
from xds.sources.consul import decode
from xds.sources.consul.client import Consul
from xds.sources.consul.settings import ConsulSettings


class NotRegisteredError(Exception):
    """There is no such sidecar, or more than one; the message says what was looked for and where."""


@dataclass(frozen=True, slots=True)
class Registration:
    """A sidecar's registration, and what its settings come to."""

    sidecar: Sidecar
    settings: ProxySettings
    datacenter: str
    plain_ports: tuple[int, ...]
    """Ports of the sidecar that are not part of the mesh: metrics and exposed paths."""


async def find(
    settings: ConsulSettings, *, proxy_id: str = "", sidecar_for: str = "", node_name: str = ""
) -> Registration:
    """The sidecar with service ID ``proxy_id``, or the one of the service with ID ``sidecar_for``.

    Looked up on the agent, or in the catalog when ``node_name`` names the node.

    Raises:
        NotRegisteredError: none, or several.
        ConsulError: Consul can't be read.
    """
    consul = Consul(settings)
    try:
        proxies = await _proxies(consul, node_name)
        found = [
            proxy
            for proxy in proxies
            if (proxy["ID"] == proxy_id if proxy_id else _destination_id(proxy) == sidecar_for)
        ]
        entries = decode.config_entries((await consul.read("/v1/config/")).data)
    finally:
        await consul.close()
    where = f"on node {node_name!r}" if node_name else f"with the agent at {settings.address}"
    what = f"sidecar with service ID {proxy_id!r}" if proxy_id else f"sidecar for service ID {sidecar_for!r}"
    if not found:
        known = ", ".join(sorted(proxy["ID"] for proxy in proxies)) or "none"
        hint = "" if node_name else "; for one that is registered on another node, name that with --node-name"
        raise NotRegisteredError(f"no {what} is registered {where} (sidecars there: {known}){hint}")
    if len(found) > 1:
        ids = ", ".join(sorted(proxy["ID"] for proxy in found))
        raise NotRegisteredError(f"there is more than one {what} {where}: name one of {ids} as PROXY_ID")
    return _registration(node_name, found[0], entries)


async def _proxies(consul: Consul, node_name: str) -> list[Any]:
    if node_name:
        answer = await consul.read(f"/v1/catalog/node-services/{node_name}")
        services = (answer.data or {}).get("Services") or ()
    else:
        services = (await consul.awaited(consul.agent.services()) or {}).values()
    return [service for service in services if service.get("Kind") == decode.CONNECT_PROXY]


def _destination_id(proxy: Any) -> str:
    about = proxy.get("Proxy") or {}
    return about.get("DestinationServiceID") or about.get("DestinationServiceName") or ""


def _registration(node_name: str, found: Any, entries: ConfigEntries) -> Registration:
    sidecar = decode.sidecar(node_name, found)
    proxy = found.get("Proxy") or {}
    config = proxy.get("Config") or {}
    plain = [
        str(config[key]).rpartition(":")[2]
        for key in ("envoy_prometheus_bind_addr", "envoy_stats_bind_addr")
        if config.get(key)
    ]
    plain += [str(path.get("ListenerPort")) for path in (proxy.get("Expose") or {}).get("Paths") or ()]
    return Registration(
        sidecar=sidecar,
        settings=effective_settings(sidecar, entries),
        datacenter=found.get("Datacenter") or "",
        plain_ports=tuple(int(port) for port in plain if port.isdecimal() and 0 < int(port) < 65536),
    )

"""Selects a sidecar's registration, for commands that run beside it and need its ports and its service."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from xds.mesh.config_entries import ConfigEntries, ProxySettings
from xds.mesh.facts import Roots, Sidecar
from xds.mesh.names import CONNECT_PROXY
from xds.policy.listeners import exposable
from xds.policy.proxies import effective_settings
from xds.sources import decode


class NotRegisteredError(Exception):
    """Sidecar that is not registered, or ambiguous; the message says what was looked for and where."""


@dataclass(frozen=True, slots=True)
class Registration:
    """Sidecar's registration, and the settings that result from it."""

    sidecar: Sidecar
    settings: ProxySettings
    datacenter: str
    plain_ports: tuple[int, ...]
    """Ports of the sidecar that are not part of the mesh: those of exposed paths."""
    token: str = ""
    """Token that it must present, where the registration states it."""
    roots: Roots | None = None
    """The certificate authorities of the mesh, where they were asked for."""


def choose(services: Iterable[Any], proxy_id: str, sidecar_for: str, where: str, hint: str = "") -> Any:
    """Return the one sidecar among ``services`` (Consul's JSON) with ID ``proxy_id``, or of the service ID
    ``sidecar_for``.

    Args:
        services: what is registered.
        proxy_id: the ID of a sidecar, or nothing.
        sidecar_for: the ID of its service, otherwise.
        where: where they are registered, for messages.
        hint: what else to try if there is none.

    Raises:
        NotRegisteredError: none, or several.
    """
    proxies = [service for service in services if service.get("Kind") == CONNECT_PROXY]
    found = [
        proxy for proxy in proxies if (proxy["ID"] == proxy_id if proxy_id else _destination_id(proxy) == sidecar_for)
    ]
    what = f"sidecar with service ID {proxy_id!r}" if proxy_id else f"sidecar for service ID {sidecar_for!r}"
    if not found:
        known = ", ".join(sorted(proxy["ID"] for proxy in proxies)) or "none"
        raise NotRegisteredError(f"no {what} is registered {where} (sidecars there: {known}){hint}")
    if len(found) > 1:
        ids = ", ".join(sorted(proxy["ID"] for proxy in found))
        raise NotRegisteredError(f"there is more than one {what} {where}: name one of {ids} as PROXY_ID")
    return found[0]


def _destination_id(proxy: Any) -> str:
    about = proxy.get("Proxy") or {}
    return about.get("DestinationServiceID") or about.get("DestinationServiceName") or ""


def registration(node_name: str, found: Any, entries: ConfigEntries) -> Registration:
    """Return what a registered sidecar (Consul's JSON) comes to under these config entries.

    A port is plain only if the sidecar listens on it. The ports of metrics in Consul's bootstrap
    (``envoy_prometheus_bind_addr``) are not plain: Gossamer listens on none of them. A registration could otherwise
    name the application's port there, and the redirection would leave that port open to every host.
    """
    sidecar = decode.sidecar(node_name, found)
    settings = effective_settings(sidecar, entries)
    return Registration(
        sidecar=sidecar,
        settings=settings,
        datacenter=found.get("Datacenter") or "",
        plain_ports=tuple(sorted({path.listener_port for path in exposable(sidecar, settings)[0]})),
    )

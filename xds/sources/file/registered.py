"""Lists the services of a mesh file as Consul would register them: without nesting, with defaults. Pure.

The defaults of a nested sidecar are Consul's (``agent/sidecar_service.go``), its port is the first of Consul's range.
Two sidecars at one address must state their ports: a port that depended on other services would change with an edit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from xds.mesh.names import CONNECT_PROXY, SIDECAR_SUFFIX
from xds.sources.file.models import Check, MeshFile, Proxy, ServiceBase

FIRST_SIDECAR_PORT = 21000
LOCALHOST = "127.0.0.1"
NODE = "mesh-file"
"""The node that everything in a file is registered on."""


@dataclass(frozen=True, slots=True)
class Registered:
    """Registered service or sidecar."""

    id: str
    name: str
    kind: str
    address: str
    port: int
    token: str
    proxy: Proxy
    checks: tuple[Check, ...]
    """Its own, and for a nested sidecar those of its service, of which it is an alias."""
    native: bool
    tags: tuple[str, ...]
    meta: dict[str, str]
    definition: ServiceBase
    """Definition in the file."""
    path: tuple[str | int, ...]
    """Place of the definition in the file."""

    @property
    def destination(self) -> str | None:
        """The service that is reached in the mesh through it; ``None`` where it is not part of the mesh."""
        if self.kind == CONNECT_PROXY:
            return self.proxy.destination_service_name or None
        return self.name if self.native and not self.kind else None

    def as_json(self) -> dict[str, Any]:
        """Return the service as Consul's ``/v1/agent/service`` and ``/v1/health/connect`` show it."""
        proxy = self.proxy
        tagged = self.definition.tagged_addresses.items()
        return {
            "Kind": self.kind,
            "ID": self.id,
            "Service": self.name,
            "Address": self.address,
            "Port": self.port,
            "Tags": self.tags,
            "Meta": self.meta,
            "TaggedAddresses": {tag: {"Address": each.address, "Port": each.port} for tag, each in tagged},
            "Weights": {
                "Passing": self.definition.weights.passing,
                "Warning": self.definition.weights.warning,
            },
            "Proxy": {
                "DestinationServiceName": proxy.destination_service_name,
                "DestinationServiceID": proxy.destination_service_id,
                "LocalServiceAddress": proxy.local_service_address,
                "LocalServicePort": proxy.local_service_port,
                "LocalServiceSocketPath": proxy.local_service_socket_path,
                "Mode": proxy.mode,
                "TransparentProxy": {
                    "OutboundListenerPort": proxy.transparent_proxy.outbound_listener_port,
                    "DialedDirectly": proxy.transparent_proxy.dialed_directly,
                },
                "MeshGateway": proxy.mesh_gateway,
                "Config": proxy.config,
                "Expose": {
                    "Paths": [
                        {
                            "Path": path.path,
                            "ListenerPort": path.listener_port,
                            "LocalPathPort": path.local_path_port,
                            "Protocol": path.protocol or "http",
                        }
                        for path in proxy.expose.paths
                    ]
                },
                "Upstreams": [
                    {
                        "DestinationName": upstream.destination_name,
                        "DestinationType": upstream.destination_type,
                        "DestinationPeer": upstream.destination_peer,
                        "Datacenter": upstream.datacenter,
                        "LocalBindAddress": upstream.local_bind_address,
                        "LocalBindPort": upstream.local_bind_port,
                        "LocalBindSocketPath": upstream.local_bind_socket_path,
                        "LocalBindSocketMode": upstream.local_bind_socket_mode,
                        "Config": upstream.config,
                    }
                    for upstream in proxy.upstreams
                ],
            },
        }


def registered(mesh: MeshFile) -> list[Registered]:
    """Return everything that ``mesh.services`` registers, in the order of the file."""
    found: list[Registered] = []
    for number, service in enumerate(mesh.services):
        path: tuple[str | int, ...] = ("services", number)
        own = _registered(service, service.name, service.address, path, service.token, service.connect.native)
        found.append(own)
        nested = service.connect.sidecar_service
        if nested is None:
            continue
        path = (*path, "connect", "sidecar_service")
        sidecar = _registered(
            nested, nested.name or service.name + SIDECAR_SUFFIX, nested.address or service.address, path,
            nested.token or service.token, native=False,
        )  # fmt: skip
        found.append(_as_sidecar_of(own, sidecar))
    by_id, by_name = dict[str, str](), dict[str, str]()
    """The tokens of services, those of the first that has one where several are called so."""
    for each in found:
        if each.kind == "" and each.token:
            by_id.setdefault(each.id, each.token)
            by_name.setdefault(each.name, each.token)
    return [_with_token(each, by_id, by_name) for each in found]


def _with_token(sidecar: Registered, by_id: Mapping[str, str], by_name: Mapping[str, str]) -> Registered:
    """Return a sidecar with the token of its service where it has none, as a nested one does."""
    if sidecar.kind != CONNECT_PROXY or sidecar.token:
        return sidecar
    proxy = sidecar.proxy
    token = by_id.get(proxy.destination_service_id) or by_name.get(proxy.destination_service_name)
    return replace(sidecar, token=token) if token else sidecar


def _registered(
    definition: ServiceBase, name: str, address: str, path: tuple[str | int, ...], token: str, native: bool
) -> Registered:
    return Registered(
        id=definition.id or name,
        name=name,
        kind=definition.kind,
        address=address or LOCALHOST,
        port=definition.port,
        token=token,
        proxy=definition.proxy,
        checks=(*([definition.check] if definition.check else []), *definition.checks),
        native=native,
        tags=tuple(definition.tags),
        meta=definition.meta,
        definition=definition,
        path=path,
    )


def _as_sidecar_of(service: Registered, sidecar: Registered) -> Registered:
    proxy = sidecar.proxy
    defaults: dict[str, Any] = {}
    if not proxy.local_service_socket_path and not (proxy.local_service_address and proxy.local_service_port):
        if service.definition.socket_path:
            defaults["local_service_socket_path"] = service.definition.socket_path
        else:
            defaults["local_service_address"] = proxy.local_service_address or LOCALHOST
            defaults["local_service_port"] = proxy.local_service_port or service.port
    return Registered(
        id=service.id + SIDECAR_SUFFIX,
        name=sidecar.name,
        kind=sidecar.kind or CONNECT_PROXY,
        address=sidecar.address,
        port=sidecar.port or FIRST_SIDECAR_PORT,
        token=sidecar.token,
        proxy=proxy.model_copy(
            update={
                "destination_service_name": proxy.destination_service_name or service.name,
                "destination_service_id": proxy.destination_service_id or service.id,
                **defaults,
            }
        ),
        checks=(*service.checks, *sidecar.checks),
        native=False,
        tags=sidecar.tags or service.tags,
        meta=sidecar.meta or service.meta,
        definition=sidecar.definition,
        path=sidecar.path,
    )

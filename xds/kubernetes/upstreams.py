"""Parses ``connect-service-upstreams``: explicit upstreams of a pod, in the forms of Consul on Kubernetes.

Source: Consul on Kubernetes, "Annotations and labels", ``connect-service-upstreams``. Forms with a namespace, a
partition or a peer are for features that Gossamer does not have; they are errors with that reason.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from xds.kubernetes.values import Form, Ports, parse_port

EXPECTED = (
    "upstreams, separated by commas: NAME:PORT, NAME:PORT:DATACENTER, NAME.svc:PORT, NAME.svc.DATACENTER.dc:PORT,"
    " prepared_query:NAME:PORT, each with options such as ?mesh_gateway_mode=local"
)
PREPARED_QUERY = "prepared_query"
GATEWAY_MODES = ("none", "local", "remote")
_OPTIONS = {
    "datacenter": "datacenter", "dc": "datacenter",
    "mesh_gateway_mode": "mesh_gateway_mode", "mesh-gateway-mode": "mesh_gateway_mode",
    "meshGatewayMode": "mesh_gateway_mode",
    "local_bind_address": "local_bind_address", "local-bind-address": "local_bind_address",
    "localBindAddress": "local_bind_address",
}  # fmt: skip
_UNSUPPORTED = {"ns": "namespaces", "ap": "partitions", "peer": "peers"}
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


class UpstreamError(ValueError):
    """Upstream that can't be used; the message says which part of which one, and what was expected."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """Explicit upstream of a pod, which applications dial at a port of loopback."""

    name: str
    port: int
    datacenter: str = ""
    prepared_query: bool = False
    mesh_gateway_mode: str = ""
    local_bind_address: str = ""

    def registered(self) -> dict[str, Any]:
        """Return the upstream as it is registered in Consul (``Proxy.Upstreams``)."""
        found: dict[str, Any] = {
            "DestinationType": PREPARED_QUERY if self.prepared_query else "service",
            "DestinationName": self.name,
            "LocalBindPort": self.port,
        }
        if self.datacenter:
            found["Datacenter"] = self.datacenter
        if self.local_bind_address:
            found["LocalBindAddress"] = self.local_bind_address
        if self.mesh_gateway_mode:
            found["MeshGateway"] = {"Mode": self.mesh_gateway_mode}
        return found

    def variables(self) -> dict[str, str]:
        """Return the environment variables with which applications find it (Consul on Kubernetes)."""
        prefix = self.name.upper().replace("-", "_") + "_CONNECT_SERVICE"
        host = self.local_bind_address or "127.0.0.1"
        return {f"{prefix}_HOST": host, f"{prefix}_PORT": str(self.port)}


def parse(text: str, ports: Ports) -> tuple[Upstream, ...]:
    """Return the upstreams of an annotation.

    Raises:
        UpstreamError: one can't be used, or two have the same address.
    """
    found: dict[tuple[str, int], Upstream] = {}
    for item in filter(None, (item.strip() for item in text.split(","))):
        upstream = _parse_one(item, ports)
        address = upstream.local_bind_address, upstream.port
        if address in found:
            raise UpstreamError(f"{item!r} has the port {upstream.port} of {found[address].name!r}")
        if any((each.name, each.datacenter) == (upstream.name, upstream.datacenter) for each in found.values()):
            raise UpstreamError(f"{item!r} names {upstream.name!r} a second time, which Consul does not take")
        found[address] = upstream
    return tuple(found.values())


def _parse_one(item: str, ports: Ports) -> Upstream:
    parts = item.split(":", 2)
    if parts[0] == PREPARED_QUERY:
        _, name, port = (*parts, "", "")[:3]
        rest = ""
    else:
        name, port, rest = (*parts, "", "")[:3]
    # The reference takes options after the port as well.
    port, mark, options = port.partition("?")
    third, _, more = rest.partition("?")
    if "=" in third:
        third, more = "", third
    fields = {"datacenter": third} | _parse_options(item, "&".join(filter(None, (options if mark else "", more))))
    name, of_name = _parse_name(item, name)
    if of_name and fields["datacenter"] not in ("", of_name):
        raise UpstreamError(f"{item!r} names the datacenters {of_name!r} and {fields['datacenter']!r}")
    fields["datacenter"] = of_name or fields["datacenter"]
    try:
        number = parse_port(port, ports)
    except ValueError:
        raise UpstreamError(f"{item!r}: {port!r} is not a port: expected a name or 1 to 65535") from None
    return Upstream(name, number, prepared_query=parts[0] == PREPARED_QUERY, **fields)


def _parse_name(item: str, text: str) -> tuple[str, str]:
    """Return the service and the datacenter of ``NAME`` or of the labeled form ``NAME.svc.DATACENTER.dc``."""
    pieces = text.split(".")
    if len(pieces) < 2 or pieces[1] != "svc":
        if not _NAME.fullmatch(text):
            raise UpstreamError(f"{item!r}: {text!r} is not the name of a service")
        return text, ""
    labels = dict(zip(pieces[3::2], pieces[2::2], strict=False))
    for label, feature in _UNSUPPORTED.items():
        if label in labels:
            raise UpstreamError(f"{item!r}: {feature} are not supported")
    if len(pieces) % 2 or set(labels) - {"dc"} or not all(pieces):
        raise UpstreamError(f"{item!r}: {text!r} is not NAME.svc or NAME.svc.DATACENTER.dc")
    return pieces[0], labels.get("dc", "")


def _parse_options(item: str, text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for option in filter(None, re.split("[&;]", text)):
        key, _, value = option.partition("=")
        if key not in _OPTIONS:
            raise UpstreamError(f"{item!r}: {key!r} is not an option: expected one of {', '.join(sorted(_OPTIONS))}")
        if value:
            found[_OPTIONS[key]] = value
    mode = found.get("mesh_gateway_mode", "none")
    if mode not in GATEWAY_MODES:
        raise UpstreamError(
            f"{item!r}: {mode!r} is not a mesh gateway mode: expected one of {', '.join(GATEWAY_MODES)}"
        )
    return found


UPSTREAMS = Form(EXPECTED, parse)

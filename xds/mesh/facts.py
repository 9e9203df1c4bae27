"""The facts Gossamer knows of a mesh, in Consul's words.

Every fact is frozen and compares by value, so "did anything change?" is ``==``. Facts carry no behaviour beyond
questions about themselves; who may call whom is `xds.policy`, how it looks in Envoy is `xds.envoy`.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

WILDCARD = "*"
"""The name that stands for every service in an intention."""


def usable_name(name: str) -> bool:
    """Whether a service of this name can be asked for: one that changes the path of a URL could stand for another."""
    return bool(name) and name.isprintable() and name not in (".", "..") and not set("/\\?#%") & set(name)


def is_ip(text: str) -> bool:
    """Whether ``text`` is an IP address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


class Health(enum.Enum):
    """The worst of an instance's checks, its node's included (Consul: passing, warning, critical)."""

    PASSING = "passing"
    WARNING = "warning"
    CRITICAL = "critical"


class ProxyMode(enum.Enum):
    """How applications reach their upstreams through a sidecar (Consul: ``Proxy.Mode``)."""

    TRANSPARENT = "transparent"
    DIRECT = "direct"


@dataclass(frozen=True, slots=True)
class ExposedPath:
    """A path of the application that is reached in plain HTTP, past mutual TLS (Consul: ``Expose.Paths``)."""

    path: str
    listener_port: int
    local_port: int


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """The settings that a sidecar's registration, the service-defaults and the proxy-defaults can each give.

    ``None`` means "not said here", so that the next level decides. Times are in milliseconds as in Consul.
    """

    mode: ProxyMode | None = None
    fallback_mode: ProxyMode | None = None
    """``Config["mode"]``: where a Consul before 1.10, which refuses ``Proxy.Mode``, can carry it."""
    outbound_listener_port: int | None = None
    bind_address: str | None = None
    bind_port: int | None = None
    local_connect_timeout_ms: int | None = None
    max_inbound_connections: int | None = None
    dialed_directly: bool | None = None
    """Whether others may dial this instance's own address, and reach it through the mesh."""
    exposed_paths: tuple[ExposedPath, ...] | None = None

    def over(self, lower: ProxySettings) -> ProxySettings:
        """These settings, with what they leave open taken from ``lower``."""
        said = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}
        return replace(lower, **said)


@dataclass(frozen=True, slots=True)
class ExplicitUpstream:
    """An upstream that a registration names itself, with the local address its application dials."""

    name: str
    datacenter: str
    local_bind_address: str
    local_bind_port: int
    connect_timeout_ms: int | None = None
    refusal: str | None = None
    """Why Gossamer can't serve it (an unsupported kind, say); ``None`` when it can."""


@dataclass(frozen=True, slots=True)
class Sidecar:
    """The proxy part of a registration: what an Envoy that shows this service ID is to become."""

    service_id: str
    node: str
    service: str
    """The destination service: whose traffic this proxy carries."""
    address: str
    """The address that was registered for the service; empty when the node's is used."""
    port: int
    local_service_address: str
    local_service_port: int
    local_service_socket_path: str
    settings: ProxySettings
    upstreams: tuple[ExplicitUpstream, ...] = ()
    problems: tuple[str, ...] = ()
    """What the registration says that can't be followed, each a sentence for the operator."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One way to reach a service through the mesh: a sidecar, or an application that speaks mutual TLS itself."""

    service_id: str
    node: str
    address: str
    port: int
    health: Health
    weight_passing: int
    weight_warning: int
    virtual_ips: tuple[str, ...]
    create_index: int
    sidecar: Sidecar | None = None
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ServiceInstances:
    """All instances of one service, ordered by node and service ID."""

    service: str
    instances: tuple[Instance, ...] = ()


@dataclass(frozen=True, slots=True)
class DiscoveryChain:
    """What the discovery chain of a service says about reaching it."""

    service: str
    virtual_ips: tuple[str, ...] = ()
    connect_timeout_ms: int = 5000
    refusal: str | None = None
    """Why this chain can't be followed; its service is then set aside as an upstream rather than routed wrongly."""
    problems: tuple[str, ...] = ()
    """What of it is not followed, though the service is served."""


class Action(enum.Enum):
    """What an intention does with a connection. ``PERMISSIONS``: it depends on the HTTP request."""

    ALLOW = "allow"
    DENY = "deny"
    PERMISSIONS = "permissions"


@dataclass(frozen=True, slots=True)
class Intention:
    """One Service Intention between two services of this cluster; either name can be `WILDCARD`."""

    source: str
    destination: str
    action: Action


@dataclass(frozen=True, slots=True)
class Roots:
    """The certificate authorities that the mesh trusts, and the trust domain of its SPIFFE IDs."""

    trust_domain: str
    certificates: tuple[str, ...]
    """PEM, the active root first."""


@dataclass(frozen=True, slots=True, order=True)
class LeafKey:
    """A leaf certificate belongs to a service, and to the token that was allowed to fetch it."""

    service: str
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Leaf:
    """A service's certificate and private key, PEM."""

    service: str
    certificate_chain: str
    private_key: str = field(repr=False)
    serial_number: str = ""


@dataclass(frozen=True, slots=True)
class LeafRefused:
    """Consul would not give this leaf certificate; ``reason`` is its answer and what to do about it."""

    reason: str


@dataclass(frozen=True, slots=True)
class ConfigEntries:
    """The config entries that shape sidecars; the parts that Gossamer follows."""

    proxy_defaults: ProxySettings = ProxySettings()
    service_defaults: Mapping[str, ProxySettings] = field(default_factory=dict)
    mesh_destinations_only: bool = False
    problems: tuple[str, ...] = ()

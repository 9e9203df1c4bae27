"""Facts of a mesh, in Consul's vocabulary.

Every fact is frozen and compares by value, so a change is found with ``==``. Facts have no behaviour beyond queries
about themselves; `xds.policy` decides who may call whom, `xds.envoy` encodes it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import NamedTuple

from xds.mesh.config_entries import ProxySettings, UpstreamSettings


class Health(enum.Enum):
    """Worst of an instance's checks and its node's (Consul: passing, warning, maintenance, critical)."""

    PASSING = "passing"
    WARNING = "warning"
    MAINTENANCE = "maintenance"
    """Set by an operator (``consul maint``); no check of it fails."""
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True)
class ExplicitUpstream:
    """An upstream that a registration names itself, with the local address its application dials."""

    name: str
    datacenter: str
    local_bind_address: str
    local_bind_port: int
    local_bind_socket_path: str = ""
    local_bind_socket_mode: int = 0
    settings: UpstreamSettings = UpstreamSettings()
    prepared_query: bool = False
    """Whether ``name`` is a prepared query's."""
    refusal: str | None = None
    """Reason why Gossamer can't serve it (an unsupported kind, say); ``None`` when it can."""


@dataclass(frozen=True, slots=True)
class Sidecar:
    """Proxy part of a registration: the configuration of an Envoy with this service ID."""

    service_id: str
    node: str
    service: str
    """Destination service, whose traffic this proxy carries."""
    address: str
    """The address that was registered for the service; empty when the node's is used."""
    port: int
    local_service_address: str
    local_service_port: int
    local_service_socket_path: str
    settings: ProxySettings
    upstreams: tuple[ExplicitUpstream, ...] = ()
    problems: tuple[str, ...] = ()
    """Problems of the registration, each a sentence for the operator."""


ANY_PORT = 0


class VirtualAddress(NamedTuple):
    """Address and port at which a service is dialed; `ANY_PORT` where the port makes no difference.

    A tuple, since thousands are sorted and looked up.
    """

    ip: str
    port: int = ANY_PORT
    own: bool = False
    """Whether it is one instance's own address, of which the mesh uses this one port."""
    assigned: bool = False
    """Whether Consul's servers or a mesh file assigned it to the service; otherwise it is only claimed."""


@dataclass(frozen=True, slots=True)
class Instance:
    """Instance of a service in the mesh: a sidecar, or an application that speaks mutual TLS itself."""

    service_id: str
    node: str
    address: str
    port: int
    health: Health
    weight_passing: int
    weight_warning: int
    virtual_ips: tuple[VirtualAddress, ...]
    create_index: int
    sidecar: Sidecar | None = None
    name: str = ""
    """The name that it is registered under: a sidecar's own, not its service's."""
    service_address: str = ""
    """The address that was registered for the service; empty when the node's is used."""
    tags: tuple[str, ...] = ()
    meta: tuple[tuple[str, str], ...] = ()
    node_address: str = ""
    node_meta: tuple[tuple[str, str], ...] = ()
    datacenter: str = ""
    """Datacenter of the instance if it is stated, otherwise the one that was asked."""
    problems: tuple[str, ...] = ()
    is_gateway: bool = False
    """Whether it is a terminating gateway that is linked to the service, which needs an operator's rights."""

    @property
    def service(self) -> str:
        """The service that is reached through it."""
        return self.sidecar.service if self.sidecar else self.name

    @property
    def application_port(self) -> int:
        """The port of the application behind it; `ANY_PORT` where that is not known."""
        return self.sidecar.local_service_port if self.sidecar else self.port


@dataclass(frozen=True, slots=True)
class ServiceInstances:
    """All instances of one service, ordered by node and service ID."""

    service: str
    instances: tuple[Instance, ...] = ()
    problems: tuple[str, ...] = ()
    """Problems: what is left out of them."""


@dataclass(frozen=True, slots=True)
class Roots:
    """The certificate authorities that the mesh trusts, and the trust domain of its SPIFFE IDs."""

    trust_domain: str
    certificates: tuple[str, ...]
    """PEM, the active root first."""

    def pem(self) -> str:
        """Return all certificates as the content of one file."""
        return "".join(f"{certificate.strip()}\n" for certificate in self.certificates)


@dataclass(frozen=True, slots=True, order=True)
class LeafKey:
    """Key of a leaf certificate: its service, and the token that was allowed to fetch it."""

    service: str
    token: str = field(repr=False)
    certified: bool = False
    """Whether the service is proved without a token of its own: Gossamer's own token fetches the certificate."""


CONTROL_PLANE_SERVICE = "gossamer"
"""Service whose certificate the control plane serves xDS with. A client that may have it can act as the control plane.
"""
CONTROL_PLANE_LEAF = LeafKey(CONTROL_PLANE_SERVICE, "", certified=True)
"""The leaf certificate of the control plane itself, which it may have by its own token."""
CONTROL_PLANE_CERTIFICATE = "certificate of the xDS port"
"""Its name in ``/ready``."""


@dataclass(frozen=True, slots=True, order=True)
class StreamKey:
    """Key of one stream of a proxy: who it says it is, and a number that no other stream has.

    Each stream is authorized anew, because a token may have been deleted since.
    """

    leaf: LeafKey
    number: str

    def __hash__(self) -> int:
        """Return the hash of the number alone, which is unique; sets of thousands of streams are compared often."""
        return hash(self.number)


@dataclass(frozen=True, slots=True)
class Authorized:
    """Definite answer that the token of a stream may act for its service."""


@dataclass(frozen=True, slots=True)
class StreamRefused:
    """Definite answer that the client of a stream may not act for its service."""

    reason: str
    """The right that is missing and what to do, for the client; it holds no token."""
    unauthenticated: bool = False
    """Whether the client is unknown, because its token is missing or unknown."""


@dataclass(frozen=True, slots=True)
class StreamUndecided:
    """Reason why it is unknown at the moment whether the token of a stream may act for its service."""

    reason: str


@dataclass(frozen=True, slots=True)
class Leaf:
    """A service's certificate and private key, PEM."""

    service: str
    certificate_chain: str
    private_key: str = field(repr=False)
    serial_number: str = ""


@dataclass(frozen=True, slots=True)
class LeafRefused:
    """Refusal of a certificate, because a token may not act for its service; ``reason`` says why and what to do."""

    reason: str

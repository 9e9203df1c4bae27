"""The facts Gossamer knows of a mesh, in Consul's words.

Every fact is frozen and compares by value, so "did anything change?" is ``==``. Facts carry no behaviour beyond
questions about themselves; who may call whom is `xds.policy`, how it looks in Envoy is `xds.envoy`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import NamedTuple

from xds.mesh.settings import ProxySettings, UpstreamSettings


class Health(enum.Enum):
    """The worst of an instance's checks, its node's included (Consul: passing, warning, maintenance, critical)."""

    PASSING = "passing"
    WARNING = "warning"
    MAINTENANCE = "maintenance"
    """Somebody said so (``consul maint``); no check of it fails."""
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


ANY_PORT = 0


class VirtualAddress(NamedTuple):
    """An address at which a service is dialed, and the port; `ANY_PORT` where that makes no difference.

    A tuple, since thousands are sorted and looked up.
    """

    ip: str
    port: int = ANY_PORT
    own: bool = False
    """Whether it is one instance's own address, of which the mesh takes this one port."""
    assigned: bool = False
    """Whether it was given to the service, by Consul's servers or in a mesh file; else it is only claimed for it."""


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
    """Where it is, if that is said; else where it was asked for."""
    problems: tuple[str, ...] = ()
    is_gateway: bool = False
    """Whether it is a terminating gateway that the service is linked to, which takes an operator's rights."""

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
    """What of them is left out."""


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
    """A leaf certificate belongs to a service, and to the token that was allowed to fetch it."""

    service: str
    token: str = field(repr=False)
    certified: bool = False
    """Whether the service is proved without a token of its own: Gossamer's own token fetches the certificate."""


CONTROL_PLANE_SERVICE = "gossamer"
"""The service whose certificate the control plane serves xDS with. Who may have it can act as the control plane."""
CONTROL_PLANE_LEAF = LeafKey(CONTROL_PLANE_SERVICE, "", certified=True)
"""The leaf certificate of the control plane itself, which it may have by its own token."""
CONTROL_PLANE_CERTIFICATE = "certificate of the xDS port"
"""Its name in ``/ready``."""


@dataclass(frozen=True, slots=True, order=True)
class StreamKey:
    """One stream of a proxy: who it says it is, and a number that no other stream has.

    Whether its token may act for its service is asked for each stream anew: a token may have been deleted since.
    """

    leaf: LeafKey
    number: str

    def __hash__(self) -> int:
        """Return the hash of the number alone, which is unique; sets of thousands of streams are compared often."""
        return hash(self.number)


@dataclass(frozen=True, slots=True)
class Authorized:
    """The token of a stream may act for its service."""


@dataclass(frozen=True, slots=True)
class StreamRefused:
    """The definite answer that the client of a stream may not act for its service."""

    reason: str
    """The right that is missing and what to do, for the client; it holds no token."""
    unauthenticated: bool = False
    """Whether it is not known who the client is, because its token is missing or unknown."""


@dataclass(frozen=True, slots=True)
class StreamUndecided:
    """The reason why it can't be found out now whether the token of a stream may act for its service."""

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
    """A token may not act for a service, so it is given no certificate of it; ``reason`` says why and what to do."""

    reason: str

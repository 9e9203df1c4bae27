"""Settings of sidecars: those of the registration, and the config entries that supply what it leaves open."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TypeVar

from xds.mesh.intentions import TokenProvider
from xds.mesh.names import fold


class ProxyMode(enum.Enum):
    """Mode in which applications reach their upstreams through a sidecar (Consul: ``Proxy.Mode``)."""

    TRANSPARENT = "transparent"
    DIRECT = "direct"


class ClusterMode(enum.Enum):
    """Time at which a sidecar is sent the clusters of its implicit upstreams."""

    EAGER = "eager"
    """All of them at once."""
    ON_DEMAND = "on-demand"
    """Each when it is first dialed."""
    AUTO = "auto"
    """Eager as long as they are few."""


@dataclass(frozen=True, slots=True)
class ExposedPath:
    """A path of the application that is reached in plain HTTP, past mutual TLS (Consul: ``Expose.Paths``)."""

    path: str
    listener_port: int
    local_port: int
    http2: bool = False


@dataclass(frozen=True, slots=True)
class AccessLogs:
    """Destination and format of the logs of connections and requests (Consul: ``AccessLogs`` of the proxy-defaults)."""

    sink: str = "stdout"
    """``stdout``, ``stderr`` or ``file``."""
    path: str = ""
    json_format: str = ""
    """JSON; empty for Consul's own format."""
    text_format: str = ""
    listener_logs: bool = True
    """Whether connections that no filter chain accepts are logged as well."""


@dataclass(frozen=True, slots=True)
class PassiveHealthCheck:
    """Conditions under which an instance is ejected because of its responses; ``None`` leaves them to Envoy."""

    interval_ms: int | None = None
    max_failures: int | None = None
    enforcing_consecutive_5xx: int | None = None
    max_ejection_percent: int | None = None
    base_ejection_time_ms: int | None = None


@dataclass(frozen=True, slots=True)
class UpstreamSettings:
    """Settings for one service's calls to another. ``None`` and an empty text mean "not given here"."""

    protocol: str | None = None
    connect_timeout_ms: int | None = None
    max_connections: int | None = None
    max_pending_requests: int | None = None
    max_concurrent_requests: int | None = None
    passive_health_check: PassiveHealthCheck | None = None
    mesh_gateway: str | None = None
    balance_connections: bool | None = None
    listener_json: str | None = None
    cluster_json: str | None = None

    def over(self, lower: UpstreamSettings) -> UpstreamSettings:
        """Return these settings, with what they leave open from ``lower``."""
        return _over(self, lower)


@dataclass(frozen=True, slots=True)
class Extension:
    """Envoy extension of Consul's (``EnvoyExtensions``); its arguments as JSON."""

    name: str
    required: bool
    arguments: str
    forbidden: bool = False
    """Whether the operator forbids it."""


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """The settings that a sidecar's registration, the service-defaults and the proxy-defaults can each give.

    ``None`` means "not given here", so that the next level decides. Times are in milliseconds as in Consul.
    """

    mode: ProxyMode | None = None
    fallback_mode: ProxyMode | None = None
    """``Config["mode"]``: where a Consul before 1.10, which refuses ``Proxy.Mode``, can carry it."""
    outbound_listener_port: int | None = None
    clusters: ClusterMode | None = None
    bind_address: str | None = None
    bind_port: int | None = None
    protocol: str | None = None
    local_connect_timeout_ms: int | None = None
    local_request_timeout_ms: int | None = None
    """0 is no limit."""
    local_idle_timeout_ms: int | None = None
    max_inbound_connections: int | None = None
    balance_inbound_connections: bool | None = None
    max_request_headers_kb: int | None = None
    permissive_mtls: bool | None = None
    """Whether connections from outside the mesh reach the application on its own port unchanged."""
    access_logs: AccessLogs | None = None
    tracing_json: str | None = None
    public_listener_json: str | None = None
    local_cluster_json: str | None = None
    extensions: tuple[Extension, ...] | None = None
    mesh_gateway: str | None = None
    dialed_directly: bool | None = None
    """Whether others may dial this instance's own address, and reach it through the mesh."""
    exposed_paths: tuple[ExposedPath, ...] | None = None
    upstream_defaults: UpstreamSettings | None = None
    upstream_overrides: Mapping[str, UpstreamSettings] | None = None

    def over(self, lower: ProxySettings) -> ProxySettings:
        """Return these settings, with what they leave open from ``lower``."""
        return _over(self, lower)


_FIELDS = {each: tuple(field.name for field in fields(each)) for each in (UpstreamSettings, ProxySettings)}
_Settings = TypeVar("_Settings", UpstreamSettings, ProxySettings)


def _over(upper: _Settings, lower: _Settings) -> _Settings:
    """Combine settings. Written by hand, since ``dataclasses.replace`` is slow and this runs for every sidecar whenever
    config entries or intentions change."""
    names = _FIELDS[type(upper)]
    values = ((getattr(upper, name), getattr(lower, name)) for name in names)
    return type(upper)(*(below if above is None else above for above, below in values))


@dataclass(frozen=True, slots=True)
class TLSParameters:
    """Versions in Envoy's words (``TLSv1_2``) and cipher suites; empty leaves it to Envoy."""

    minimum: str = ""
    maximum: str = ""
    cipher_suites: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MeshSettings:
    """Settings of the whole mesh (Consul: the ``mesh`` entry)."""

    destinations_only: bool = False
    allow_permissive_mtls: bool = False
    incoming_tls: TLSParameters = TLSParameters()
    outgoing_tls: TLSParameters = TLSParameters()
    sanitize_client_cert: bool = False
    """Whether ``x-forwarded-client-cert``, which names the caller, is kept from applications."""
    normalize_path: bool = True
    merge_slashes: bool = False
    escaped_slashes: str = ""
    """Treatment of ``%2F`` in a path, in Envoy's words."""
    headers_with_underscores: str = ""
    """Treatment of such headers, in Envoy's words."""


@dataclass(frozen=True, slots=True)
class Destination:
    """Place outside the mesh where a service is, reached through a terminating gateway: IP addresses or host names."""

    addresses: tuple[str, ...]
    port: int


@dataclass(frozen=True, slots=True)
class EntryProblem:
    """Problem of a config entry; ``text`` begins with the field."""

    kind: str
    name: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}: {self.text}"

    def concerns(self, service: str) -> bool:
        """Return whether it is about the sidecars of ``service``: of their own entry, or one for all."""
        return self.kind != "service-defaults" or fold(self.name) == fold(service)


@dataclass(frozen=True, slots=True)
class ConfigEntries:
    """The config entries that shape sidecars; the parts that Gossamer follows.

    Mappings by service use folded names, because Consul considers all spellings one service.
    """

    proxy_defaults: ProxySettings = ProxySettings()
    service_defaults: Mapping[str, ProxySettings] = field(default_factory=dict)
    mesh: MeshSettings = MeshSettings()
    token_providers: Mapping[str, TokenProvider] = field(default_factory=dict)
    destinations: Mapping[str, Destination] = field(default_factory=dict)
    chain_names: frozenset[str] = frozenset()
    """Services that some router, splitter, resolver or defaults name: upstreams even without instances."""
    problems: tuple[EntryProblem, ...] = ()

    def defaults_of(self, service: str) -> ProxySettings:
        """Return the service-defaults of ``service``; empty ones where there are none."""
        return self.service_defaults.get(fold(service), NOTHING_SAID)

    def destination_of(self, service: str) -> Destination | None:
        """Return where outside the mesh ``service`` is, ``None`` where it is inside."""
        return self.destinations.get(fold(service))


NOTHING_SAID = ProxySettings()

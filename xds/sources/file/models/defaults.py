"""Defaults of sidecars, what holds for the whole mesh, and what is outside of it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from xds.sources.file.models.values import (
    Anything,
    Count,
    EntryBase,
    Exact,
    GoDuration,
    Name,
    Port,
    UsedPort,
)


class TransparentProxyEntry(Exact):
    """How transparent sidecars listen, unless their registration says otherwise."""

    OutboundListenerPort: Port = 0
    DialedDirectly: bool = False
    """Whether others may dial an instance's own address, and reach it through the mesh."""


class ExposedPathEntry(Exact):
    """A path that is reached without mutual TLS."""

    Path: str = Field(pattern="^/")
    ListenerPort: UsedPort
    LocalPathPort: UsedPort
    Protocol: Literal["", "http", "http2"] = ""


class ExposeEntry(Exact):
    """What is reached past mutual TLS."""

    Checks: bool = False
    Paths: list[ExposedPathEntry] = []


class MeshGatewayEntry(Exact):
    """How services in other datacenters are reached."""

    Mode: Literal["", "none", "local", "remote"] = ""


class EnvoyExtensionEntry(Exact):
    """One of Consul's Envoy extensions."""

    Name: str = Field(min_length=1)
    Required: bool = False
    Arguments: Anything = {}
    ConsulVersion: str = ""
    EnvoyVersion: str = ""


class UpstreamLimitsEntry(Exact):
    """How much is asked of an upstream at once."""

    MaxConnections: Count | None = None
    MaxPendingRequests: Count | None = None
    MaxConcurrentRequests: Count | None = None


class PassiveHealthCheckEntry(Exact):
    """When an instance is left alone because of what it answered."""

    Interval: GoDuration = ""
    MaxFailures: Count = 0
    EnforcingConsecutive5xx: Annotated[int, Field(ge=0, le=100)] | None = None
    MaxEjectionPercent: Annotated[int, Field(ge=0, le=100)] | None = None
    BaseEjectionTime: GoDuration = ""


class UpstreamSettingsEntry(Exact):
    """How an upstream is called."""

    Name: str = ""
    Namespace: str = ""
    Partition: str = ""
    Peer: str = ""
    EnvoyListenerJSON: str = ""
    EnvoyClusterJSON: str = ""
    Protocol: str = ""
    ConnectTimeoutMs: Count = 0
    Limits: UpstreamLimitsEntry = UpstreamLimitsEntry()
    PassiveHealthCheck: PassiveHealthCheckEntry | None = None
    MeshGateway: MeshGatewayEntry = MeshGatewayEntry()
    BalanceOutboundConnections: Literal["", "exact_balance"] = ""


class UpstreamConfigEntry(Exact):
    """How a service calls its upstreams."""

    Defaults: UpstreamSettingsEntry | None = None
    Overrides: list[UpstreamSettingsEntry] = []


class AccessLogsEntry(Exact):
    """Where and how connections and requests are logged."""

    Enabled: bool = False
    DisableListenerLogs: bool = False
    Type: Literal["", "stdout", "stderr", "file"] = ""
    Path: str = ""
    JSONFormat: str = ""
    TextFormat: str = ""


class _ProxyDefaultsBase(EntryBase):
    Mode: Literal["", "transparent", "direct"] = ""
    TransparentProxy: TransparentProxyEntry = TransparentProxyEntry()
    MutualTLSMode: Literal["", "strict", "permissive"] = ""
    MeshGateway: MeshGatewayEntry = MeshGatewayEntry()
    Expose: ExposeEntry = ExposeEntry()
    EnvoyExtensions: list[EnvoyExtensionEntry] = []


class DestinationEntry(Exact):
    """Where outside the mesh the service is, reached through a terminating gateway."""

    Addresses: list[str] = Field(min_length=1)
    """IP addresses or host names."""
    Port: UsedPort


class ServiceDefaults(_ProxyDefaultsBase):
    """Settings for all sidecars of one service."""

    Kind: Literal["service-defaults"]
    Name: Name
    Protocol: str = ""
    MaxInboundConnections: Count = 0
    LocalConnectTimeoutMs: Count = 0
    LocalRequestTimeoutMs: Count = 0
    BalanceInboundConnections: Literal["", "exact_balance"] = ""
    RateLimits: Anything = {}
    ExternalSNI: str = ""
    UpstreamConfig: UpstreamConfigEntry = UpstreamConfigEntry()
    Destination: DestinationEntry | None = None


class ProxyDefaults(_ProxyDefaultsBase):
    """Settings for all sidecars."""

    Kind: Literal["proxy-defaults"]
    Name: Literal["global"]
    Config: Anything = {}
    AccessLogs: AccessLogsEntry = AccessLogsEntry()
    FailoverPolicy: Anything = {}
    PrioritizeByLocality: Anything = {}


class MeshTransparentProxy(Exact):
    """What holds for transparent sidecars."""

    MeshDestinationsOnly: bool = False
    """No way past the mesh: a connection to any other address is refused."""


TLSVersion = Literal["", "TLS_AUTO", "TLSv1_0", "TLSv1_1", "TLSv1_2", "TLSv1_3"]


class MeshTLSDirection(Exact):
    """Versions and cipher suites."""

    TLSMinVersion: TLSVersion = ""
    TLSMaxVersion: TLSVersion = ""
    CipherSuites: list[str] = []


class MeshTLS(Exact):
    """What TLS between sidecars has to be."""

    Incoming: MeshTLSDirection = MeshTLSDirection()
    Outgoing: MeshTLSDirection = MeshTLSDirection()


class RequestNormalizationEntry(Exact):
    """What is settled about a path or a header before the intentions judge it."""

    InsecureDisablePathNormalization: bool = False
    MergeSlashes: bool = False
    PathWithEscapedSlashesAction: Literal[
        "", "IMPLEMENTATION_SPECIFIC_DEFAULT", "KEEP_UNCHANGED", "REJECT_REQUEST", "UNESCAPE_AND_REDIRECT",
        "UNESCAPE_AND_FORWARD",
    ] = ""  # fmt: skip
    HeadersWithUnderscoresAction: Literal["", "ALLOW", "REJECT_REQUEST", "DROP_HEADER"] = ""


class MeshHTTPIncoming(Exact):
    """Of requests that come in."""

    RequestNormalization: RequestNormalizationEntry = RequestNormalizationEntry()


class MeshHTTP(Exact):
    """What holds for HTTP between sidecars."""

    SanitizeXForwardedClientCert: bool = False
    Incoming: MeshHTTPIncoming = MeshHTTPIncoming()


class MeshEntry(EntryBase):
    """What holds for the whole mesh."""

    Kind: Literal["mesh"]
    TransparentProxy: MeshTransparentProxy = MeshTransparentProxy()
    AllowEnablingPermissiveMutualTLS: bool = False
    TLS: MeshTLS = MeshTLS()
    HTTP: MeshHTTP = MeshHTTP()
    Peering: Anything = {}


class LinkedService(Exact):
    """A service outside the mesh that a terminating gateway speaks for."""

    Name: Name
    Namespace: str = ""
    CAFile: str = ""
    CertFile: str = ""
    KeyFile: str = ""
    SNI: str = ""
    DisableAutoHostRewrite: bool = False


class TerminatingGateway(EntryBase):
    """The services outside the mesh that the instances of a terminating gateway speak for.

    The gateway itself is not served: what is said here is where its services are found.
    """

    Kind: Literal["terminating-gateway"]
    Name: Name
    Services: list[LinkedService] = []

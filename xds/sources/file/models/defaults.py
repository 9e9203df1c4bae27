"""Models of the defaults of sidecars, the settings of the whole mesh, and terminating gateways."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from xds.mesh.addresses import is_ip
from xds.mesh.names import WILDCARD
from xds.sources.decode.config_entries import CIPHER_SUITES, HOST_NAME, TLS_VERSIONS_IN_ORDER
from xds.sources.file.models.values import (
    Anything,
    Count,
    EntryBase,
    Exact,
    Name,
    Port,
    PositiveDuration,
    ServiceName,
    UsedPort,
)


class TransparentProxyEntry(Exact):
    """Listener of transparent sidecars, unless their registration says otherwise."""

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
    """Paths that are reached without mutual TLS."""

    Checks: bool = False
    Paths: list[ExposedPathEntry] = []


class MeshGatewayEntry(Exact):
    """Way to services in other datacenters."""

    Mode: Literal["", "none", "local", "remote"] = ""


class EnvoyExtensionEntry(Exact):
    """Envoy extension of Consul's."""

    Name: str = Field(min_length=1)
    Required: bool = False
    Arguments: Anything = {}
    ConsulVersion: str = ""
    EnvoyVersion: str = ""


class UpstreamLimitsEntry(Exact):
    """Limits on concurrent calls of an upstream."""

    MaxConnections: Count | None = None
    MaxPendingRequests: Count | None = None
    MaxConcurrentRequests: Count | None = None


class PassiveHealthCheckEntry(Exact):
    """Conditions under which an instance is ejected because of its responses."""

    Interval: PositiveDuration = ""
    MaxFailures: Count = 0
    EnforcingConsecutive5xx: Annotated[int, Field(ge=0, le=100)] | None = None
    MaxEjectionPercent: Annotated[int, Field(ge=0, le=100)] | None = None
    BaseEjectionTime: PositiveDuration = ""


class UpstreamSettingsEntry(Exact):
    """Settings for calls of an upstream."""

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
    """Settings for calls of a service's upstreams."""

    Defaults: UpstreamSettingsEntry | None = None
    Overrides: list[UpstreamSettingsEntry] = []

    @model_validator(mode="after")
    def _are_named(self) -> UpstreamConfigEntry:
        said = self.Defaults
        if said is not None and (said.Name or said.Namespace or said.Partition):
            raise ValueError("Defaults: they are for every upstream, so they have no Name, Namespace or Partition")
        for number, each in enumerate(self.Overrides):
            if each.Name in ("", WILDCARD):
                raise ValueError(f"Overrides[{number}]: expected the Name of one upstream")
        return self


class AccessLogsEntry(Exact):
    """Destination and format of the logs of connections and requests."""

    Enabled: bool = False
    DisableListenerLogs: bool = False
    Type: Literal["", "stdout", "stderr", "file"] = ""
    Path: str = ""
    JSONFormat: str = ""
    TextFormat: str = ""

    @model_validator(mode="after")
    def _fits(self) -> AccessLogsEntry:
        if (self.Type == "file") != bool(self.Path):
            raise ValueError("a Path is for Type: file, which needs one")
        if self.JSONFormat and self.TextFormat:
            raise ValueError("give either JSONFormat or TextFormat")
        try:
            json.loads(self.JSONFormat or "{}")
        except ValueError as error:
            raise ValueError(f"JSONFormat: not JSON: {error}") from None
        return self


class _ProxyDefaultsBase(EntryBase):
    Mode: Literal["", "transparent", "direct"] = ""
    TransparentProxy: TransparentProxyEntry = TransparentProxyEntry()
    MutualTLSMode: Literal["", "strict", "permissive"] = ""
    MeshGateway: MeshGatewayEntry = MeshGatewayEntry()
    Expose: ExposeEntry = ExposeEntry()
    EnvoyExtensions: list[EnvoyExtensionEntry] = []


def _host_or_ip(text: str) -> str:
    if not (is_ip(text) or HOST_NAME.fullmatch(text)):
        raise ValueError("expected an IP address or a host name")
    return text


def _different(addresses: list[str]) -> list[str]:
    if len(set(addresses)) != len(addresses):
        raise ValueError("an address is given twice")
    return addresses


HostOrIP = Annotated[str, AfterValidator(_host_or_ip)]


class DestinationEntry(Exact):
    """Place outside the mesh where the service is, reached through a terminating gateway."""

    Addresses: Annotated[list[HostOrIP], AfterValidator(_different)] = Field(min_length=1)
    """IP addresses or host names."""
    Port: UsedPort


class ServiceDefaults(_ProxyDefaultsBase):
    """Settings for all sidecars of one service."""

    Kind: Literal["service-defaults"]
    Name: ServiceName
    Protocol: str = ""
    MaxInboundConnections: Count = 0
    LocalConnectTimeoutMs: Count = 0
    LocalRequestTimeoutMs: Count = 0
    BalanceInboundConnections: Literal["", "exact_balance"] = ""
    RateLimits: Anything = {}
    ExternalSNI: str = ""
    UpstreamConfig: UpstreamConfigEntry | None = None
    Destination: DestinationEntry | None = None
    MaxRequestHeadersKB: Annotated[int, Field(ge=0, le=8192)] = 0
    """Newer than Consul 1.16."""

    @model_validator(mode="after")
    def _is_in_or_out(self) -> ServiceDefaults:
        if self.UpstreamConfig is not None and self.Destination is not None:
            raise ValueError(
                "UpstreamConfig and Destination exclude each other: a service is in the mesh or outside of it"
            )
        return self


class ProxyDefaults(_ProxyDefaultsBase):
    """Settings for all sidecars."""

    Kind: Literal["proxy-defaults"]
    Name: Literal["global"]
    Config: Anything = {}
    AccessLogs: AccessLogsEntry = AccessLogsEntry()
    FailoverPolicy: Anything = {}
    PrioritizeByLocality: Anything = {}
    MaxRequestHeadersKB: Annotated[int, Field(ge=0, le=8192)] = 0
    """Newer than Consul 1.16."""


class MeshTransparentProxy(Exact):
    """Settings of transparent sidecars."""

    MeshDestinationsOnly: bool = False
    """Whether connections to any address outside the mesh are refused."""


TLSVersion = Literal["", "TLS_AUTO", "TLSv1_0", "TLSv1_1", "TLSv1_2", "TLSv1_3"]


class MeshTLSDirection(Exact):
    """Versions and cipher suites."""

    TLSMinVersion: TLSVersion = ""
    TLSMaxVersion: TLSVersion = ""
    CipherSuites: list[Literal[CIPHER_SUITES]] = []  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _fits(self) -> MeshTLSDirection:
        given = {self.TLSMinVersion, self.TLSMaxVersion} <= set(TLS_VERSIONS_IN_ORDER)
        if given and self.TLSMaxVersion < self.TLSMinVersion:
            raise ValueError(f"TLSMaxVersion {self.TLSMaxVersion} is less than TLSMinVersion {self.TLSMinVersion}")
        if self.CipherSuites and self.TLSMinVersion == "TLSv1_3":
            raise ValueError("CipherSuites are for TLS 1.2 and older; with TLS 1.3 there is nothing to choose")
        return self


class MeshTLS(Exact):
    """Requirements of TLS between sidecars."""

    Incoming: MeshTLSDirection = MeshTLSDirection()
    Outgoing: MeshTLSDirection = MeshTLSDirection()


class RequestNormalizationEntry(Exact):
    """Normalization of paths and headers before the intentions judge them."""

    InsecureDisablePathNormalization: bool = False
    MergeSlashes: bool = False
    PathWithEscapedSlashesAction: Literal[
        "", "IMPLEMENTATION_SPECIFIC_DEFAULT", "KEEP_UNCHANGED", "REJECT_REQUEST", "UNESCAPE_AND_REDIRECT",
        "UNESCAPE_AND_FORWARD",
    ] = ""  # fmt: skip
    HeadersWithUnderscoresAction: Literal["", "ALLOW", "REJECT_REQUEST", "DROP_HEADER"] = ""


class MeshHTTPIncoming(Exact):
    """Settings of incoming requests."""

    RequestNormalization: RequestNormalizationEntry = RequestNormalizationEntry()


class MeshHTTP(Exact):
    """Settings of HTTP between sidecars."""

    SanitizeXForwardedClientCert: bool = False
    Incoming: MeshHTTPIncoming = MeshHTTPIncoming()


class MeshEntry(EntryBase):
    """Settings of the whole mesh."""

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

    @model_validator(mode="after")
    def _is_whole(self) -> LinkedService:
        if (self.CertFile or self.KeyFile) and not (self.CAFile and self.CertFile and self.KeyFile):
            raise ValueError("a client certificate takes CertFile, KeyFile and CAFile")
        return self


class TerminatingGateway(EntryBase):
    """The services outside the mesh that the instances of a terminating gateway speak for.

    The gateway itself is not served: what is said here is where its services are found.
    """

    Kind: Literal["terminating-gateway"]
    Name: Name
    Services: list[LinkedService] = []

    @model_validator(mode="after")
    def _each_once(self) -> TerminatingGateway:
        names = [(each.Name, each.Namespace) for each in self.Services]
        repeated = next((name for name, space in names if names.count((name, space)) > 1), None)
        if repeated is not None:
            raise ValueError(f"Services: {repeated!r} is given more than once")
        return self

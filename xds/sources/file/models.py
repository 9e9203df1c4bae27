"""What a mesh file may say: a piece of a Consul agent's configuration, typed.

``services`` holds what ``consul services register`` takes, ``config_entries.bootstrap`` what ``consul config write``
takes, each in Consul's own spelling and no other, so that what is accepted here Consul accepts as well. A field that
Consul has and Gossamer does not follow is accepted; one that Consul does not have is refused. The JSON Schema that
editors complete the file by is made of these models.

Sources: Consul, "Service definition reference" and "Configuration entries"; what Consul 1.16 accepts.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from xds.mesh.facts import is_ip, usable_name
from xds.policy.filters import FilterError, parse_filter
from xds.sources.decode.values import header_name, milliseconds, regular_expression

Anything = dict[str, Any]
VIRTUAL_TAGS = ("consul-virtual", "virtual")
"""The tagged addresses that are virtual IPs."""


def _name(text: str) -> str:
    if not usable_name(text):
        raise ValueError("a name must not be empty and must hold no slash, backslash, '?', '#' or '%'")
    return text


def _ip(text: str) -> str:
    if text and not is_ip(text):
        raise ValueError("expected an IP address")
    return text


def _virtual_ips_are_there(addresses: dict[str, TaggedAddress]) -> dict[str, TaggedAddress]:
    for tag in VIRTUAL_TAGS:
        if tag in addresses and not addresses[tag].address:
            raise ValueError("expected an IP address")
    return addresses


Name = Annotated[str, AfterValidator(_name)]
IP = Annotated[str, AfterValidator(_ip)]
Port = Annotated[int, Field(ge=0, le=65535)]
UsedPort = Annotated[int, Field(ge=1, le=65535)]
Count = Annotated[int, Field(ge=0)]
Mode = Literal["", "transparent", "direct"]


class _Exact(BaseModel):
    """Refuses what it does not know, and takes no string for a number. A field without a value is not given."""

    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=False, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _without_empty_fields(cls, data: Any) -> Any:
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data


# -- services: the fields of `consul services register` ----------------------------------------------------------------


class TaggedAddress(_Exact):
    """A further address of an instance."""

    address: IP
    port: Port = 0


class Weights(_Exact):
    """How much traffic an instance gets, compared with the others of its service."""

    passing: Count = 1
    warning: Count = 1


class Check(_Exact):
    """A health check. Nobody runs it here: it counts as its ``status``. Consul wants to know what it would run: one of
    ``ttl``, ``http``, ``tcp``, ``udp``, ``grpc``, ``h2ping``, ``args``, ``alias_service``, ``alias_node``,
    ``os_service``.
    """

    id: str = ""
    name: str = ""
    status: Literal["passing", "warning", "critical"] = "passing"
    notes: str = ""
    service_id: str = ""
    token: str = ""
    ttl: str = ""
    http: str = ""
    tcp: str = ""
    udp: str = ""
    grpc: str = ""
    h2ping: str = ""
    args: list[str] = []
    alias_service: str = ""
    alias_node: str = ""
    os_service: str = ""
    interval: str = ""
    timeout: str = ""
    method: str = ""
    header: dict[str, list[str]] = {}
    body: str = ""
    disable_redirects: bool = False
    tcp_use_tls: bool = False
    grpc_use_tls: bool = False
    h2ping_use_tls: bool = False
    tls_server_name: str = ""
    tls_skip_verify: bool = False
    docker_container_id: str = ""
    shell: str = ""
    output_max_size: Count = 0
    success_before_passing: Count = 0
    failures_before_warning: Count = 0
    failures_before_critical: Count = 0
    deregister_critical_service_after: str = ""

    @model_validator(mode="after")
    def _has_a_kind(self) -> Check:
        kinds = "ttl", "http", "tcp", "udp", "grpc", "h2ping", "args", "alias_service", "alias_node", "os_service"
        if not any(getattr(self, kind) for kind in kinds):
            raise ValueError(f"a check needs one of {', '.join(kinds)}, as in {{ ttl: 1h, status: critical }}")
        return self


class Upstream(_Exact):
    """A service that the application reaches at a local address of its own choice."""

    destination_name: Name
    """The service."""
    destination_type: str = "service"
    destination_namespace: str = ""
    destination_partition: str = ""
    destination_peer: str = ""
    datacenter: str = ""
    local_bind_address: IP = ""
    local_bind_port: Port = 0
    """Where the application dials it, at ``local_bind_address``, 127.0.0.1 where none is given."""
    local_bind_socket_path: str = ""
    local_bind_socket_mode: str = ""
    config: Anything = {}
    mesh_gateway: Anything = {}


class TransparentProxy(_Exact):
    """How a transparent sidecar listens."""

    outbound_listener_port: Port = 0
    """The port that the kernel redirects outbound connections to; 15001 where none is given."""
    dialed_directly: bool = False


class ExposedPath(_Exact):
    """A path of the application that is reached without mutual TLS, for health probes and metrics."""

    path: str = Field(pattern="^/")
    listener_port: UsedPort
    local_path_port: UsedPort
    protocol: Literal["", "http", "http2"] = ""


class Expose(_Exact):
    """What is reached past mutual TLS."""

    checks: bool = False
    paths: list[ExposedPath] = []


class Proxy(_Exact):
    """What a sidecar is to do."""

    destination_service_name: str = ""
    destination_service_id: str = ""
    local_service_address: str = ""
    local_service_port: Port = 0
    local_service_socket_path: str = ""
    mode: Mode = ""
    """``transparent``: the application dials virtual IPs and the kernel redirects it."""
    transparent_proxy: TransparentProxy = TransparentProxy()
    config: Anything = {}
    upstreams: list[Upstream] = []
    mesh_gateway: Anything = {}
    expose: Expose = Expose()
    envoy_extensions: list[Anything] = []
    access_logs: Anything = {}


class ServiceBase(_Exact):
    """What a service and its nested sidecar have in common."""

    id: str = ""
    """What tells it from other instances; its name, where none is given."""
    tags: list[str] = []
    address: IP = ""
    """Where it is reached; 127.0.0.1 where none is given."""
    tagged_addresses: Annotated[dict[str, TaggedAddress], AfterValidator(_virtual_ips_are_there)] = {}
    """``virtual`` is the virtual IP; a service that has none is given one from 240.0.0.0/4."""
    meta: dict[str, str] = {}
    port: Port = 0
    """Where it listens; 21000 for a nested sidecar that says none."""
    check: Check | None = None
    checks: list[Check] = []
    token: str = ""
    """What the sidecar has to present to get this service's certificate."""
    weights: Weights = Weights()
    enable_tag_override: bool = False
    socket_path: str = ""
    kind: Literal["", "connect-proxy", "mesh-gateway", "terminating-gateway", "ingress-gateway", "api-gateway"] = ""
    proxy: Proxy = Proxy()


class SidecarService(ServiceBase):
    """A sidecar that is registered with its service; everything in it has a default."""

    name: str = ""


class Connect(_Exact):
    """How a service takes part in the mesh."""

    native: bool = False
    """The application speaks mutual TLS itself."""
    sidecar_service: SidecarService | None = None


class Service(ServiceBase):
    """An instance of a service, or a sidecar on its own (``kind: connect-proxy``)."""

    name: Name
    """What it is called in the mesh. Several instances share it."""
    connect: Connect = Connect()


# -- config entries: the fields of `consul config write` ---------------------------------------------------------------


def _expression(text: str) -> str:
    wrong = regular_expression(text)
    if wrong is not None:
        raise ValueError(f"the regular expression does not compile: {wrong}")
    return text


def _header_name(text: str) -> str:
    wrong = header_name(text.removeprefix(":"))
    if wrong is not None:
        raise ValueError(wrong)
    return text


def _duration(text: str) -> str:
    if text and milliseconds(text) is None:
        raise ValueError("expected a duration such as 1m30s")
    return text


def _filter(text: str) -> str:
    try:
        parse_filter(text)
    except FilterError as error:
        raise ValueError(str(error)) from None
    return text


Expression = Annotated[str, AfterValidator(_expression)]
HeaderText = Annotated[str, AfterValidator(_header_name)]
GoDuration = Annotated[str, AfterValidator(_duration)]
FilterText = Annotated[str, AfterValidator(_filter)]
PathText = Annotated[str, Field(pattern="^(/|$)")]


class HeaderMatch(_Exact):
    """What a header has to be: one of these."""

    Name: HeaderText
    Present: bool = False
    Exact: str = ""
    Prefix: str = ""
    Suffix: str = ""
    Contains: str = ""
    Regex: Expression = ""
    Invert: bool = False
    IgnoreCase: bool = False

    @model_validator(mode="after")
    def _one(self) -> HeaderMatch:
        kinds = ("Present", "Exact", "Prefix", "Suffix", "Contains", "Regex")
        if sum(bool(getattr(self, kind)) for kind in kinds) != 1:
            raise ValueError(f"give one of {', '.join(kinds)}")
        return self


class _Paths(_Exact):
    PathExact: PathText = ""
    PathPrefix: PathText = ""
    PathRegex: Expression = ""
    Header: list[HeaderMatch] = []
    Methods: list[str] = []

    @model_validator(mode="after")
    def _one_path(self) -> _Paths:
        kinds = ("PathExact", "PathPrefix", "PathRegex")
        if sum(bool(getattr(self, kind)) for kind in kinds) > 1:
            raise ValueError(f"give one of {', '.join(kinds)}")
        return self


class ClaimVerification(_Exact):
    """What a claim of a token has to be, or hold where it is a list."""

    Path: list[str] = Field(min_length=1)
    Value: str = ""


class JWTProviderUse(_Exact):
    """A token that a request has to bring."""

    Name: Name
    VerifyClaims: list[ClaimVerification] = []


class JWTRequirement(_Exact):
    """The tokens of which a request has to bring one."""

    Providers: list[JWTProviderUse] = []


class HTTPPermission(_Paths):
    """Which requests: those that are all of this."""


class Permission(_Exact):
    """What holds for some requests."""

    Action: Literal["allow", "deny"]
    HTTP: HTTPPermission = HTTPPermission()
    JWT: JWTRequirement = JWTRequirement()


class SourceIntention(_Exact):
    """Who may, or may not, call the service that the entry is named after."""

    Name: Name
    Action: Literal["", "allow", "deny"] = ""
    Permissions: list[Permission] = []
    """On HTTP requests, in order: the first that matches decides. A TCP connection is denied by them."""
    Peer: str = ""
    """Of a service elsewhere; it matches none of this mesh."""
    SamenessGroup: str = ""
    Namespace: str = ""
    Partition: str = ""
    Description: str = ""
    Type: str = ""
    Precedence: int = 0
    """Consul's number for how precise it is, which it works out itself."""

    @model_validator(mode="after")
    def _decides(self) -> SourceIntention:
        if bool(self.Action) == bool(self.Permissions):
            raise ValueError("give either Action, allow or deny, or Permissions")
        return self


class _EntryBase(_Exact):
    Namespace: str = ""
    Partition: str = ""
    Meta: dict[str, str] = {}


class ServiceIntentions(_EntryBase):
    """Which services may call the one that this is named after; ``*`` is every service."""

    Kind: Literal["service-intentions"]
    Name: Name
    Sources: list[SourceIntention] = Field(min_length=1)
    JWT: JWTRequirement = JWTRequirement()


class TransparentProxyEntry(_Exact):
    """How transparent sidecars listen, unless their registration says otherwise."""

    OutboundListenerPort: Port = 0
    DialedDirectly: bool = False
    """Whether others may dial an instance's own address, and reach it through the mesh."""


class ExposedPathEntry(_Exact):
    """A path that is reached without mutual TLS."""

    Path: str = Field(pattern="^/")
    ListenerPort: UsedPort
    LocalPathPort: UsedPort
    Protocol: Literal["", "http", "http2"] = ""


class ExposeEntry(_Exact):
    """What is reached past mutual TLS."""

    Checks: bool = False
    Paths: list[ExposedPathEntry] = []


class MeshGatewayEntry(_Exact):
    """How services in other datacenters are reached."""

    Mode: Literal["", "none", "local", "remote"] = ""


class EnvoyExtensionEntry(_Exact):
    """One of Consul's Envoy extensions."""

    Name: str = Field(min_length=1)
    Required: bool = False
    Arguments: Anything = {}
    ConsulVersion: str = ""
    EnvoyVersion: str = ""


class UpstreamLimitsEntry(_Exact):
    """How much is asked of an upstream at once."""

    MaxConnections: Count | None = None
    MaxPendingRequests: Count | None = None
    MaxConcurrentRequests: Count | None = None


class PassiveHealthCheckEntry(_Exact):
    """When an instance is left alone because of what it answered."""

    Interval: GoDuration = ""
    MaxFailures: Count = 0
    EnforcingConsecutive5xx: Annotated[int, Field(ge=0, le=100)] | None = None
    MaxEjectionPercent: Annotated[int, Field(ge=0, le=100)] | None = None
    BaseEjectionTime: GoDuration = ""


class UpstreamSettingsEntry(_Exact):
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


class UpstreamConfigEntry(_Exact):
    """How a service calls its upstreams."""

    Defaults: UpstreamSettingsEntry | None = None
    Overrides: list[UpstreamSettingsEntry] = []


class AccessLogsEntry(_Exact):
    """Where and how connections and requests are logged."""

    Enabled: bool = False
    DisableListenerLogs: bool = False
    Type: Literal["", "stdout", "stderr", "file"] = ""
    Path: str = ""
    JSONFormat: str = ""
    TextFormat: str = ""


class _ProxyDefaultsBase(_EntryBase):
    Mode: Literal["", "transparent", "direct"] = ""
    TransparentProxy: TransparentProxyEntry = TransparentProxyEntry()
    MutualTLSMode: Literal["", "strict", "permissive"] = ""
    MeshGateway: MeshGatewayEntry = MeshGatewayEntry()
    Expose: ExposeEntry = ExposeEntry()
    EnvoyExtensions: list[EnvoyExtensionEntry] = []


class DestinationEntry(_Exact):
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


class MeshTransparentProxy(_Exact):
    """What holds for transparent sidecars."""

    MeshDestinationsOnly: bool = False
    """No way past the mesh: a connection to any other address is refused."""


TLSVersion = Literal["", "TLS_AUTO", "TLSv1_0", "TLSv1_1", "TLSv1_2", "TLSv1_3"]


class MeshTLSDirection(_Exact):
    """Versions and cipher suites."""

    TLSMinVersion: TLSVersion = ""
    TLSMaxVersion: TLSVersion = ""
    CipherSuites: list[str] = []


class MeshTLS(_Exact):
    """What TLS between sidecars has to be."""

    Incoming: MeshTLSDirection = MeshTLSDirection()
    Outgoing: MeshTLSDirection = MeshTLSDirection()


class RequestNormalizationEntry(_Exact):
    """What is settled about a path or a header before the intentions judge it."""

    InsecureDisablePathNormalization: bool = False
    MergeSlashes: bool = False
    PathWithEscapedSlashesAction: Literal[
        "", "IMPLEMENTATION_SPECIFIC_DEFAULT", "KEEP_UNCHANGED", "REJECT_REQUEST", "UNESCAPE_AND_REDIRECT",
        "UNESCAPE_AND_FORWARD",
    ] = ""  # fmt: skip
    HeadersWithUnderscoresAction: Literal["", "ALLOW", "REJECT_REQUEST", "DROP_HEADER"] = ""


class MeshHTTPIncoming(_Exact):
    """Of requests that come in."""

    RequestNormalization: RequestNormalizationEntry = RequestNormalizationEntry()


class MeshHTTP(_Exact):
    """What holds for HTTP between sidecars."""

    SanitizeXForwardedClientCert: bool = False
    Incoming: MeshHTTPIncoming = MeshHTTPIncoming()


class MeshEntry(_EntryBase):
    """What holds for the whole mesh."""

    Kind: Literal["mesh"]
    TransparentProxy: MeshTransparentProxy = MeshTransparentProxy()
    AllowEnablingPermissiveMutualTLS: bool = False
    TLS: MeshTLS = MeshTLS()
    HTTP: MeshHTTP = MeshHTTP()
    Peering: Anything = {}


class HeaderChanges(_Exact):
    """What is done to headers."""

    Add: dict[HeaderText, str] = {}
    Set: dict[HeaderText, str] = {}
    Remove: list[HeaderText] = []


class QueryParamMatch(_Exact):
    """What a query parameter has to be: one of these."""

    Name: str = Field(min_length=1)
    Present: bool = False
    Exact: str = ""
    Regex: Expression = ""

    @model_validator(mode="after")
    def _one(self) -> QueryParamMatch:
        if bool(self.Present) + bool(self.Exact) + bool(self.Regex) != 1:
            raise ValueError("give one of Present, Exact, Regex")
        return self


class HTTPRouteMatch(_Paths):
    """Which requests: those that are all of this."""

    QueryParam: list[QueryParamMatch] = []


class RouteMatch(_Exact):
    """Which requests."""

    HTTP: HTTPRouteMatch = HTTPRouteMatch()


class RouteDestination(_Exact):
    """Where requests go, and how."""

    Service: str = ""
    """The service; the router's own where none is given."""
    ServiceSubset: str = ""
    Namespace: str = ""
    Partition: str = ""
    PrefixRewrite: str = ""
    RequestTimeout: GoDuration = ""
    IdleTimeout: GoDuration = ""
    NumRetries: Count = 0
    RetryOn: list[str] = []
    RetryOnConnectFailure: bool = False
    RetryOnStatusCodes: list[Annotated[int, Field(ge=100, le=599)]] = []
    RequestHeaders: HeaderChanges = HeaderChanges()
    ResponseHeaders: HeaderChanges = HeaderChanges()


class ServiceRoute(_Exact):
    """One route."""

    Match: RouteMatch = RouteMatch()
    Destination: RouteDestination | None = None


class ServiceRouter(_EntryBase):
    """Where requests to a service go, by what is in them; the first route that matches counts."""

    Kind: Literal["service-router"]
    Name: Name
    Routes: list[ServiceRoute] = []


class ServiceSplit(_Exact):
    """A share of the requests."""

    Weight: Annotated[float, Field(ge=0, le=100, strict=False)]
    """In percent."""
    Service: str = ""
    """The service; the splitter's own where none is given."""
    ServiceSubset: str = ""
    Namespace: str = ""
    Partition: str = ""
    RequestHeaders: HeaderChanges = HeaderChanges()
    ResponseHeaders: HeaderChanges = HeaderChanges()


class ServiceSplitter(_EntryBase):
    """How requests to a service are divided."""

    Kind: Literal["service-splitter"]
    Name: Name
    Splits: list[ServiceSplit] = Field(min_length=1)

    @model_validator(mode="after")
    def _adds_up(self) -> ServiceSplitter:
        total = sum(split.Weight for split in self.Splits)
        if round(total, 2) != 100:
            raise ValueError(f"the weights must add up to 100, not {total:g}")
        return self


class Subset(_Exact):
    """Some instances of a service."""

    Filter: FilterText = ""
    """Which ones (a filter expression), as in ``Service.Meta.version == v2``."""
    OnlyPassing: bool = False
    """Whether a warning takes an instance out as well."""


class RedirectEntry(_Exact):
    """Where a service is found in place of its own instances."""

    Service: str = ""
    ServiceSubset: str = ""
    Namespace: str = ""
    Partition: str = ""
    Datacenter: str = ""
    Peer: str = ""
    SamenessGroup: str = ""


class FailoverTarget(_Exact):
    """Where to turn to."""

    Service: str = ""
    ServiceSubset: str = ""
    Namespace: str = ""
    Partition: str = ""
    Datacenter: str = ""
    Peer: str = ""


class FailoverEntry(_Exact):
    """Where to turn to when no instance is healthy."""

    Service: str = ""
    ServiceSubset: str = ""
    Namespace: str = ""
    Datacenters: list[str] = []
    Targets: list[FailoverTarget] = []
    Policy: Anything = {}
    SamenessGroup: str = ""


class CookieConfigEntry(_Exact):
    """The cookie that Envoy makes where a request has none."""

    Session: bool = False
    TTL: GoDuration = ""
    Path: str = ""


class HashPolicyEntry(_Exact):
    """What requests are hashed by."""

    Field: Literal["", "header", "cookie", "query_parameter"] = ""
    FieldValue: str = ""
    CookieConfig: CookieConfigEntry = CookieConfigEntry()
    SourceIP: bool = False
    Terminal: bool = False

    @model_validator(mode="after")
    def _has_a_field(self) -> HashPolicyEntry:
        if self.SourceIP == bool(self.Field and self.FieldValue):
            raise ValueError("give either SourceIP or Field and FieldValue")
        return self


class LeastRequestConfigEntry(_Exact):
    """For the policy ``least_request``."""

    ChoiceCount: Count = 0


class RingHashConfigEntry(_Exact):
    """For the policy ``ring_hash``."""

    MinimumRingSize: Count = 0
    MaximumRingSize: Count = 0


class LoadBalancerEntry(_Exact):
    """How an instance is picked."""

    Policy: Literal["", "random", "round_robin", "least_request", "ring_hash", "maglev"] = ""
    RingHashConfig: RingHashConfigEntry = RingHashConfigEntry()
    LeastRequestConfig: LeastRequestConfigEntry = LeastRequestConfigEntry()
    HashPolicies: list[HashPolicyEntry] = []


class ServiceResolver(_EntryBase):
    """How a service is resolved to instances."""

    Kind: Literal["service-resolver"]
    Name: Name
    ConnectTimeout: GoDuration = ""
    RequestTimeout: GoDuration = ""
    DefaultSubset: str = ""
    Subsets: dict[str, Subset] = {}
    Redirect: RedirectEntry | None = None
    Failover: dict[str, FailoverEntry] = {}
    """By subset; ``*`` is any."""
    LoadBalancer: LoadBalancerEntry | None = None
    PrioritizeByLocality: Anything = {}


class JWTLocationHeader(_Exact):
    """A header."""

    Name: HeaderText
    ValuePrefix: str = ""
    Forward: bool = False


class JWTLocationNamed(_Exact):
    """A query parameter or a cookie."""

    Name: str = Field(min_length=1)


class JWTLocation(_Exact):
    """Where in a request a token may be: one of these."""

    Header: JWTLocationHeader | None = None
    QueryParam: JWTLocationNamed | None = None
    Cookie: JWTLocationNamed | None = None

    @model_validator(mode="after")
    def _one(self) -> JWTLocation:
        if (self.Header is not None) + (self.QueryParam is not None) + (self.Cookie is not None) != 1:
            raise ValueError("give one of Header, QueryParam, Cookie")
        return self


class JWTForwarding(_Exact):
    """How the claims are handed to the application."""

    HeaderName: HeaderText
    PadForwardPayloadHeader: bool = False


class JWTCacheConfig(_Exact):
    """How many verified tokens are remembered."""

    Size: Count = 0


class JWTProvider(_EntryBase):
    """Who issues JSON Web Tokens, and how they are verified."""

    Kind: Literal["jwt-provider"]
    Name: Name
    Issuer: str = ""
    Audiences: list[str] = []
    JSONWebKeySet: Anything
    Locations: list[JWTLocation] = []
    Forwarding: JWTForwarding | None = None
    ClockSkewSeconds: Count = 30
    CacheConfig: JWTCacheConfig | None = None


class LinkedService(_Exact):
    """A service outside the mesh that a terminating gateway speaks for."""

    Name: Name
    Namespace: str = ""
    CAFile: str = ""
    CertFile: str = ""
    KeyFile: str = ""
    SNI: str = ""
    DisableAutoHostRewrite: bool = False


class TerminatingGateway(_EntryBase):
    """The services outside the mesh that the instances of a terminating gateway speak for.

    The gateway itself is not served: what is said here is where its services are found.
    """

    Kind: Literal["terminating-gateway"]
    Name: Name
    Services: list[LinkedService] = []


class OtherEntry(BaseModel):
    """A config entry that Gossamer does not follow yet, whatever its fields."""

    model_config = ConfigDict(extra="allow", strict=True, use_attribute_docstrings=True)

    Kind: Literal[
        "ingress-gateway", "exported-services",
        "api-gateway", "bound-api-gateway", "http-route", "tcp-route", "inline-certificate", "sameness-group",
        "control-plane-request-limit",
    ]  # fmt: skip
    Name: Name


Entry = Annotated[
    ServiceIntentions
    | ServiceDefaults
    | ProxyDefaults
    | MeshEntry
    | ServiceRouter
    | ServiceSplitter
    | ServiceResolver
    | JWTProvider
    | TerminatingGateway
    | OtherEntry,
    Field(discriminator="Kind"),
]


class ConfigEntries(_Exact):
    """The config entries."""

    bootstrap: list[Entry] = []
    """Config entries, as ``consul config write`` takes them: intentions, defaults, the mesh entry."""


class MeshFile(_Exact):
    """A mesh: services, intentions, defaults, virtual IPs."""

    model_config = ConfigDict(title="Gossamer mesh file")

    datacenter: str = Field("dc1", pattern="^[A-Za-z0-9_-]+$")
    default_intention_policy: Literal["allow", "deny"]
    """What holds where no intention matches."""
    services: list[Service]
    """Services and sidecars, as ``consul services register`` takes them."""
    config_entries: ConfigEntries = ConfigEntries()


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a mesh file."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **MeshFile.model_json_schema()}

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


def _virtual_ips_are_ipv4(addresses: dict[str, TaggedAddress]) -> dict[str, TaggedAddress]:
    for tag in VIRTUAL_TAGS:
        if tag in addresses and (not addresses[tag].address or ":" in addresses[tag].address):
            raise ValueError("expected an IPv4 address: virtual IPs are dialed through an IPv4 listener")
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
    tagged_addresses: Annotated[dict[str, TaggedAddress], AfterValidator(_virtual_ips_are_ipv4)] = {}
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


class SourceIntention(_Exact):
    """Who may, or may not, call the service that the entry is named after."""

    Name: Name
    Action: Literal["", "allow", "deny"] = ""
    Permissions: list[Anything] = []
    """On HTTP requests. A TCP connection is denied by them."""
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
    JWT: Anything = {}


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


class _ProxyDefaultsBase(_EntryBase):
    Mode: Literal["", "transparent", "direct"] = ""
    TransparentProxy: TransparentProxyEntry = TransparentProxyEntry()
    MutualTLSMode: str = ""
    MeshGateway: Anything = {}
    Expose: ExposeEntry = ExposeEntry()
    EnvoyExtensions: list[Anything] = []


class ServiceDefaults(_ProxyDefaultsBase):
    """Settings for all sidecars of one service."""

    Kind: Literal["service-defaults"]
    Name: Name
    Protocol: str = ""
    MaxInboundConnections: Count = 0
    LocalConnectTimeoutMs: Count = 0
    LocalRequestTimeoutMs: Count = 0
    BalanceInboundConnections: str = ""
    RateLimits: Anything = {}
    ExternalSNI: str = ""
    UpstreamConfig: Anything = {}
    Destination: Anything = {}


class ProxyDefaults(_ProxyDefaultsBase):
    """Settings for all sidecars."""

    Kind: Literal["proxy-defaults"]
    Name: Literal["global"]
    Config: Anything = {}
    AccessLogs: Anything = {}
    FailoverPolicy: Anything = {}
    PrioritizeByLocality: Anything = {}


class MeshTransparentProxy(_Exact):
    """What holds for transparent sidecars."""

    MeshDestinationsOnly: bool = False
    """No way past the mesh: a connection to any other address is refused."""


class MeshEntry(_EntryBase):
    """What holds for the whole mesh."""

    Kind: Literal["mesh"]
    TransparentProxy: MeshTransparentProxy = MeshTransparentProxy()
    AllowEnablingPermissiveMutualTLS: bool = False
    TLS: Anything = {}
    HTTP: Anything = {}
    Peering: Anything = {}


class ServiceResolver(_EntryBase):
    """How a service is resolved. Of it ``ConnectTimeout`` is followed; anything more sets the service aside."""

    Kind: Literal["service-resolver"]
    Name: Name
    ConnectTimeout: str = ""
    RequestTimeout: str = ""
    DefaultSubset: str = ""
    Subsets: Anything = {}
    Redirect: Anything = {}
    Failover: Anything = {}
    LoadBalancer: Anything = {}
    PrioritizeByLocality: Anything = {}


class OtherEntry(BaseModel):
    """A config entry that Gossamer does not follow yet, whatever its fields."""

    model_config = ConfigDict(extra="allow", strict=True, use_attribute_docstrings=True)

    Kind: Literal[
        "service-router", "service-splitter", "ingress-gateway", "terminating-gateway", "exported-services",
        "api-gateway", "bound-api-gateway", "http-route", "tcp-route", "inline-certificate", "sameness-group",
        "jwt-provider", "control-plane-request-limit",
    ]  # fmt: skip
    Name: Name


Entry = Annotated[
    ServiceIntentions | ServiceDefaults | ProxyDefaults | MeshEntry | ServiceResolver | OtherEntry,
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

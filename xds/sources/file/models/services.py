"""Models of services and sidecars: the fields of ``consul services register``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from xds.sources.file.models.values import (
    IP,
    Anything,
    Count,
    Exact,
    MetaTexts,
    Mode,
    Name,
    Port,
    UsedPort,
)

VIRTUAL_TAGS = ("consul-virtual", "virtual")
"""The tagged addresses that are virtual IPs."""


def _virtual_ips_are_there(addresses: dict[str, TaggedAddress]) -> dict[str, TaggedAddress]:
    for tag in VIRTUAL_TAGS:
        if tag in addresses and not addresses[tag].address:
            raise ValueError("expected an IP address")
    return addresses


class TaggedAddress(Exact):
    """A further address of an instance."""

    address: IP
    port: Port = 0


class Weights(Exact):
    """Share of traffic of an instance, compared with the others of its service."""

    passing: Count = 1
    warning: Count = 1


class Check(Exact):
    """Health check. It is not run: it counts as its ``status``. Consul needs to know what it would run: one of ``ttl``,
    ``http``, ``tcp``, ``udp``, ``grpc``, ``h2ping``, ``args``, ``alias_service``, ``alias_node``, ``os_service``."""

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


class Upstream(Exact):
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
    """Port at which the application dials it, at ``local_bind_address``, by default 127.0.0.1."""
    local_bind_socket_path: str = ""
    local_bind_socket_mode: str = ""
    config: Anything = {}
    mesh_gateway: Anything = {}


class TransparentProxy(Exact):
    """Listener of a transparent sidecar."""

    outbound_listener_port: Port = 0
    """The port that the kernel redirects outbound connections to; 15001 where none is given."""
    dialed_directly: bool = False


class ExposedPath(Exact):
    """A path of the application that is reached without mutual TLS, for health probes and metrics."""

    path: str = Field(pattern="^/")
    listener_port: UsedPort
    local_path_port: UsedPort
    protocol: Literal["", "http", "http2"] = ""


class Expose(Exact):
    """Paths that are reached without mutual TLS."""

    checks: bool = False
    paths: list[ExposedPath] = []


class Proxy(Exact):
    """Settings of a sidecar."""

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


class ServiceBase(Exact):
    """Fields that a service and its nested sidecar have in common."""

    id: str = ""
    """ID that distinguishes instances; by default the name."""
    tags: list[str] = []
    address: IP = ""
    """Address at which it is reached; by default 127.0.0.1."""
    tagged_addresses: Annotated[dict[str, TaggedAddress], AfterValidator(_virtual_ips_are_there)] = {}
    """``virtual`` is the virtual IP; a service that has none is given one from 240.0.0.0/4."""
    meta: MetaTexts = {}
    port: Port = 0
    """Port at which it listens; 21000 for a nested sidecar that states none."""
    check: Check | None = None
    checks: list[Check] = []
    token: str = ""
    """Token that the sidecar must present to get this service's certificate."""
    weights: Weights = Weights()
    enable_tag_override: bool = False
    socket_path: str = ""
    kind: Literal["", "connect-proxy", "mesh-gateway", "terminating-gateway", "ingress-gateway", "api-gateway"] = ""
    proxy: Proxy = Proxy()


class SidecarService(ServiceBase):
    """A sidecar that is registered with its service; everything in it has a default."""

    name: str = ""


class Connect(Exact):
    """Part of a service in the mesh."""

    native: bool = False
    """The application speaks mutual TLS itself."""
    sidecar_service: SidecarService | None = None


class Service(ServiceBase):
    """An instance of a service, or a sidecar on its own (``kind: connect-proxy``)."""

    name: Name
    """Name in the mesh. Several instances share it."""
    connect: Connect = Connect()

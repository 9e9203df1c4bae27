"""Encodes HTTP connection managers: one for all HTTP upstreams of a sidecar, one for incoming requests.

The routes of both come as scopes (`xds.envoy.routes`), so that they change without a listener.
"""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from xds.envoy import matchers, names
from xds.envoy.routes import CLUSTER_HEADER, SCOPE_HEADER
from xds.envoy.tls import ads_source, typed
from xds.mesh.config_entries import MeshSettings, ProxySettings
from xds.wire.envoy.config import core_pb2 as core
from xds.wire.envoy.config import listener_pb2 as listener
from xds.wire.envoy.config import mutation_rules_pb2 as mutation_rules
from xds.wire.envoy.config import rbac_pb2 as rbac
from xds.wire.envoy.config import route_pb2 as route
from xds.wire.envoy.extensions import (
    early_header_mutation_pb2,
    grpc_http1_bridge_pb2,
    grpc_stats_pb2,
    http_rbac_pb2,
    http_router_pb2,
    jwt_authn_pb2,
    on_demand_pb2,
)
from xds.wire.envoy.extensions import http_connection_manager_pb2 as manager

Added = core.HeaderValueOption.HeaderAppendAction
Manager = manager.HttpConnectionManager
JWT_AUTHENTICATION = "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication"
ON_DEMAND_TIMEOUT = Duration(seconds=2)
"""Time that a first connection or request waits for its cluster, and so its delay while no control plane answers."""
FIRST_ROUTES_TIMEOUT = Duration(seconds=15)
"""Time that a first request waits for its routes, where its upstream has any.

Envoy has no timeout for this alone: it uses the timeout of an idle stream. Every route replaces that, but not for the
request that waited for the route. For that request this value stays, so it is that of Envoy's default request timeout.
"""
RBAC_FILTER = "envoy.filters.http.rbac"


def network_filter(config: Manager) -> listener.Filter:
    """Return a connection manager as the last filter of a chain."""
    return listener.Filter(name="envoy.filters.network.http_connection_manager", typed_config=typed(config))


def http_filter(name: str, config: Message) -> manager.HttpFilter:
    """Return a filter of a connection manager."""
    return manager.HttpFilter(name=name, typed_config=typed(config))


def outbound(
    stat_prefix: str, scope: str, *, grpc: bool, on_demand: bool = False, max_request_headers_kb: int | None = None
) -> Manager:
    """Return the manager of HTTP upstreams.

    It accepts HTTP/1.0, which old clients and load testers still use; a request without a host is for "localhost".

    Args:
        stat_prefix: prefix of its statistics.
        scope: the name of the scope that has the routes; Envoy's command operators in it are replaced.
        grpc: whether to count by gRPC method, and to let HTTP/1.1 clients call gRPC.
        on_demand: whether to ask for routes that are not there, and for the clusters that they name.
        max_request_headers_kb: limit of a request's headers; ``None`` for Envoy's default of 60.
    """
    filters = _grpc_filters() if grpc else []
    if on_demand:
        clusters = on_demand_pb2.OnDemandCds(source=ads_source(), timeout=ON_DEMAND_TIMEOUT)
        filters.append(http_filter("envoy.filters.http.on_demand", on_demand_pb2.OnDemand(odcds=clusters)))
    found = _scoped(stat_prefix, scope, filters, by_cluster=on_demand)
    if on_demand:
        found.stream_idle_timeout.CopyFrom(FIRST_ROUTES_TIMEOUT)
    if max_request_headers_kb:
        found.max_request_headers_kb.value = max_request_headers_kb
    found.http_protocol_options.CopyFrom(
        core.Http1ProtocolOptions(accept_http_10=True, default_host_for_http_10="localhost")
    )
    return found


def inbound(settings: ProxySettings, mesh: MeshSettings) -> Manager:
    """Return the manager of a public listener.

    Its routes, and with them the intentions, come in the scope "inbound", the verification of tokens as an extension.
    If they were part of the listener, requests on established connections would be judged by the old intentions for as
    long as Envoy drains (ten minutes), and sidecars keep their connections.

    Args:
        settings: of the sidecar.
        mesh: of the whole mesh.
    """
    grpc = settings.protocol == "grpc"
    filters = _grpc_filters() if grpc else []
    filters.append(token_filter())
    # Without a scope, no request is allowed: the action ALLOW without policies denies.
    filters.append(http_filter(RBAC_FILTER, http_rbac_pb2.RBAC(rules=rbac.RBAC(action=rbac.RBAC.ALLOW))))
    found = _scoped("public_listener", names.INBOUND_SCOPE, filters)
    if settings.max_request_headers_kb:
        found.max_request_headers_kb.value = settings.max_request_headers_kb
    normalize(found, mesh)
    if not mesh.sanitize_client_cert and not grpc:
        # Replace the header of the request: a caller whose sidecar treats the connection as plain TCP could have forged
        # it.
        found.forward_client_cert_details = Manager.SANITIZE_SET
        found.set_current_client_cert_details.CopyFrom(
            Manager.SetCurrentClientCertDetails(cert=True, chain=True, dns=True, uri=True)
        )
        found.set_current_client_cert_details.subject.value = True
    return found


def token_filter() -> manager.HttpFilter:
    """Return the filter that verifies the tokens of requests; its configuration comes as an extension.

    If Envoy rejects that, because of keys in a missing file for example, it verifies none, and requests that need a
    token are denied.
    """
    source = core.ExtensionConfigSource(
        config_source=ads_source(),
        type_urls=[JWT_AUTHENTICATION],
        default_config=typed(jwt_authn_pb2.JwtAuthentication()),
    )
    return manager.HttpFilter(name=names.JWT_EXTENSION, config_discovery=source)


def normalize(found: Manager, mesh: MeshSettings) -> None:
    """Normalize paths before the intentions judge them; otherwise ``/a/../b`` would count as ``/a``."""
    found.normalize_path.value = mesh.normalize_path
    found.merge_slashes = mesh.merge_slashes
    if mesh.escaped_slashes:
        found.MergeFrom(Manager(path_with_escaped_slashes_action=mesh.escaped_slashes))
    if mesh.headers_with_underscores:
        found.common_http_protocol_options.CopyFrom(
            core.HttpProtocolOptions(headers_with_underscores_action=mesh.headers_with_underscores)
        )


def plain(stat_prefix: str, routes: Iterable[route.Route]) -> Manager:
    """Return a manager with nothing but routes, for any host."""
    found = _common(stat_prefix, [])
    host = route.VirtualHost(name=stat_prefix, domains=["*"], routes=routes)
    found.route_config.CopyFrom(route.RouteConfiguration(name=stat_prefix, virtual_hosts=[host]))
    return found


def _scoped(stat_prefix: str, scope: str, filters: list[manager.HttpFilter], *, by_cluster: bool = False) -> Manager:
    """Return a manager that finds its routes by a header and, with ``by_cluster``, its clusters by a second one.

    It overwrites both headers, so a client can't set them.
    """
    headers: tuple[tuple[str, str], ...] = ((SCOPE_HEADER, scope),)
    if by_cluster:
        headers += ((CLUSTER_HEADER, names.requests_to(scope)),)
    marks = [
        mutation_rules.HeaderMutation(append=each)
        for each in matchers.header_options(headers, Added.OVERWRITE_IF_EXISTS_OR_ADD)
    ]
    extractor = manager.ScopedRoutes.ScopeKeyBuilder.FragmentBuilder.HeaderValueExtractor(name=SCOPE_HEADER, index=0)
    found = _common(stat_prefix, filters)
    found.early_header_mutation_extensions.append(
        core.TypedExtensionConfig(
            name="envoy.http.early_header_mutation.header_mutation",
            typed_config=typed(early_header_mutation_pb2.HeaderMutation(mutations=marks)),
        )
    )
    found.scoped_routes.CopyFrom(
        manager.ScopedRoutes(
            name="scopes",
            scope_key_builder=manager.ScopedRoutes.ScopeKeyBuilder(
                fragments=[manager.ScopedRoutes.ScopeKeyBuilder.FragmentBuilder(header_value_extractor=extractor)]
            ),
            scoped_rds=manager.ScopedRds(scoped_rds_config_source=ads_source()),
            rds_config_source=ads_source(),
        )
    )
    return found


def _common(stat_prefix: str, filters: list[manager.HttpFilter]) -> Manager:
    return Manager(
        stat_prefix=stat_prefix,
        # Extended CONNECT, for WebSockets over HTTP/2 between the sidecars.
        http2_protocol_options=core.Http2ProtocolOptions(allow_connect=True),
        upgrade_configs=[Manager.UpgradeConfig(upgrade_type="websocket")],
        http_filters=[*filters, http_filter("envoy.filters.http.router", http_router_pb2.Router())],
    )


def _grpc_filters() -> list[manager.HttpFilter]:
    stats = grpc_stats_pb2.FilterConfig()
    stats.stats_for_all_methods.value = True
    return [
        http_filter("envoy.filters.http.grpc_stats", stats),
        http_filter("envoy.filters.http.grpc_http1_bridge", grpc_http1_bridge_pb2.Config()),
    ]

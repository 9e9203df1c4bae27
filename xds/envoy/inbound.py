"""Encodes the public listener, at which callers reach the application: mutual TLS, the intentions, the application."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from xds.envoy import http_connection_managers as managers
from xds.envoy import names, routes
from xds.envoy.clusters import milliseconds, socket_address
from xds.envoy.identities import admitted_identities
from xds.envoy.outbound import tcp_proxy
from xds.envoy.overrides import listener_from, protected
from xds.envoy.rbac import http_rbac, network_rbac
from xds.envoy.resource import Resource
from xds.envoy.tls import downstream_transport_socket, typed
from xds.mesh.config_entries import MeshSettings, ProxyMode, ProxySettings
from xds.mesh.facts import Sidecar
from xds.mesh.http import HTTP_PROTOCOLS
from xds.mesh.intentions import TokenProvider
from xds.policy.intentions import ConnectionPolicy, RequestPolicy, token_checks
from xds.policy.listeners import public_address
from xds.wire.envoy.config import core_pb2 as core
from xds.wire.envoy.config import listener_pb2 as listener
from xds.wire.envoy.config import route_pb2 as route
from xds.wire.envoy.extensions import connection_limit_pb2, http_rbac_pb2, original_dst_pb2

ALPN = {"http": ("h2", "http/1.1"), "http2": ("h2", "http/1.1"), "grpc": ("h2", "http/1.1")}


@dataclass(frozen=True, slots=True)
class Admission:
    """Callers that are let in, judged by connection or by request, whichever the application's protocol permits."""

    connections: ConnectionPolicy
    requests: RequestPolicy
    token_providers: Mapping[str, TokenProvider]

    def used_providers(self) -> list[TokenProvider]:
        """Return the providers of the tokens that requests may need, by name."""
        wanted = {check.provider for check in token_checks(self.requests)}
        return [self.token_providers[name] for name in sorted(wanted) if name in self.token_providers]

    def missing_providers(self) -> list[str]:
        """Return the providers that intentions name and that do not exist."""
        return sorted({check.provider for check in token_checks(self.requests)} - self.token_providers.keys())


def public(
    sidecar: Sidecar,
    settings: ProxySettings,
    mesh: MeshSettings,
    admission: Admission,
    trust_domain: str,
    *,
    dual_stack: bool = False,
) -> listener.Listener:
    """Return the listener that other sidecars connect to; with ``dual_stack``, the wildcard address includes IPv6.

    Raises:
        OverrideError: the user's own JSON of it can't be used.
    """
    address, port = public_address(sidecar, settings)
    name = names.listener("public_listener", address, port)
    is_http = settings.protocol in HTTP_PROTOCOLS
    # HTTP callers are judged by request, so a caller that may send none gets a response in place of a reset connection.
    identities = None if is_http else admitted_identities(admission.connections, trust_domain)
    tls = downstream_transport_socket(identities, mesh.incoming_tls, ALPN.get(settings.protocol or "", ()))
    judge = listener.Filter(
        name="envoy.filters.network.rbac", typed_config=typed(network_rbac(admission.connections, trust_domain))
    )
    if settings.public_listener_json:
        setting, text = "envoy_public_listener_json", settings.public_listener_json
        given = listener_from(setting, text, name)
        rules = http_rbac(admission.requests, admission.token_providers, trust_domain)
        requests = [managers.token_filter(), managers.http_filter(managers.RBAC_FILTER, rules)]
        protected(given, setting, text, tls, requests, judge, lambda http: managers.normalize(http, mesh))
        return given
    if is_http:
        filters = [managers.network_filter(managers.inbound(settings, mesh))]
    else:
        filters = [judge, tcp_proxy("public_listener", cluster=names.LOCAL_APP)]
    if settings.max_inbound_connections:
        limit = connection_limit_pb2.ConnectionLimit(stat_prefix="inbound_connection_limit")
        limit.max_connections.value = settings.max_inbound_connections
        counted = listener.Filter(name="envoy.filters.network.connection_limit", typed_config=typed(limit))
        filters.insert(len(filters) - 1, counted)
    made = listener.Listener(
        name=name,
        address=socket_address(address, port),
        traffic_direction=core.INBOUND,
        filter_chains=[listener.FilterChain(filters=filters, transport_socket=tls)],
    )
    if dual_stack and address == "0.0.0.0":  # noqa: S104
        both = core.SocketAddress(address="::", port_value=port, ipv4_compat=True)
        made.address.CopyFrom(core.Address(socket_address=both))
    if settings.balance_inbound_connections:
        made.connection_balance_config.exact_balance.SetInParent()
    if is_permissive(settings, mesh) and not sidecar.local_service_socket_path:
        _add_permissive_chain(made, sidecar.local_service_port)
    return made


def is_permissive(settings: ProxySettings, mesh: MeshSettings) -> bool:
    """Return whether clients outside the mesh may dial the application's port: the settings and the mesh entry allow
    it."""
    transparent = settings.mode is ProxyMode.TRANSPARENT
    return bool(settings.permissive_mtls) and mesh.allow_permissive_mtls and transparent


def _add_permissive_chain(made: listener.Listener, port: int) -> None:
    """Pass connections to the application's own port through unchanged. Callers of the mesh dial the sidecar's port.

    Consul checks the mesh entry only when the setting is written; here the setting ends when the entry does.
    """
    chain = listener.FilterChain(filters=[tcp_proxy("permissive_public_listener", cluster=names.LOCAL_APP)])
    chain.filter_chain_match.destination_port.value = port
    made.filter_chains.append(chain)
    made.listener_filters.append(
        listener.ListenerFilter(
            name="envoy.filters.listener.original_dst", typed_config=typed(original_dst_pb2.OriginalDst())
        )
    )


def inbound_routes(settings: ProxySettings, admission: Admission, trust_domain: str) -> Resource:
    """Return the routes of a public HTTP listener: everything to the application, as far as the intentions allow."""
    action = route.RouteAction(cluster=names.LOCAL_APP)
    if settings.local_request_timeout_ms is not None:
        action.timeout.CopyFrom(milliseconds(settings.local_request_timeout_ms))
    if settings.local_idle_timeout_ms is not None:
        action.idle_timeout.CopyFrom(milliseconds(settings.local_idle_timeout_ms))
    host = route.VirtualHost(
        name="public_listener",
        domains=["*"],
        routes=[route.Route(match=route.RouteMatch(prefix="/"), route=action)],
    )
    judge = http_rbac_pb2.RBACPerRoute(rbac=http_rbac(admission.requests, admission.token_providers, trust_domain))
    host.typed_per_filter_config[managers.RBAC_FILTER].CopyFrom(typed(judge))
    configuration = route.RouteConfiguration(
        name="public_listener", virtual_hosts=[host], request_headers_to_remove=[routes.SCOPE_HEADER]
    )
    return routes.scope(names.INBOUND_SCOPE, configuration, (names.LOCAL_APP,))

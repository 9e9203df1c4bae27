"""Encodes egress: destinations outside the mesh that are reached through a terminating gateway (Consul:
``Destination``).

A destination at an IP address is dialed at that address and port, like any other address that the outbound listener
lists. One with a host name is recognised by the client's first bytes: the server name of its TLS handshake, or the host
of its HTTP request. Only connections to other addresses than virtual IPs, and only at the ports of such destinations,
are inspected, because inspection waits for these bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from google.protobuf.message import Message

from xds.envoy import names, routes
from xds.envoy.resource import Resource
from xds.envoy.tls import typed
from xds.wire.envoy.config import listener_pb2 as listener
from xds.wire.envoy.config import route_pb2 as route
from xds.wire.envoy.extensions import http_inspector_pb2, tls_inspector_pb2
from xds.wire.envoy.type import type_pb2 as envoy_type

TLS_CHAIN = "egress-tls"
HTTP_CHAIN = "egress-http"


@dataclass(frozen=True, slots=True, order=True)
class EgressHost:
    """A host name outside the mesh, at a port."""

    port: int
    host: str
    http: bool
    """Whether it is recognised by the host of requests, rather than by the server name of TLS."""

    @property
    def cluster(self) -> str:
        """The cluster that leads there."""
        return names.egress(self.host, self.port)


def scopes(hosts: Iterable[EgressHost], *, destinations_only: bool) -> dict[str, Resource]:
    """Return the routes of requests at each port, by name; others pass through where that is allowed."""
    by_port: dict[int, list[EgressHost]] = {}
    for each in sorted(hosts):
        if each.http:
            by_port.setdefault(each.port, []).append(each)
    return {
        names.egress_scope(port): _scope(port, there, destinations_only=destinations_only)
        for port, there in by_port.items()
    }


def _scope(port: int, hosts: list[EgressHost], *, destinations_only: bool) -> Resource:
    virtual_hosts = [_virtual_host(each.host, [each.host, f"{each.host}:{port}"], each.cluster) for each in hosts]
    clusters = [each.cluster for each in hosts]
    if not destinations_only:
        virtual_hosts.append(_virtual_host("others", ["*"], names.ORIGINAL_DESTINATION))
        clusters.append(names.ORIGINAL_DESTINATION)
    configuration = route.RouteConfiguration(
        name=names.egress_scope(port),
        virtual_hosts=virtual_hosts,
        request_headers_to_remove=[routes.SCOPE_HEADER],
    )
    return routes.scope(names.egress_scope(port), configuration, tuple(clusters))


def _virtual_host(name: str, domains: list[str], cluster: str) -> route.VirtualHost:
    everything = route.Route(match=route.RouteMatch(prefix="/"), route=route.RouteAction(cluster=cluster))
    return route.VirtualHost(name=name, domains=domains, routes=[everything])


def inspectors(hosts: Iterable[EgressHost]) -> list[listener.ListenerFilter]:
    """Return the filters that detect server names and HTTP, at the ports where that matters."""
    found = list(hosts)
    return [
        _inspector(name, config, sorted({each.port for each in found if each.http == http}))
        for name, config, http in (
            ("tls_inspector", tls_inspector_pb2.TlsInspector(), False),
            ("http_inspector", http_inspector_pb2.HttpInspector(), True),
        )
        if any(each.http == http for each in found)
    ]


def _inspector(name: str, config: Message, ports: list[int]) -> listener.ListenerFilter:
    predicate = listener.ListenerFilterChainMatchPredicate
    at_ports = [predicate(destination_port_range=envoy_type.Int32Range(start=port, end=port + 1)) for port in ports]
    any_of_them = at_ports[0] if len(at_ports) == 1 else predicate(or_match=predicate.MatchSet(rules=at_ports))
    return listener.ListenerFilter(
        name=f"envoy.filters.listener.{name}",
        typed_config=typed(config),
        filter_disabled=predicate(not_match=any_of_them),
    )

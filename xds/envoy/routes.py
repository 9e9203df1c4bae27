"""Encodes routes of HTTP upstreams: a discovery chain is one scoped route configuration for each address it is dialed
at.

Every outbound HTTP connection goes through one connection manager. It puts the dialed address into a header, by which
the scope is found; the header is removed before the request is sent upstream. So a new upstream is a resource of its
own, and no listener changes.

Where clusters come on demand, so do the routes of an upstream that has any. Upstreams without routes, whose requests
all go to the cluster named after the address, share one configuration, which routes by another such header. So their
first request waits for its cluster only, for which Envoy has a time limit.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace

from google.protobuf.wrappers_pb2 import BoolValue

from xds.envoy import matchers, names
from xds.envoy.clusters import milliseconds
from xds.envoy.resource import ROUTE, SCOPED_ROUTE, Resource, encode
from xds.mesh.chains import (
    DiscoveryChain,
    HashPolicy,
    LoadBalancer,
    Resolver,
    Retries,
    Route,
    Router,
    Split,
    Splitter,
)
from xds.mesh.http import HeaderChanges, RequestMatch
from xds.wire.envoy.config import core_pb2 as core
from xds.wire.envoy.config import route_pb2 as route

SCOPE_HEADER = "x-gossamer-dialed"
CLUSTER_HEADER = "x-gossamer-cluster"
"""Header beside `SCOPE_HEADER` where clusters come on demand: the cluster of requests to that address."""
OWN_HEADERS = (SCOPE_HEADER, CLUSTER_HEADER)
"""Headers that only the sidecar itself may see."""
BY_ADDRESS = "by-address"
"""Name of the routes that upstreams without routes of their own share."""
ANY_CLUSTER = BoolValue(value=False)
"""Disables the check that a route's cluster exists; with on-demand clusters none exists before the first request."""
IDLE_TIMEOUT_MS = 300_000
"""Envoy's own default for a stream. Every route sets it, because a shorter one applies before there is a route
(`http_connection_managers`)."""

Added = core.HeaderValueOption.HeaderAppendAction


def scope(name: str, configuration: route.RouteConfiguration, clusters: tuple[str, ...]) -> Resource:
    """Return the scope for requests whose `SCOPE_HEADER` is ``name``; ``clusters`` are those that it names."""
    message = route.ScopedRouteConfiguration(
        name=name,
        key=_key(name),
        route_configuration=configuration,
    )
    return encode(SCOPED_ROUTE, name, message, clusters=clusters)


def _key(name: str) -> route.ScopedRouteConfiguration.Key:
    return route.ScopedRouteConfiguration.Key(fragments=[route.ScopedRouteConfiguration.Key.Fragment(string_key=name)])


@functools.lru_cache(maxsize=1 << 16)
def pointer(scope: Resource) -> Resource:
    """Return the scope that refers to routes by name, where clusters come on demand. Envoy asks for its own routes when
    the first request needs them, and for `by_address` at once, once for all scopes.
    """
    name, own = scope.name, not scope.shares_routes
    message = route.ScopedRouteConfiguration(
        name=name,
        key=_key(name),
        on_demand=own,
        route_configuration_name=name if own else BY_ADDRESS,
    )
    return encode(SCOPED_ROUTE, name, message)


@functools.lru_cache(maxsize=1 << 12)
def pointed_to(scope: Resource) -> Resource | None:
    """Return the routes in a scope as `pointer` refers to them; ``None`` where it has none of its own."""
    if scope.shares_routes:
        return None
    message = route.ScopedRouteConfiguration.FromString(scope.body).route_configuration
    message.name = scope.name
    return encode(ROUTE, scope.name, message, clusters=scope.clusters)


def straight_scope(dialed: str, service: str) -> Resource:
    """Return the scope of an address without routes: all requests go to the cluster named after it."""
    cluster = names.requests_to(dialed)
    straight = scope(dialed, _everything(service, route.RouteAction(cluster=cluster)), (cluster,))
    return replace(straight, shares_routes=True)  # a patch of an extension makes a resource without this flag


@functools.cache
def by_address() -> Resource:
    """Return the routes that scopes without routes share: to the cluster that `CLUSTER_HEADER` names."""
    action = route.RouteAction(cluster_header=CLUSTER_HEADER)
    return encode(ROUTE, BY_ADDRESS, _everything(BY_ADDRESS, action))


def divides(chain: DiscoveryChain) -> bool:
    """Return whether requests are distinguished or treated in any way, so that an upstream needs routes of its own."""
    start = chain.nodes[chain.start]
    if not isinstance(start, Resolver):
        return True
    balancer = start.load_balancer
    return start.request_timeout_ms is not None or (balancer is not None and balancer.hashes)


def configuration(name: str, chain: DiscoveryChain, clusters: Mapping[str, str]) -> route.RouteConfiguration:
    """Return the routes of a chain.

    Args:
        name: of the configuration and of its only virtual host.
        chain: what is encoded.
        clusters: by the key of each resolver in the chain, its cluster.
    """
    start = chain.nodes[chain.start]
    routes = (
        [_route(each, chain, clusters) for each in start.routes]
        if isinstance(start, Router)
        else [_route(Route(RequestMatch(), chain.start), chain, clusters)]
    )
    return route.RouteConfiguration(
        name=name,
        virtual_hosts=[route.VirtualHost(name=name, domains=["*"], routes=routes)],
        request_headers_to_remove=OWN_HEADERS,
        validate_clusters=ANY_CLUSTER,
    )


def _everything(name: str, action: route.RouteAction) -> route.RouteConfiguration:
    """Return routes with one route, for all requests."""
    action.idle_timeout.CopyFrom(milliseconds(IDLE_TIMEOUT_MS))
    everything = route.Route(match=route.RouteMatch(prefix="/"), route=action)
    return route.RouteConfiguration(
        name=name,
        virtual_hosts=[route.VirtualHost(name=name, domains=["*"], routes=[everything])],
        request_headers_to_remove=OWN_HEADERS,
        validate_clusters=ANY_CLUSTER,
    )


def _route(given: Route, chain: DiscoveryChain, clusters: Mapping[str, str]) -> route.Route:
    node = chain.nodes[given.node]
    action = route.RouteAction(prefix_rewrite=given.prefix_rewrite)
    balancer: LoadBalancer | None = None
    timeout = given.request_timeout_ms
    if isinstance(node, Splitter):
        action.weighted_clusters.clusters.extend(_weighted(split, clusters) for split in node.splits if split.weight)
        balancer = node.load_balancer
    elif isinstance(node, Resolver):
        action.cluster = clusters[given.node]
        balancer = node.load_balancer
        if timeout is None:
            timeout = node.request_timeout_ms
    if timeout is not None:
        action.timeout.CopyFrom(milliseconds(timeout))
    idle = IDLE_TIMEOUT_MS if given.idle_timeout_ms is None else given.idle_timeout_ms
    action.idle_timeout.CopyFrom(milliseconds(idle))
    if given.retries is not None:
        action.retry_policy.CopyFrom(_retry_policy(given.retries))
    if balancer is not None and balancer.hashes:
        action.hash_policy.extend(map(_hash_policy, balancer.hash_policies))
    found = route.Route(match=_match(given.match), route=action)
    _change_headers(found, given.request_headers, given.response_headers)
    return found


def _match(given: RequestMatch) -> route.RouteMatch:
    found = route.RouteMatch(
        headers=[matchers.header(header) for header in given.headers],
        query_parameters=[matchers.query(parameter) for parameter in given.query],
    )
    if given.methods:
        found.headers.append(matchers.methods(given.methods))
    path = matchers.text(given.path) if given.path is not None else None
    if path is None:
        found.prefix = "/"
    elif path.HasField("exact"):
        found.path = path.exact
    elif path.HasField("prefix"):
        found.prefix = path.prefix
    else:
        found.safe_regex.CopyFrom(path.safe_regex)
    return found


def _weighted(split: Split, clusters: Mapping[str, str]) -> route.WeightedCluster.ClusterWeight:
    found = route.WeightedCluster.ClusterWeight(name=clusters[split.node])
    found.weight.value = split.weight
    _change_headers(found, split.request_headers, split.response_headers)
    return found


def _change_headers(
    found: route.Route | route.WeightedCluster.ClusterWeight, request: HeaderChanges, response: HeaderChanges
) -> None:
    for changes, add, remove in (
        (request, found.request_headers_to_add, found.request_headers_to_remove),
        (response, found.response_headers_to_add, found.response_headers_to_remove),
    ):
        add.extend(matchers.header_options(changes.add, Added.APPEND_IF_EXISTS_OR_ADD))
        add.extend(matchers.header_options(changes.set, Added.OVERWRITE_IF_EXISTS_OR_ADD))
        remove.extend(changes.remove)


def _retry_policy(retries: Retries) -> route.RetryPolicy:
    found = route.RetryPolicy(retry_on=",".join(retries.on), retriable_status_codes=retries.status_codes)
    if retries.count is not None:
        found.num_retries.value = retries.count
    return found


def _hash_policy(policy: HashPolicy) -> route.RouteAction.HashPolicy:
    found = route.RouteAction.HashPolicy(terminal=policy.terminal)
    if policy.source_ip:
        found.connection_properties.source_ip = True
    elif policy.header:
        found.header.header_name = policy.header
    elif policy.cookie:
        found.cookie.name = policy.cookie
        found.cookie.path = policy.cookie_path
        if policy.cookie_ttl_ms is not None:
            found.cookie.ttl.CopyFrom(milliseconds(policy.cookie_ttl_ms))
    else:
        found.query_parameter.name = policy.query_parameter
    return found

"""Encodes exposed paths, which health probes and scrapers reach in plain HTTP without mutual TLS and intentions.

One listener for each port, with a route for each path: exactly that path, whatever its query. Any other path is
answered with 404 and never reaches the application.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from xds.envoy import clusters, names
from xds.envoy import http_connection_managers as managers
from xds.envoy.clusters import socket_address
from xds.envoy.resource import Resource
from xds.mesh.addresses import IPNetwork
from xds.mesh.config_entries import ExposedPath, ProxySettings
from xds.mesh.facts import Sidecar
from xds.mesh.http import MULTIPLEXED
from xds.policy.listeners import public_address
from xds.wire.envoy.config import core_pb2 as core
from xds.wire.envoy.config import listener_pb2 as listener
from xds.wire.envoy.config import route_pb2 as route


def exposed_clusters(sidecar: Sidecar, settings: ProxySettings, exposed: Iterable[ExposedPath]) -> Iterator[Resource]:
    """Return the clusters behind a sidecar's exposed paths, except the application's own."""
    for path in exposed:
        if not _is_the_applications(path, sidecar, settings):
            yield clusters.exposed(path.local_port, sidecar, settings, http2=path.http2)


def exposed_listeners(
    sidecar: Sidecar, settings: ProxySettings, exposed: Iterable[ExposedPath], sources: Iterable[IPNetwork]
) -> Iterator[tuple[listener.Listener, tuple[str, ...]]]:
    """Return the listeners of a sidecar's exposed paths, each with the clusters that it names.

    Args:
        sidecar: whose they are.
        settings: of it.
        exposed: the paths.
        sources: from where they may be asked for; from everywhere where there are none.
    """
    by_port: dict[int, list[ExposedPath]] = {}
    for path in exposed:
        by_port.setdefault(path.listener_port, []).append(path)
    address, _ = public_address(sidecar, settings)
    for port, paths in by_port.items():
        behind = {path.path: _cluster(path, sidecar, settings) for path in paths}
        yield _listener(address, port, behind, sources), tuple(sorted(set(behind.values())))


def _is_the_applications(path: ExposedPath, sidecar: Sidecar, settings: ProxySettings) -> bool:
    same_port = path.local_port == sidecar.local_service_port and not sidecar.local_service_socket_path
    return same_port and path.http2 == (settings.protocol in MULTIPLEXED)


def _cluster(path: ExposedPath, sidecar: Sidecar, settings: ProxySettings) -> str:
    if _is_the_applications(path, sidecar, settings):
        return names.LOCAL_APP
    return names.exposed_cluster(path.local_port, http2=path.http2)


def _listener(address: str, port: int, behind: Mapping[str, str], sources: Iterable[IPNetwork]) -> listener.Listener:
    routes = [
        route.Route(match=route.RouteMatch(path=path), route=route.RouteAction(cluster=cluster))
        for path, cluster in behind.items()
    ]
    chain = listener.FilterChain(filters=[managers.network_filter(managers.plain(f"exposed_paths_{port}", routes))])
    for source in sources:
        found = chain.filter_chain_match.source_prefix_ranges.add(address_prefix=str(source.network_address))
        found.prefix_len.value = source.prefixlen
    return listener.Listener(
        name=names.listener("exposed_paths", address, port),
        address=socket_address(address, port),
        traffic_direction=core.INBOUND,
        filter_chains=[chain],
    )

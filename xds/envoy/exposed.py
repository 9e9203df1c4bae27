"""Exposed paths: what health probes and scrapers reach in plain HTTP, past mutual TLS and the intentions.

One listener for each port, with a route for each path: exactly that path, whatever its query. Any other path is
answered with 404 and never reaches the application.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from xds.envoy import clusters, managers, names
from xds.envoy.clusters import socket_address
from xds.envoy.inbound import public_address
from xds.envoy.outbound import OUTBOUND_LISTENER_PORT
from xds.envoy.resource import LISTENER, Resource, encode
from xds.mesh.facts import Sidecar
from xds.mesh.settings import ExposedPath, ProxySettings
from xds.wire.envoy.config import core_pb2 as core
from xds.wire.envoy.config import listener_pb2 as listener
from xds.wire.envoy.config import route_pb2 as route


def exposable(sidecar: Sidecar, settings: ProxySettings) -> tuple[list[ExposedPath], list[str]]:
    """The paths that can be exposed, and why the others can't.

    A port that another listener of the sidecar needs stays that one's: a probe is not worth the way into the mesh.
    """
    taken = {path.local_port: "the application" for path in settings.exposed_paths or ()}
    taken[sidecar.local_service_port] = "the application"
    taken |= {each.local_bind_port: f"the upstream {each.name!r}" for each in sidecar.upstreams if each.refusal is None}
    taken[settings.outbound_listener_port or OUTBOUND_LISTENER_PORT] = "the outbound listener"
    taken[public_address(sidecar, settings)[1]] = "the public listener"
    found: dict[tuple[int, str], ExposedPath] = {}
    problems = []
    for path in settings.exposed_paths or ():
        key = (path.listener_port, path.path)
        if path.listener_port in taken:
            owner = taken[path.listener_port]
            problems.append(f"path {path.path!r} can't be exposed at port {path.listener_port}: {owner} has it")
        elif key in found and found[key] != path:
            problems.append(f"path {path.path!r} is exposed twice at port {path.listener_port}; the first one counts")
        else:
            found[key] = path
    return list(found.values()), problems


def exposed_resources(sidecar: Sidecar, settings: ProxySettings, exposed: Iterable[ExposedPath]) -> Iterator[Resource]:
    """The listeners of a sidecar's exposed paths, and the clusters behind them."""
    by_port: dict[int, list[ExposedPath]] = {}
    for path in exposed:
        by_port.setdefault(path.listener_port, []).append(path)
        if not _is_the_applications(path, sidecar):
            yield clusters.exposed(path.local_port, sidecar, settings, http2=path.http2)
    address, _ = public_address(sidecar, settings)
    for port, paths in by_port.items():
        yield _listener(address, port, paths, sidecar)


def _is_the_applications(path: ExposedPath, sidecar: Sidecar) -> bool:
    return path.local_port == sidecar.local_service_port and not sidecar.local_service_socket_path


def _listener(address: str, port: int, paths: list[ExposedPath], sidecar: Sidecar) -> Resource:
    name = names.listener("exposed_paths", address, port)
    behind = {
        path.path: names.LOCAL_APP if _is_the_applications(path, sidecar) else names.exposed_cluster(path.local_port)
        for path in paths
    }
    routes = [
        route.Route(match=route.RouteMatch(path=path), route=route.RouteAction(cluster=cluster))
        for path, cluster in behind.items()
    ]
    config = managers.plain(f"exposed_paths_{port}", routes)
    message = listener.Listener(
        name=name,
        address=socket_address(address, port),
        traffic_direction=core.INBOUND,
        filter_chains=[listener.FilterChain(filters=[managers.network_filter(config)])],
    )
    return encode(LISTENER, name, message, clusters=tuple(sorted(set(behind.values()))))

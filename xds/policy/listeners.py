"""Addresses and ports of a sidecar's listeners, and the exposed paths that have a port left."""

from __future__ import annotations

from xds.mesh.addresses import is_ip
from xds.mesh.config_entries import ExposedPath, ProxySettings
from xds.mesh.facts import Sidecar
from xds.outbound_port import OUTBOUND_LISTENER_PORT


def public_address(sidecar: Sidecar, settings: ProxySettings) -> tuple[str, int]:
    """Return the address and port of the public listener.

    Consul: ``bind_address``, otherwise the service's address, otherwise every address.
    """
    return (
        settings.bind_address or sidecar.address or "0.0.0.0",  # noqa: S104 - Consul's default
        settings.bind_port or sidecar.port,
    )


def exposable(sidecar: Sidecar, settings: ProxySettings) -> tuple[list[ExposedPath], list[str]]:
    """Return the paths that can be exposed, and the reasons why the others can't.

    A port that another listener of the sidecar needs stays with that listener: the mesh's traffic is more important
    than a probe.
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
        if not is_ip(sidecar.local_service_address):
            problems.append(f"path {path.path!r} can't be exposed: {sidecar.local_service_address!r} is no IP address")
        elif path.listener_port in taken:
            owner = taken[path.listener_port]
            problems.append(f"path {path.path!r} can't be exposed at port {path.listener_port}: {owner} has it")
        elif key in found and found[key] != path:
            problems.append(f"path {path.path!r} is exposed twice at port {path.listener_port}; the first one counts")
        else:
            found[key] = path
    return list(found.values()), problems

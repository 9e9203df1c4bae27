"""Finds contradictions within a mesh file. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from xds.mesh.addresses import canonical_ip
from xds.mesh.facts import CONTROL_PLANE_SERVICE
from xds.mesh.names import CONNECT_PROXY, fold
from xds.sources.file.lines import Path
from xds.sources.file.models import (
    VIRTUAL_TAGS,
    MeshFile,
    ServiceIntentions,
    ServiceResolver,
    ServiceRouter,
    ServiceSplitter,
)
from xds.sources.file.models.intentions import JWTProvider
from xds.sources.file.registered import Registered

Found = tuple[Path, str]
"""Path and description of a thing in the file."""


def contradictions(mesh: MeshFile, services: list[Registered]) -> Iterator[Found]:
    """Yield every contradiction with its place; ``services`` are what ``mesh`` registers."""
    yield from _reserved_names(services)
    yield from _repeated_ids(services)
    yield from _shared_addresses(services)
    yield from _exposed_elsewhere(services)
    yield from _shared_virtual_ips(services)
    yield from _incomplete_sidecars(services)
    yield from _partial_tokens(services)
    yield from _repeated_entries(mesh)
    yield from _missing_subsets(mesh)
    yield from _missing_providers(mesh)


def _reserved_names(services: list[Registered]) -> Iterator[Found]:
    for service in services:
        if service.destination is not None and fold(service.destination) == CONTROL_PLANE_SERVICE:
            yield (
                service.path,
                f"{service.destination!r} is Gossamer itself, and another service with its certificate could act as the"
                " control plane: give this one another name",
            )


def _repeated_ids(services: list[Registered]) -> Iterator[Found]:
    first: dict[str, Registered] = {}
    for service in services:
        other = first.setdefault(service.id, service)
        if other is not service:
            how = "each instance needs an id of its own" if service.name == other.name else "an id is one instance's"
            yield service.path, f"two services have the id {service.id!r}; {how}"


def _shared_addresses(services: list[Registered]) -> Iterator[Found]:
    """Yield programs that listen on one port of one address, a sidecar and its application included."""
    first: dict[tuple[str, int], Registered] = {}
    for service in services:
        if not service.port:
            continue
        other = first.setdefault((service.address, service.port), service)
        if other is not service and CONNECT_PROXY in (service.kind, other.kind):
            yield (
                (*service.path, "port"),
                f"{service.id!r} and {other.id!r} are both at {service.address}:{service.port}: give one of them"
                " another port or address",
            )


def _exposed_elsewhere(services: list[Registered]) -> Iterator[Found]:
    """Yield the paths that are exposed at a port where a sidecar, an application or another exposed path is."""
    there = {(service.address, service.port): service.id for service in services if service.port}
    for service in services:
        for number, path in enumerate(service.proxy.expose.paths):
            owner = there.get((service.address, path.listener_port))
            if owner is not None:
                where = (*service.path, "proxy", "expose", "paths", number, "listener_port")
                yield (
                    where,
                    f"{path.path!r} can't be exposed at {service.address}:{path.listener_port}: {owner!r} is there",
                )
        there |= {(service.address, path.listener_port): service.id for path in service.proxy.expose.paths}


def _shared_virtual_ips(services: list[Registered]) -> Iterator[Found]:
    """Yield services that share an address at the same port; different ports are allowed."""
    first: dict[tuple[str, int], str] = {}
    for service in services:
        for tag in VIRTUAL_TAGS:
            tagged = service.definition.tagged_addresses.get(tag)
            if tagged is None:
                continue
            address = canonical_ip(tagged.address) or tagged.address
            owner = service.proxy.destination_service_name if service.kind == CONNECT_PROXY else service.name
            port = tagged.port if tag == "virtual" else 0
            other = first.setdefault((address, port), owner)
            if fold(other) != fold(owner):
                path = (*service.path, "tagged_addresses", tag, "address")
                which = f"port {port} of the same virtual IP" if port else "the same virtual IP"
                yield path, f"{owner!r} and {other!r} claim {which} {address}"


def _incomplete_sidecars(services: list[Registered]) -> Iterator[Found]:
    for service in services:
        if service.kind == CONNECT_PROXY:
            if not service.proxy.destination_service_name:
                yield (
                    (*service.path, "proxy"),
                    f"{service.id!r} is a sidecar of nothing: it needs proxy.destination_service_name",
                )
            if not service.port:
                yield service.path, f"sidecar {service.id!r} needs the port that its Envoy listens on"
        for number, upstream in enumerate(service.definition.proxy.upstreams):
            if not upstream.local_bind_port and not upstream.local_bind_socket_path:
                path = (*service.path, "proxy", "upstreams", number)
                yield path, f"upstream {upstream.destination_name!r} needs a local_bind_port"


def _partial_tokens(services: list[Registered]) -> Iterator[Found]:
    """Yield services without a token beside others with one: anybody would be given their keys."""
    destinations: dict[str, Registered] = {}
    with_token: set[str] = set()
    for service in services:
        destination = service.destination
        if destination is None:
            continue
        destinations.setdefault(destination, service)
        if service.token:
            with_token.add(destination)
    for destination, service in destinations.items():
        if with_token and destination not in with_token:
            yield (
                service.path,
                f"{destination!r} has no token, but {min(with_token)!r} has: either every service in the mesh has one,"
                " or none and Gossamer listens on loopback only",
            )


def _missing_subsets(mesh: MeshFile) -> Iterator[Found]:
    """Yield where a router, a splitter or a resolver leads to a subset that no resolver has (Consul: no such chain)."""
    resolvers = [each for each in mesh.config_entries.bootstrap if isinstance(each, ServiceResolver)]
    subsets = {fold(each.Name): each.Subsets for each in resolvers}
    for number, entry in enumerate(mesh.config_entries.bootstrap):
        path: Path = ("config_entries", "bootstrap", number)
        named: list[tuple[Path, str, str]] = []
        if isinstance(entry, ServiceRouter):
            named = [
                (("Routes", index, "Destination"), each.Destination.Service, each.Destination.ServiceSubset)
                for index, each in enumerate(entry.Routes)
                if each.Destination is not None
            ]
        elif isinstance(entry, ServiceSplitter):
            named = [(("Splits", index), each.Service, each.ServiceSubset) for index, each in enumerate(entry.Splits)]
        elif isinstance(entry, ServiceResolver):
            if entry.Redirect is not None:
                named.append((("Redirect",), entry.Redirect.Service, entry.Redirect.ServiceSubset))
            for subset, to in entry.Failover.items():
                named.append((("Failover", subset), to.Service, to.ServiceSubset))
                named += [
                    (("Failover", subset, "Targets", index), each.Service, each.ServiceSubset)
                    for index, each in enumerate(to.Targets)
                    if not (each.Peer or each.Datacenter)
                ]
        for where, service, subset in named:
            service = service or str(getattr(entry, "Name", ""))
            if subset and subset not in subsets.get(fold(service), ()):
                yield (*path, *where), f"{service!r} has no subset {subset!r}"


def _missing_providers(mesh: MeshFile) -> Iterator[Found]:
    providers = {each.Name for each in mesh.config_entries.bootstrap if isinstance(each, JWTProvider)}
    for number, entry in enumerate(mesh.config_entries.bootstrap):
        if not isinstance(entry, ServiceIntentions):
            continue
        used = [*entry.JWT.Providers]
        used += [
            each for source in entry.Sources for permission in source.Permissions for each in permission.JWT.Providers
        ]
        for name in dict.fromkeys(each.Name for each in used if each.Name not in providers):
            yield ("config_entries", "bootstrap", number), f"there is no jwt-provider {name!r}"


def _repeated_entries(mesh: MeshFile) -> Iterator[Found]:
    entries: set[tuple[str, str]] = set()
    for number, entry in enumerate(mesh.config_entries.bootstrap):
        path: Path = ("config_entries", "bootstrap", number)
        name = str(getattr(entry, "Name", "mesh"))
        key = (entry.Kind, fold(name))
        if key in entries:
            yield path, f"there is a {entry.Kind} for {name!r} already"
        entries.add(key)
        if isinstance(entry, ServiceIntentions):
            sources: set[str] = set()
            for index, source in enumerate(entry.Sources):
                elsewhere = source.Peer or source.SamenessGroup
                if fold(source.Name) in sources and not elsewhere:
                    yield (*path, "Sources", index), f"{source.Name!r} is a source of this entry already"
                if not elsewhere:
                    sources.add(fold(source.Name))

"""What is meant for each proxy: the upstreams it shares with its siblings, and what is its own.

All sidecars of one service may call the same services, so they share one `ServiceView`. A `ProxyView` adds what is
one sidecar's alone, and is what its xDS session reads from.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from xds.control.upstreams import UpstreamCatalog
from xds.envoy import clusters, endpoints, listeners, names, tls
from xds.envoy.exposed import exposable, exposed_resources
from xds.envoy.resource import CLUSTER, ENDPOINT, LISTENER, SECRET, Resource
from xds.mesh.facts import (
    DiscoveryChain,
    ExplicitUpstream,
    Leaf,
    ProxyMode,
    ProxySettings,
    Roots,
    ServiceInstances,
    Sidecar,
    is_ip,
)
from xds.policy.intentions import ConnectionPolicy

ResourcesByType = Mapping[str, Mapping[str, Resource]]
Changes = dict[str, set[str]]
"""Names of resources that differ, by type."""


def differences(before: ResourcesByType, after: ResourcesByType) -> Changes:
    """The names whose resource was added, changed or removed."""
    changes: Changes = {}
    for type_url in before.keys() | after.keys():
        old, new = before.get(type_url, {}), after.get(type_url, {})
        changed = {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}
        if changed:
            changes[type_url] = changed
    return changes


class ServiceView:
    """The implicit upstreams of one service, as the resources that every transparent sidecar of it gets."""

    def __init__(self, catalog: UpstreamCatalog, outbound: listeners.OutboundSettings) -> None:
        self._catalog = catalog
        self._outbound = outbound
        self.upstreams: frozenset[str] = frozenset()
        self.resources: dict[str, dict[str, Resource]] = {CLUSTER: {}, ENDPOINT: {}}
        self.outside_ranges: frozenset[str] = frozenset()
        """The upstreams' addresses that the outbound listener has to be told one by one."""
        self.unknown: set[str] = set()
        """The upstreams that have not been read yet."""
        self._held: dict[str, ResourcesByType] = {}
        self._outside: dict[str, tuple[str, ...]] = {}

    def assign(self, upstreams: frozenset[str]) -> Changes:
        """Set which services are upstreams; the resources that differ by it."""
        moved = self.upstreams ^ upstreams
        self.upstreams = upstreams
        changes: Changes = {}
        for service in moved:
            merge(changes, self.refresh(service))
        return changes

    def refresh(self, service: str) -> Changes:
        """Take over the current encoding of ``service``; the resources that differ by it."""
        encoded = self._catalog[service]
        wanted = service in self.upstreams
        after: ResourcesByType = encoded.resources if wanted else {}
        changes = differences(self._held.pop(service, {}), after)
        if after:
            self._held[service] = after
        for type_url, changed in changes.items():
            mine = self.resources[type_url]
            for name in changed:
                resource = after.get(type_url, {}).get(name)
                if resource is not None:
                    mine[name] = resource
                elif not any(name in held.get(type_url, ()) for held in self._other_holders(name)):
                    mine.pop(name, None)
        if wanted and not encoded.known:
            self.unknown.add(service)
        else:
            self.unknown.discard(service)
        outside = self._outside_ranges(encoded.virtual_ips) if wanted else ()
        if outside != self._outside.get(service, ()):
            self._outside[service] = outside
            self.outside_ranges = frozenset(ip for ips in self._outside.values() for ip in ips)
        return changes

    def _other_holders(self, name: str) -> Iterator[ResourcesByType]:
        """Those that hold a resource of this name: an address that just changed hands is in the new owner's too."""
        owner = self._catalog.owner(name.removeprefix("vip:"))
        if owner is not None and owner in self._held:
            yield self._held[owner]

    def _outside_ranges(self, virtual_ips: Iterable[str]) -> tuple[str, ...]:
        return tuple(
            ip
            for ip in virtual_ips
            if not any(ipaddress.ip_address(ip) in network for network in self._outbound.virtual_ranges)
        )

    def problems(self) -> dict[str, list[str]]:
        """What was set aside, by upstream."""
        return {
            service: list(self._catalog[service].problems)
            for service in sorted(self.upstreams)
            if self._catalog[service].problems
        }


def merge(into: Changes, more: Changes) -> None:
    """Add the names of ``more`` to ``into``."""
    for type_url, changed in more.items():
        into.setdefault(type_url, set()).update(changed)


@dataclass(frozen=True, slots=True)
class ExplicitTarget:
    """What is known of an explicit upstream's service."""

    upstream: ExplicitUpstream
    instances: ServiceInstances | None
    chain: DiscoveryChain | None


@dataclass(frozen=True, slots=True)
class SidecarInputs:
    """Everything that one sidecar's own resources are made of; equal inputs, equal resources."""

    sidecar: Sidecar
    settings: ProxySettings
    policy: ConnectionPolicy
    roots: Roots
    leaf: Leaf
    datacenter: str
    outbound: listeners.OutboundSettings
    virtual_ips_outside_ranges: frozenset[str]
    explicit: tuple[ExplicitTarget, ...]


@dataclass(frozen=True, slots=True)
class OwnResources:
    """A sidecar's own resources, and what of its registration could not be followed."""

    resources: ResourcesByType
    problems: tuple[str, ...] = ()


def own_resources(inputs: SidecarInputs) -> OwnResources:
    """Encode what is ``inputs.sidecar``'s alone."""
    sidecar, settings = inputs.sidecar, inputs.settings
    made: dict[str, dict[str, Resource]] = {CLUSTER: {}, ENDPOINT: {}, LISTENER: {}, SECRET: {}}
    problems = list(sidecar.problems)

    def add(resource: Resource) -> None:
        made[resource.type_url][resource.name] = resource

    add(tls.leaf_secret(inputs.leaf))
    add(tls.roots_secret(inputs.roots))
    problem = _public_problem(sidecar, settings)
    if problem is None:
        add(clusters.local_app(sidecar, settings))
        add(listeners.public(sidecar, settings, inputs.policy, inputs.roots.trust_domain))
        exposed, more = exposable(sidecar, settings)
        problems += more
        for resource in exposed_resources(sidecar, settings, exposed):
            add(resource)
    else:
        problems.append(problem)
    if settings.mode is ProxyMode.TRANSPARENT:
        port = settings.outbound_listener_port or listeners.OUTBOUND_LISTENER_PORT
        add(listeners.outbound(inputs.outbound, port, inputs.virtual_ips_outside_ranges))
        if not inputs.outbound.destinations_only:
            add(clusters.original_destination())
    for target in inputs.explicit:
        problem = _explicit_problem(target)
        if problem is not None:
            problems.append(f"upstream {target.upstream.name!r}: {problem}")
        for resource in _explicit_resources(target, inputs):
            add(resource)
    return OwnResources(made, tuple(problems))


def _public_problem(sidecar: Sidecar, settings: ProxySettings) -> str | None:
    address, port = listeners.public_address(sidecar, settings)
    if not is_ip(address):
        return f"the public listener can't bind {address!r}: not an IP address; set bind_address in Proxy.Config"
    if not 0 < port < 65536:
        return f"the public listener can't bind port {port}: expected 1 to 65535"
    if sidecar.local_service_socket_path:
        return None
    if not is_ip(sidecar.local_service_address):
        return f"LocalServiceAddress {sidecar.local_service_address!r} is not an IP address"
    if not 0 < sidecar.local_service_port < 65536:
        return f"LocalServicePort {sidecar.local_service_port} is not between 1 and 65535"
    return None


def _explicit_problem(target: ExplicitTarget) -> str | None:
    if target.upstream.refusal is not None:
        return target.upstream.refusal
    if target.chain is not None and target.chain.refusal is not None:
        return target.chain.refusal
    if target.instances is None or target.chain is None:
        return "not read from Consul yet"
    if not target.instances.instances:
        return "has no instances; connections to it are refused until one is registered"
    return None


def _explicit_resources(target: ExplicitTarget, inputs: SidecarInputs) -> Iterator[Resource]:
    upstream, instances, chain = target.upstream, target.instances, target.chain
    if upstream.refusal is not None or instances is None or chain is None or chain.refusal is not None:
        return
    cluster = names.service_cluster(upstream.name, inputs.datacenter, inputs.roots.trust_domain)
    timeout = chain.connect_timeout_ms
    if upstream.connect_timeout_ms is not None and upstream.connect_timeout_ms != timeout:
        # Consul, too, gives an upstream with settings of its own a cluster of its own, marked by a prefix and "~".
        timeout = upstream.connect_timeout_ms
        cluster = f"{timeout:08x}~{cluster}"
    yield clusters.service_cluster(cluster, upstream.name, inputs.datacenter, inputs.roots.trust_domain, timeout)
    yield endpoints.load_assignment(cluster, instances)
    yield listeners.explicit(upstream, cluster, inputs.datacenter)

"""What is meant for each proxy: the upstreams it shares with its siblings, and what is its own.

All sidecars of one service may call the same services, so they share one `ServiceView`. What is one sidecar's alone is
made by `own_resources`; its `xds.control.proxy.Proxy` joins both, and is what its xDS session reads from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from xds.control.upstreams import EncodedUpstream, UpstreamCatalog
from xds.envoy import clusters, jwt, names, outbound, tls
from xds.envoy.clusters import Here
from xds.envoy.dns import Named, dns_listener, unanswerable
from xds.envoy.egress import EgressHost, scopes
from xds.envoy.exposed import exposable, exposed_clusters, exposed_listeners
from xds.envoy.extensions import INBOUND, OUTBOUND, ExtensionError, Extensions
from xds.envoy.inbound import Admission, inbound_routes, public, public_address
from xds.envoy.observe import Observation
from xds.envoy.outbound import OutboundSettings
from xds.envoy.overrides import OverrideError, cluster_from
from xds.envoy.resource import CLUSTER, ENDPOINT, LISTENER, SCOPED_ROUTE, Resource, encode
from xds.envoy.upstreams import UpstreamEncoder
from xds.mesh.chains import DiscoveryChain, Target
from xds.mesh.facts import ExplicitUpstream, Instance, Leaf, Roots, Sidecar, VirtualAddress, is_ip
from xds.mesh.http import HTTP_PROTOCOLS
from xds.mesh.settings import Extension, MeshSettings, ProxyMode, ProxySettings, UpstreamSettings

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

    def __init__(self, catalog: UpstreamCatalog, outbound: OutboundSettings) -> None:
        self._catalog = catalog
        self._outbound = outbound
        self.upstreams: Mapping[str, UpstreamSettings] = {}
        """The upstreams, each with how it is called."""
        self.extensions: tuple[Extension, ...] = ()
        """What is put into what is made for them."""
        self.resources: dict[str, dict[str, Resource]] = {CLUSTER: {}, ENDPOINT: {}, SCOPED_ROUTE: {}}
        self.listed: dict[VirtualAddress, str] = {}
        """The upstreams' addresses that the outbound listener has to be told of, each with its protocol."""
        self.named: dict[str, tuple[str, ...]] = {}
        """The upstreams' virtual IPs, by name."""
        self.hosts: frozenset[EgressHost] = frozenset()
        """The hosts outside the mesh that are reached through a gateway."""
        self.unknown: set[str] = set()
        """The upstreams that have not been read yet."""
        self._held: dict[str, EncodedUpstream] = {}

    def assign(self, upstreams: Mapping[str, UpstreamSettings], extensions: tuple[Extension, ...] = ()) -> Changes:
        """Set which services are upstreams, and how they are called; the resources that differ by it."""
        before, self.upstreams = self.upstreams, upstreams
        patched, self.extensions = self.extensions, extensions
        changes: Changes = {}
        for service in before.keys() | upstreams.keys():
            if before.get(service) != upstreams.get(service) or patched != extensions:
                merge(changes, self.refresh(service))
        return changes

    def _patched(self, service: str, encoded: EncodedUpstream) -> EncodedUpstream:
        """An upstream with the extensions of who calls it."""
        if not self.extensions:
            return encoded
        try:
            extensions = Extensions(self.extensions)
            if not extensions.patches_upstreams:
                return encoded
            resources = {
                type_url: {name: extensions.patched(each, OUTBOUND, service) for name, each in by_name.items()}
                for type_url, by_name in encoded.resources.items()
            }
        except (ExtensionError, ValueError, TypeError, KeyError) as error:
            # That it can't be applied is told for the sidecar itself; a patch that fits no more leaves things be.
            return replace(encoded, problems=(*encoded.problems, str(error)))
        return replace(encoded, resources=resources)

    def refresh(self, service: str) -> Changes:
        """Take over the current encoding of ``service``; the resources that differ by it."""
        settings = self.upstreams.get(service)
        encoded = NOTHING if settings is None else self._patched(service, self._catalog.get(service, settings))
        before = self._held.pop(service, NOTHING)
        if settings is not None:
            self._held[service] = encoded
        changes = differences(before.resources, encoded.resources)
        for type_url, changed in changes.items():
            mine = self.resources[type_url]
            for name in changed:
                resource = encoded.resources.get(type_url, {}).get(name)
                if resource is not None:
                    mine[name] = resource
                elif not self._is_held_by_its_owner(type_url, name):
                    mine.pop(name, None)
        if settings is not None and not encoded.known:
            self.unknown.add(service)
        else:
            self.unknown.discard(service)
        if before.dialed != encoded.dialed:
            self.named.pop(service, None)
            addresses = dict.fromkeys(at.ip for at in encoded.dialed if not at.own)
            if addresses:
                self.named[service] = tuple(addresses)
            self._relist(before.dialed, encoded.dialed)
        if before.hosts != encoded.hosts:
            merge(changes, self._refresh_hosts())
        return changes

    def _relist(self, before: Mapping[VirtualAddress, str], after: Mapping[VirtualAddress, str]) -> None:
        """Bring what the outbound listener is told of up to date; an address that changed hands stays its new owner's.

        It is replaced rather than changed: who holds it compares it with what it was.
        """
        now: dict[VirtualAddress, str | None] = {}
        for at in before.keys() | after.keys():
            holder = self._holder_of(at)
            protocol = holder.dialed[at] if holder is not None else ""
            lists = holder is not None and self._outbound.lists(at, protocol)
            now[at] = protocol if lists else None
        if any(self.listed.get(at) != protocol for at, protocol in now.items()):
            merged = {**self.listed, **now}
            self.listed = {at: protocol for at, protocol in merged.items() if protocol is not None}

    def _holder_of(self, at: VirtualAddress) -> EncodedUpstream | None:
        held = self._held.get(self._catalog.owner(names.dialed(at)) or "")
        return held if held is not None and at in held.dialed else None

    def _refresh_hosts(self) -> Changes:
        """Make the routes to hosts outside the mesh anew: those of several services share one for each port."""
        self.hosts = frozenset(host for held in self._held.values() for host in held.hosts)
        routes = scopes(self.hosts, destinations_only=self._outbound.destinations_only)
        mine = self.resources[SCOPED_ROUTE]
        before = {name: resource for name, resource in mine.items() if name.startswith("egress:")}
        for name in before.keys() - routes.keys():
            del mine[name]
        mine.update(routes)
        return differences({SCOPED_ROUTE: before}, {SCOPED_ROUTE: routes})

    def _is_held_by_its_owner(self, type_url: str, name: str) -> bool:
        """Whether somebody else's resource has this name: an address that just changed hands is its new owner's."""
        held = self._held.get(self._catalog.owner(name) or "")
        return held is not None and name in held.resources.get(type_url, ())

    def told(self) -> tuple[object, ...]:
        """What of the upstreams is part of listeners."""
        return self.listed, dict(self.named), self.hosts

    def problems(self) -> dict[str, list[str]]:
        """What was set aside, by upstream."""
        return {service: list(held.problems) for service, held in sorted(self._held.items()) if held.problems}


NOTHING = EncodedUpstream(known=True)


def merge(into: Changes, more: Changes) -> None:
    """Add the names of ``more`` to ``into``."""
    for type_url, changed in more.items():
        into.setdefault(type_url, set()).update(changed)


@dataclass(frozen=True, slots=True)
class ExplicitTarget:
    """What is known of an explicit upstream: its chain, and the instances that the chain ends at."""

    upstream: ExplicitUpstream
    chain: DiscoveryChain | None
    instances: tuple[tuple[Target, tuple[Instance, ...]], ...] = ()
    unread: bool = False
    """Whether something about it has not been read yet."""
    problems: tuple[str, ...] = ()
    """What keeps some of its instances from being called."""


@dataclass(frozen=True, slots=True)
class SidecarInputs:
    """Everything that one sidecar's own resources are made of; equal inputs, equal resources."""

    sidecar: Sidecar
    settings: ProxySettings
    mesh: MeshSettings
    admission: Admission
    problems: tuple[str, ...]
    """What can't be followed of the config entries and intentions that are about it."""
    roots: Roots
    leaf: Leaf
    here: Here
    outbound: OutboundSettings
    listed: tuple[tuple[VirtualAddress, str], ...]
    """The addresses that the outbound listener has to be told of, each with its protocol."""
    explicit: tuple[ExplicitTarget, ...]
    hosts: frozenset[EgressHost] = frozenset()
    """The hosts outside the mesh that are reached through a gateway."""
    dual_stack: bool = False
    dns_port: int = 0
    named: tuple[Named, ...] = ()
    """For DNS, where it is answered: the upstreams and their virtual IPs."""


@dataclass(frozen=True, slots=True)
class OwnResources:
    """A sidecar's own resources, and what of its registration could not be followed."""

    resources: ResourcesByType
    problems: tuple[str, ...] = ()


def own_resources(inputs: SidecarInputs) -> OwnResources:
    """Encode what is ``inputs.sidecar``'s alone."""
    made: dict[str, dict[str, Resource]] = {}
    problems = [*inputs.sidecar.problems, *inputs.problems]
    for resource in _own_resources(inputs, problems.append):
        made.setdefault(resource.type_url, {})[resource.name] = resource
    return OwnResources(made, tuple(dict.fromkeys(problems)))


def _own_resources(inputs: SidecarInputs, problem: Callable[[str], None]) -> Iterator[Resource]:
    sidecar, settings = inputs.sidecar, inputs.settings
    yield tls.leaf_secret(inputs.leaf)
    yield tls.roots_secret(inputs.roots)
    extensions = Extensions(settings.extensions or ())
    for each in extensions.problems:
        problem(each)
    yield from extensions.clusters()
    try:
        observation = Observation(settings, extensions)
    except OverrideError as error:
        problem(str(error))
        observation = Observation(ProxySettings(), extensions)
    wrong = _public_problem(sidecar, settings)
    if wrong is None:
        for resource in _inbound(inputs, observation, problem):
            patchable = resource.type_url in (CLUSTER, SCOPED_ROUTE)
            yield extensions.patched(resource, INBOUND) if patchable else resource
    else:
        problem(wrong)
    if settings.mode is ProxyMode.TRANSPARENT:
        port = settings.outbound_listener_port or outbound.OUTBOUND_LISTENER_PORT
        listed = dict(inputs.listed)
        listener = outbound.outbound(inputs.outbound, port, listed, inputs.hosts, dual_stack=inputs.dual_stack)
        named = outbound.outbound_clusters(inputs.outbound, listed, inputs.hosts)
        scopes_named = outbound.outbound_routes(listed, inputs.hosts)
        yield observation.encode(listener, named, OUTBOUND, routes=scopes_named, of_all_upstreams=True)
        if not inputs.outbound.destinations_only:
            yield clusters.original_destination(inputs.outbound.passthrough_connect_timeout_ms)
        if inputs.dns_port:
            for service in unanswerable(inputs.named):
                problem(f"upstream {service!r} can't be a name in DNS; the sidecar does not answer for it")
            made = dns_listener(inputs.dns_port, inputs.named, inputs.here.datacenter, dual_stack=inputs.dual_stack)
            yield encode(LISTENER, made.name, made, of_all_upstreams=True)
    for target in inputs.explicit:

        def upstream_problem(text: str, name: str = target.upstream.name) -> None:
            problem(f"upstream {name!r}: {text}")

        for resource in _guarded(_explicit(target, inputs.here, observation, upstream_problem), upstream_problem):
            patchable = resource.type_url != LISTENER
            yield extensions.patched(resource, OUTBOUND, target.upstream.name) if patchable else resource


def _inbound(inputs: SidecarInputs, observation: Observation, problem: Callable[[str], None]) -> Iterator[Resource]:
    sidecar, settings, trust_domain = inputs.sidecar, inputs.settings, inputs.roots.trust_domain
    application = clusters.local_app(sidecar, settings)
    if settings.local_cluster_json:
        try:
            application = cluster_from("envoy_local_cluster_json", settings.local_cluster_json, application)
        except OverrideError as error:
            problem(f"{error}; the generated cluster is used")
    yield application
    if settings.protocol in HTTP_PROTOCOLS or settings.public_listener_json:
        providers = inputs.admission.used_providers()
        yield from jwt.key_clusters(providers)
        yield jwt.authentication(providers)
    if settings.protocol in HTTP_PROTOCOLS:
        yield inbound_routes(settings, inputs.admission, trust_domain)
    try:
        listener = public(sidecar, settings, inputs.mesh, inputs.admission, trust_domain, dual_stack=inputs.dual_stack)
        scoped = (names.INBOUND_SCOPE,) if settings.protocol in HTTP_PROTOCOLS else ()
        yield observation.encode(listener, (names.LOCAL_APP,), INBOUND, routes=scoped)
    except OverrideError as error:
        problem(f"{error}; it is refused, and nobody reaches the application through the mesh")
    if settings.permissive_mtls and not inputs.mesh.allow_permissive_mtls:
        problem(
            "MutualTLSMode 'permissive' has no effect: the mesh entry does not say AllowEnablingPermissiveMutualTLS"
        )
    yield from _guarded(_exposed(inputs, observation, problem), problem)


def _guarded(resources: Iterator[Resource], problem: Callable[[str], None]) -> Iterator[Resource]:
    """What is beside the main thing: whatever is wrong with it, everything else is brought up to date."""
    try:
        made = list(resources)
    except ExtensionError:
        raise
    except Exception as error:
        problem(f"can't be turned into Envoy's configuration: {error!r}")
        return
    yield from made


def _exposed(inputs: SidecarInputs, observation: Observation, problem: Callable[[str], None]) -> Iterator[Resource]:
    sidecar, settings = inputs.sidecar, inputs.settings
    exposed, more = exposable(sidecar, settings)
    for each in more:
        problem(each)
    yield from exposed_clusters(sidecar, settings, exposed)
    for listener, named in exposed_listeners(sidecar, settings, exposed, inputs.outbound.probe_sources):
        yield observation.encode(listener, named, INBOUND)


def _explicit(
    target: ExplicitTarget, here: Here, observation: Observation, problem: Callable[[str], None]
) -> Iterator[Resource]:
    upstream = target.upstream
    encoder = _explicit_encoder(target, here)
    wrong = _explicit_problem(target, encoder)
    if wrong is not None:
        problem(wrong)
    if encoder is None or encoder.refusal() is not None or target.chain is None:
        return
    name = outbound.explicit_name(upstream)
    settings, protocol = upstream.settings, target.chain.protocol
    if settings.listener_json and (protocol in HTTP_PROTOCOLS or not target.chain.is_default):
        problem("envoy_listener_json is only for a service without routes, and of TCP; the generated listener is used")
        upstream = replace(upstream, settings=replace(settings, listener_json=None))
    if upstream.settings.listener_json:
        # Whoever writes such a listener names the cluster as Consul does.
        name = encoder.consul_name()
    try:
        listener = outbound.explicit(upstream, protocol, here.datacenter)
    except OverrideError as error:
        problem(f"{error}; the generated listener is used")
        name, upstream = (
            outbound.explicit_name(upstream),
            replace(upstream, settings=replace(settings, listener_json=None)),
        )
        listener = outbound.explicit(upstream, protocol, here.datacenter)
    yield from encoder.resources([name])
    for each in (*encoder.problems, *target.problems):
        problem(each)
    http = protocol in HTTP_PROTOCOLS
    yield observation.encode(listener, () if http else (name,), OUTBOUND, routes=(name,) if http else ())


def _public_problem(sidecar: Sidecar, settings: ProxySettings) -> str | None:
    address, port = public_address(sidecar, settings)
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


def _explicit_encoder(target: ExplicitTarget, here: Here) -> UpstreamEncoder | None:
    """Encodes an explicit upstream, once it has been read and if it can be served."""
    if target.upstream.refusal is not None or target.chain is None or target.unread:
        return None
    instances = dict(target.instances)
    owner = outbound.explicit_name(target.upstream)
    return UpstreamEncoder(target.chain, target.upstream.settings, here, lambda each: instances.get(each, ()), owner)


def _explicit_problem(target: ExplicitTarget, encoder: UpstreamEncoder | None) -> str | None:
    if target.upstream.refusal is not None:
        return target.upstream.refusal
    if encoder is None:
        return "not read from Consul yet"
    refusal = encoder.refusal()
    if refusal is not None:
        return refusal
    if not any(instances for _, instances in target.instances):
        return "has no instances; connections to it are refused until one is registered"
    return None

"""Encodes services as upstreams, each once for all proxies that call it with the same settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from xds.envoy import endpoints, names
from xds.envoy.clusters import Here
from xds.envoy.egress import EgressHost
from xds.envoy.resource import Resource
from xds.envoy.upstreams import UpstreamEncoder, members
from xds.mesh.addresses import canonical_ip, is_ip, parse_ip
from xds.mesh.chains import DiscoveryChain, Elsewhere, GatewaysOf, InstancesOf, Target
from xds.mesh.config_entries import ConfigEntries, Destination, UpstreamSettings
from xds.mesh.facts import Health, Instance, ServiceInstances, VirtualAddress
from xds.mesh.mesh import Mesh
from xds.mesh.names import WILDCARD, fold
from xds.policy.filters import terms
from xds.policy.mesh_wide_settings import MeshWideSettings
from xds.policy.proxies import is_dialed_directly
from xds.policy.quotas import excess
from xds.policy.upstreams import Candidates
from xds.policy.virtual_ips import Claims, VirtualIPTable, claims


@dataclass(frozen=True, slots=True)
class EncodedUpstream:
    """Resources that a service contributes to a proxy that may call it."""

    dialed: Mapping[VirtualAddress, str] = field(default_factory=dict)
    """The addresses at which it is dialed, each with its protocol."""
    hosts: frozenset[EgressHost] = frozenset()
    """The hosts outside the mesh that it stands for."""
    resources: Mapping[str, Mapping[str, Resource]] = field(default_factory=dict)
    """Resources by type, then by name; no other service's have these names."""
    egress: Mapping[str, Mapping[str, Resource]] = field(default_factory=dict)
    """Resources that lead to hosts outside the mesh, which other services may stand for as well."""
    problems: tuple[str, ...] = ()
    """Problems: what was set aside and why."""
    known: bool = False
    """Whether everything about the service has been read."""


UNKNOWN = EncodedUpstream()
NO_CLAIMS = Claims({})


def here(mesh: Mesh) -> Here | None:
    """Return the place of the mesh, ``None`` while that is not known."""
    roots, datacenter, entries = mesh.roots, mesh.datacenter, mesh.config_entries
    if roots is None or datacenter is None or entries is None:
        return None
    return Here(datacenter, roots.trust_domain, entries.mesh.outgoing_tls)


class UpstreamCatalog:
    """Catalog of every service that some proxy may call. A service that changed is encoded again when it is next
    needed."""

    def __init__(self, mesh: Mesh, mesh_wide: MeshWideSettings) -> None:
        self._mesh = mesh
        self._ranges, self._quotas = mesh_wide.virtual_ranges, mesh_wide.quotas
        self._table = VirtualIPTable(strict=mesh_wide.strict_ports)
        self._encoded: dict[str, dict[UpstreamSettings, EncodedUpstream]] = {}
        self._refused: dict[str, tuple[str, ...]] = {}
        """Reasons why a service can't have some of the addresses that it claims, by service."""
        self._uses: dict[str, frozenset[str | Elsewhere]] = {}
        """Services and instances elsewhere that an upstream's chain ends at, by upstream."""
        self._used_by: dict[str | Elsewhere, set[str]] = {}
        self._elsewhere: set[str] = set()
        self.leads_changes = 0
        """Number of changes of what `leads_to` returns."""
        self.candidates = Candidates()
        """Names that can be upstreams."""

    def get(self, service: str, settings: UpstreamSettings) -> EncodedUpstream:
        """Return ``service`` encoded for callers with these settings."""
        variants = self._encoded.setdefault(service, {})
        found = variants.get(settings)
        if found is None:
            found = variants[settings] = self._encode(service, settings)
        return found

    def update_candidates(self) -> Candidates:
        """Bring the names that can be upstreams up to date: those of the catalog, of config entries and of intentions.

        In Consul (``agent/consul/state/catalog.go``) these have a virtual IP, with or without instances.

        Returns:
            The previous ones, which are the current ones if nothing differs.
        """
        before, entries = self.candidates, self._mesh.config_entries
        destinations = {intention.destination for intention in self._mesh.intentions or ()} - {WILDCARD}
        chain_names = entries.chain_names if entries else ()
        found = Candidates(self._mesh.service_names or (), chain_names, destinations)
        if found.differing(before):
            self.candidates = found
        return before

    def chain(self, service: str | InstancesOf) -> DiscoveryChain | None:
        """Return the discovery chain of ``service``, ``None`` while it has not been read."""
        found = self._mesh.chain(service)
        return found.spelled(self.candidates.spelled) if found is not None else None

    def forget(self, service: str) -> None:
        """Remove the encodings of ``service``, which has no callers any more."""
        self._encoded.pop(service, None)

    def leads_to(self, service: str) -> frozenset[str | Elsewhere]:
        """Return what has to be read for ``service`` beside the service itself."""
        return self._uses.get(service, frozenset()) - {service}

    def leading_elsewhere(self) -> Iterable[str]:
        """Return the services for which `leads_to` returns something."""
        return self._elsewhere

    def refresh(self, changed: str | Elsewhere) -> frozenset[str]:
        """Follow a change of the instances or the chain of a service.

        Returns:
            The upstreams that may differ from before: it, those whose chains end there, and those that gained or lost
            a virtual IP by it.
        """
        touched = {*self._used_by.get(_key(changed), ())}
        if isinstance(changed, str):
            self._forget_uses(changed)
            # A service that is no candidate can't be called, so it owns no address either.
            instances = self._mesh.instances(changed) if changed in self.candidates.names else None
            claimed = self._claims(instances, self._mesh.chain(changed)) if instances is not None else NO_CLAIMS
            refused = [f"virtual IP {text!r} is not an IP address" for text in claimed.malformed]
            refused += [
                f"virtual IP {ip} is a tagged address outside the ranges of virtual IPs, where it could be anybody's:"
                " gossamer serve --virtual-ip-range allows a range"
                for ip in claimed.outside
            ]
            if refused:
                self._refused[changed] = tuple(refused)
            else:
                self._refused.pop(changed, None)
            touched |= self._table.claim(changed, claimed.since) | {changed}
        for service in touched:
            self._encoded.pop(service, None)
        return frozenset(touched)

    def _claims(self, instances: ServiceInstances, chain: DiscoveryChain | None) -> Claims:
        return claims(instances, chain, self._ranges, self._dialed_directly(instances), self._outside(instances))

    def _destination(self, instances: ServiceInstances) -> Destination | None:
        """Return where outside the mesh a service is.

        The owner of a service can name any host in its service-defaults. So a destination counts only for services that
        are linked to a terminating gateway, which needs an operator's rights.
        """
        found = (self._mesh.config_entries or ConfigEntries()).destination_of(instances.service)
        return found if any(instance.is_gateway for instance in instances.instances) else None

    def _outside(self, instances: ServiceInstances) -> dict[VirtualAddress, str]:
        """Return the IP addresses outside the mesh that a service stands for, and as they were written."""
        destination = self._destination(instances)
        if destination is None:
            return {}
        ips = [address for address in destination.addresses if is_ip(address)]
        return {VirtualAddress(canonical_ip(ip) or ip, destination.port, own=True): ip for ip in ips}

    def _hosts(self, instances: ServiceInstances, *, http: bool) -> frozenset[EgressHost]:
        destination = self._destination(instances)
        if destination is None:
            return frozenset()
        named = [address for address in destination.addresses if not is_ip(address)]
        return frozenset(EgressHost(destination.port, host, http) for host in named)

    def _dialed_directly(self, instances: ServiceInstances) -> list[Instance]:
        """Return the instances that let others dial their own address, by their registration or a config entry."""
        entries = self._mesh.config_entries or ConfigEntries()
        return [
            instance
            for instance in instances.instances
            if instance.sidecar is not None
            and is_dialed_directly(instance.sidecar, entries)
            and endpoints.unreachable(instance) is None
            and not parse_ip(instance.address).is_loopback  # every host has its own
        ]

    def _alone(self, instances: ServiceInstances) -> dict[tuple[str, int], Instance]:
        return {
            (canonical_ip(each.address) or "", each.application_port): each for each in self._dialed_directly(instances)
        }

    def _encode(self, service: str, settings: UpstreamSettings) -> EncodedUpstream:
        try:
            return self._encoding(service, settings)
        except Exception as error:
            # An error in one service sets aside that service only.
            return EncodedUpstream(problems=(f"can't be turned into Envoy's configuration: {error!r}",), known=True)

    def _encoding(self, service: str, settings: UpstreamSettings) -> EncodedUpstream:
        instances, chain, place = self._mesh.instances(service), self.chain(service), here(self._mesh)
        if instances is None or chain is None or place is None:
            return UNKNOWN
        chain = chain.speaking(settings.protocol)
        self._note_uses(service, chain.reads(settings.mesh_gateway))
        if any(isinstance(used, str) and self._mesh.instances(used) is None for used in self._uses[service]):
            return UNKNOWN
        problems = [*self._refused.get(service, ())]
        problems += [
            f"virtual IP {at.ip} belongs to service {owner!r}, to which it was assigned or which claimed it first"
            for at, owner in self._table.lost(service).items()
        ]
        problems += [
            f"virtual IP {ip} is claimed by {' and '.join(map(repr, others))} as well; this service keeps it"
            for ip, others in self._table.contested(service).items()
        ]
        entries = self._mesh.config_entries or ConfigEntries()
        if entries.destination_of(service) is not None and self._destination(instances) is None:
            problems.append("Destination has no effect: no terminating gateway is linked to the service")
        problems += chain.problems
        problems += target_problems(self._mesh, service, chain, settings.mesh_gateway)
        encoder = UpstreamEncoder(chain, settings, place, lambda target: self.instances_of(target, settings))
        refusal = encoder.refusal() or self.excess(chain)
        if refusal is not None:
            return EncodedUpstream(problems=(*problems, refusal), known=True)
        owned = self._table.owned(service)
        if len(owned) > self._quotas.addresses:
            text = f"it is dialed at {len(owned)} addresses, and the quota addresses is {self._quotas.addresses}"
            return EncodedUpstream(problems=(*problems, text), known=True)
        made = [*encoder.resources(names.dialed(at) for at in owned if not at.own)]
        alone = self._alone(instances) if any(at.own for at in owned) else {}
        outside = self._outside(instances)
        for at in owned:
            if at.own and at in outside:
                made += encoder.outside(names.dialed(at), outside[at], instances.instances)
            elif at.own and (at.ip, at.port) in alone:
                made += encoder.alone(names.dialed(at), alone[at.ip, at.port])
        hosts = self._hosts(instances, http=encoder.is_http)
        egress = [r for host in hosts for r in encoder.outside(host.cluster, host.host, instances.instances)]
        problems += encoder.problems
        dialed, reported = dict.fromkeys(owned, chain.protocol), tuple(dict.fromkeys(problems))
        return EncodedUpstream(dialed, hosts, _by_type(made), _by_type(egress), reported, known=True)

    def excess(self, chain: DiscoveryChain) -> str | None:
        """Return which quota a chain exceeds, ``None`` where it exceeds none."""
        counts = {}
        for key, target in chain.targets.items():
            found = self._mesh.instances(target.instances)
            counts[key] = len(found.instances) if found is not None else 0
        return excess(chain, {key: terms(each.filter) for key, each in chain.targets.items()}, counts, self._quotas)

    def _note_uses(self, service: str, uses: frozenset[str | Elsewhere]) -> None:
        for used in map(_key, uses):
            self._used_by.setdefault(used, set()).add(service)
        self._uses[service] = self._uses.get(service, frozenset()) | uses
        if self._uses[service] - {service}:
            self._elsewhere.add(service)
            self.leads_changes += 1

    def _forget_uses(self, service: str) -> None:
        if service in self._elsewhere:
            self._elsewhere.discard(service)
            self.leads_changes += 1
        for used in {*map(_key, self._uses.pop(service, frozenset()))}:
            users = self._used_by[used]
            users.discard(service)
            if not users:
                del self._used_by[used]

    def instances_of(self, target: Target, settings: UpstreamSettings) -> tuple[Instance, ...]:
        """Return the instances that belong to a target, or the mesh gateways that lead to them.

        A gateway is as healthy as what is behind it: one good instance is enough (Consul, agent/xds/endpoints.go).
        """
        found = self._mesh.instances(target.instances)
        there = tuple(members(target, found.instances)) if found is not None else ()
        key = target.gateways(settings.mesh_gateway)
        if key is None:
            return there
        gateways = self._mesh.instances(key)
        reachable = any(endpoints.health_and_weight(instance)[0] for instance in there)
        health = Health.PASSING if reachable else Health.CRITICAL
        if gateways is None:
            return ()
        return tuple(replace(gateway, health=health) for gateway in gateways.instances)


def _key(used: str | Elsewhere) -> str | Elsewhere:
    """Return what users are noted under: for a service whatever it is spelled like, as that may change."""
    return fold(used) if isinstance(used, str) else used


def _by_type(resources: Iterable[Resource]) -> dict[str, dict[str, Resource]]:
    found: dict[str, dict[str, Resource]] = {}
    for resource in resources:
        found.setdefault(resource.type_url, {})[resource.name] = resource
    return found


def _in_words(used: str | Elsewhere) -> str:
    match used:
        case InstancesOf(service, datacenter):
            return f"the instances of {service!r} in {datacenter!r}"
        case GatewaysOf(datacenter):
            return f"the mesh gateways of {datacenter or 'this datacenter'}"
        case str():
            return f"the instances of {used!r}"
    return f"the instances that the prepared query {used.query!r} finds"


def target_problems(mesh: Mesh, service: str, chain: DiscoveryChain, mode: str | None) -> list[str]:
    """Yield what keeps instances of a chain's targets from being called; ``mode`` as for `Target.gateways`."""
    problems = []
    for used in sorted(chain.reads(mode), key=repr):
        found = mesh.instances(used)
        if not isinstance(used, str) and found is None:
            problems.append(f"{_in_words(used)} have not been read yet")
        elif found is not None and not found.instances and used != service:
            problems.append(f"it leads to {_in_words(used)}, of which there are none")
        if found is None:
            continue
        problems.extend(found.problems)
        for instance in found.instances:
            problems.extend(instance.problems)
            problem = endpoints.unreachable(instance)
            if problem is not None:
                problems.append(problem)
    return problems

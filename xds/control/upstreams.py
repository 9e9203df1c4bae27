"""Services as upstreams, each encoded once and shared by every proxy that may call it."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field

from xds.envoy import clusters, endpoints, names
from xds.envoy.resource import CLUSTER, ENDPOINT, Resource
from xds.mesh.facts import ConfigEntries, DiscoveryChain, Instance, ServiceInstances
from xds.mesh.mesh import Mesh
from xds.policy.proxies import effective_settings
from xds.policy.virtual_ips import Claims, VirtualIPTable, claims


@dataclass(frozen=True, slots=True)
class EncodedUpstream:
    """What a service contributes to a proxy that may call it."""

    virtual_ips: tuple[str, ...] = ()
    resources: Mapping[str, Mapping[str, Resource]] = field(default_factory=dict)
    """By type, then by name."""
    problems: tuple[str, ...] = ()
    """What was set aside and why."""
    known: bool = False
    """Whether the service's instances and its chain have been read at all."""


UNKNOWN = EncodedUpstream()


class UpstreamCatalog:
    """Every service that some proxy may call, encoded. `refresh` brings one up to date."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._table = VirtualIPTable()
        self._encoded: dict[str, EncodedUpstream] = {}

    def __getitem__(self, service: str) -> EncodedUpstream:
        return self._encoded.get(service, UNKNOWN)

    def owner(self, virtual_ip: str) -> str | None:
        """The service that answers at an address."""
        return self._table.owner(virtual_ip)

    def refresh(self, service: str) -> frozenset[str]:
        """Encode ``service`` anew from the current facts.

        Returns:
            The services that differ from before: it, and those that gained or lost a virtual IP by it.
        """
        instances = self._mesh.instances(service)
        claimed = self._claims(instances, self._mesh.chain(service)).since if instances is not None else {}
        touched = self._table.claim(service, claimed) | {service}
        return frozenset(name for name in touched if self._encode(name))

    def _claims(self, instances: ServiceInstances, chain: DiscoveryChain | None) -> Claims:
        return claims(instances, chain, self._dialed_directly(instances))

    def _dialed_directly(self, instances: ServiceInstances) -> list[Instance]:
        """The instances that let others dial their own address, by their registration or a config entry."""
        entries = self._mesh.config_entries or ConfigEntries()
        return [
            instance
            for instance in instances.instances
            if instance.sidecar is not None
            and effective_settings(instance.sidecar, entries).dialed_directly
            and endpoints.unreachable(instance) is None
            and not ipaddress.ip_address(instance.address).is_loopback  # which is everybody's own
        ]

    def _dialed_alone(self, instances: ServiceInstances, chain: DiscoveryChain) -> dict[str, ServiceInstances]:
        """By address that is an instance's own and no virtual IP of the service, the instances that are there."""
        shared = claims(instances, chain).since
        found: dict[str, list[Instance]] = {}
        for instance in self._dialed_directly(instances):
            address = str(ipaddress.ip_address(instance.address))
            if address not in shared:
                found.setdefault(address, []).append(instance)
        return {address: ServiceInstances(instances.service, tuple(there)) for address, there in found.items()}

    def _encode(self, service: str) -> bool:
        before = self[service]
        try:
            after = self._encoding(service)
        except Exception as error:
            # Whatever is wrong with it, it is set aside alone.
            after = EncodedUpstream(problems=(f"can't be turned into Envoy's configuration: {error!r}",), known=True)
        if after == before:
            return False
        if after is UNKNOWN:
            self._encoded.pop(service, None)
        else:
            self._encoded[service] = after
        return True

    def _encoding(self, service: str) -> EncodedUpstream:
        mesh = self._mesh
        instances, chain, roots, datacenter = (
            mesh.instances(service),
            mesh.chain(service),
            mesh.roots,
            mesh.datacenter,
        )
        if instances is None or chain is None or roots is None or datacenter is None:
            return UNKNOWN
        problems = [f"virtual IP {text!r} is not an IP address" for text in self._claims(instances, chain).malformed]
        problems += [
            f"virtual IP {ip} belongs to service {owner!r}, which was registered earlier"
            for ip, owner in self._table.lost(service).items()
        ]
        problems += chain.problems
        for instance in instances.instances:
            problems.extend(instance.problems)
            problem = endpoints.unreachable(instance)
            if problem is not None:
                problems.append(problem)
        if chain.refusal is not None:
            return EncodedUpstream(problems=(*problems, chain.refusal), known=True)
        virtual_ips = self._table.owned(service)
        alone = self._dialed_alone(instances, chain)
        encoded: dict[str, dict[str, Resource]] = {CLUSTER: {}, ENDPOINT: {}}
        for ip in virtual_ips:
            name = names.virtual_ip_cluster(ip)
            encoded[CLUSTER][name] = clusters.service_cluster(
                name, service, datacenter, roots.trust_domain, chain.connect_timeout_ms
            )
            encoded[ENDPOINT][name] = endpoints.load_assignment(name, alone.get(ip, instances))
        return EncodedUpstream(virtual_ips, encoded, tuple(problems), known=True)

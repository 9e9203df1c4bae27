"""Encodes an upstream: the resources of its discovery chain, for each name under which a listener refers to it.

TCP: one cluster of that name. HTTP: routes of that name, which lead to a cluster named after it. Where a chain has
routes of its own, they lead to clusters that all the upstream's names share. A resolver with failover is an aggregate
cluster over one for each of its targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from xds.envoy import clusters, endpoints, names, routes
from xds.envoy.clusters import Here
from xds.envoy.overrides import OverrideError, cluster_from
from xds.envoy.resource import Resource
from xds.mesh.chains import DiscoveryChain, Resolver, Router, Splitter, Target
from xds.mesh.config_entries import UpstreamSettings
from xds.mesh.facts import Instance
from xds.mesh.http import HTTP_PROTOCOLS
from xds.mesh.spiffe import spiffe_id
from xds.policy.filters import chosen

LONGEST_SERVER_NAME = 255
"""Bytes of a server name (RFC 6066, 3; Envoy takes no longer one)."""
InstancesOfTarget = Callable[[Target], Sequence[Instance]]


def members(target: Target, instances: Iterable[Instance]) -> list[Instance]:
    """Yield those of a service's instances that belong to a target."""
    return [instance for instance in instances if chosen(target.filter, instance)] if target.filter else [*instances]


class UpstreamEncoder:
    """Encoder of one upstream.

    Args:
        chain: how it is reached.
        settings: how it is called.
        here: where the mesh is.
        instances: the instances of each of the chain's targets.
        owner: mark in the names of clusters that are not shared; empty for the upstream of all siblings.
    """

    def __init__(
        self,
        chain: DiscoveryChain,
        settings: UpstreamSettings,
        here: Here,
        instances: InstancesOfTarget,
        owner: str = "",
    ) -> None:
        self._chain = chain
        self._settings = settings
        self._here = here
        self._instances = instances
        self._owner = owner
        self.problems: list[str] = []
        """Problems of its settings, complete once it is encoded."""

    def refusal(self) -> str | None:
        """Return the reason why the chain can't be encoded, ``None`` where it can."""
        chain = self._chain
        if chain.refusal is not None:
            return chain.refusal
        if chain.protocol not in HTTP_PROTOCOLS and chain.first_resolver() is None:
            return f"its discovery chain divides requests, which protocol {chain.protocol!r} has none of"
        for target in chain.targets.values():
            name = target.external_sni or self._consul_name(target)
            if len(name.encode()) > LONGEST_SERVER_NAME:
                return (
                    f"the server name of its target {target.service!r:.60} is longer than {LONGEST_SERVER_NAME} bytes,"
                    " which TLS has no room for"
                )
            if "\0" in name:
                return f"the server name of its target {target.service!r:.60} contains a NUL, which TLS does not allow"
        for node in chain.nodes.values():
            following: Iterable[str] = ()
            if isinstance(node, Router):
                following = [route.node for route in node.routes]
            elif isinstance(node, Splitter):
                following = [split.node for split in node.splits]
            else:
                missing = [key for key in (node.target, *node.failover) if key not in chain.targets]
                if missing:
                    return f"its discovery chain has no target {missing[0]!r}"
            missing = [key for key in following if key not in chain.nodes]
            if missing:
                return f"its discovery chain has no node {missing[0]!r}"
        return None

    @property
    def is_http(self) -> bool:
        """Whether its requests are distinguished."""
        return self._chain.protocol in HTTP_PROTOCOLS

    def resources(self, dialed: Iterable[str]) -> Iterator[Resource]:
        """Yield the resources that the upstream needs under each of these names."""
        if not self.is_http or not routes.divides(self._chain):
            for name in dialed:
                resolver = self._chain.first_resolver()
                assert resolver is not None
                yield from self._resolver(self._cluster_at(name), resolver)
                if self.is_http:
                    yield routes.straight_scope(name, self._chain.service)
            return
        behind = {key: self._cluster_of(node) for key, node in self._chain.nodes.items() if isinstance(node, Resolver)}
        for key, name in behind.items():
            node = self._chain.nodes[key]
            assert isinstance(node, Resolver)
            yield from self._resolver(name, node)
        configuration = routes.configuration(self._chain.service, self._chain, behind)
        for name in dialed:
            yield routes.scope(name, configuration, tuple(sorted(set(behind.values()))))

    def consul_name(self) -> str:
        """Return Consul's name for the cluster of the whole service."""
        return self._consul_name(Target(self._chain.service))

    def alone(self, dialed: str, instance: Instance) -> Iterator[Resource]:
        """Yield the resources of one instance under a name of its own, for callers that dial its own address."""
        target = next(
            (target for target in self._chain.targets.values() if target.service == self._chain.service),
            Target(self._chain.service),
        )
        cluster = self._cluster_at(dialed)
        yield self._target_cluster(cluster, target, None)
        yield endpoints.load_assignment(cluster, [instance])
        if self.is_http:
            yield routes.straight_scope(dialed, self._chain.service)

    def outside(self, name: str, address: str, instances: Sequence[Instance]) -> Iterator[Resource]:
        """Yield the resources of a destination outside the mesh under a name of its own, through the terminating
        gateways ``instances``."""
        service, here = self._chain.service, self._here
        consul_name = names.destination(address, service, here.datacenter, here.trust_domain)
        target = Target(service, external_sni=consul_name)
        protocol = self._chain.protocol
        is_dialed = (
            names.address_of(name) is not None
        )  # otherwise it is a host's, which the routes of all hosts refer to
        cluster = self._cluster_at(name) if is_dialed else name
        yield clusters.service_cluster(cluster, target, here, protocol, self._settings, stat_name=consul_name)
        yield endpoints.load_assignment(cluster, instances)
        if self.is_http and is_dialed:
            yield routes.straight_scope(name, service)

    def _cluster_at(self, dialed: str) -> str:
        """Return the cluster of an upstream without routes, by the name under which it is dialed."""
        return names.requests_to(dialed) if self.is_http else dialed

    def _cluster_of(self, resolver: Resolver) -> str:
        """Return the cluster of a resolver: Consul's name, marked where another upstream may have a cluster of that
        name.

        The mark ends with a slash, which no service name contains.
        """
        target = self._chain.targets[resolver.target]
        name = self._consul_name(target)
        if self._owner:
            return f"{self._owner}/{name}"
        is_plain = (target.service, target.datacenter, target.subset) == (self._chain.service, "", "")
        return name if is_plain else f"{self._chain.service}/{name}"

    def _consul_name(self, target: Target) -> str:
        return clusters.consul_name_of(target, self._here)

    def _resolver(self, name: str, resolver: Resolver) -> Iterator[Resource]:
        keys = (resolver.target, *resolver.failover)
        inner = [name] if len(keys) == 1 else [names.failover_target(number, name) for number in range(len(keys))]
        for key, each in zip(keys, inner, strict=True):
            target = self._chain.targets[key]
            yield self._target_cluster(each, target, resolver)
            yield endpoints.load_assignment(each, self._instances(target), only_passing=target.only_passing)
        if len(keys) > 1:
            yield clusters.aggregate(name, self._consul_name(self._chain.targets[resolver.target]), inner)

    def _target_cluster(self, name: str, target: Target, resolver: Resolver | None) -> Resource:
        balancer = resolver.load_balancer if resolver else None
        identities: set[str] = set()
        if target.prepared_query:
            # No identity: a query without results has no instances, and an empty list would accept any identity.
            found = {(each.service, each.datacenter) for each in self._instances(target)} or {("", "")}
            here = self._here
            identities = {spiffe_id(who, where or here.datacenter, here.trust_domain) for who, where in found}
        made = clusters.service_cluster(
            name,
            target,
            self._here,
            self._chain.protocol,
            self._settings,
            balancer,
            identities=tuple(sorted(identities)),
        )
        if not self._settings.cluster_json:
            return made
        try:
            if not self._chain.is_default:
                raise OverrideError("envoy_cluster_json: only for a service whose discovery chain says nothing")
            return cluster_from("envoy_cluster_json", self._settings.cluster_json, made)
        except OverrideError as error:
            self.problems.append(f"{error}; the generated cluster is used")
            return made

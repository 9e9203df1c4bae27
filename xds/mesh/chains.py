"""A compiled discovery chain (Consul: ``/v1/discovery-chain/:service``): how requests to a service find its instances.

It begins at one node. A router picks the next node by the request, a splitter at random, and a resolver ends at a
target.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from xds.mesh.http import HTTP_PROTOCOLS, HeaderChanges, RequestMatch

DEFAULT_CONNECT_TIMEOUT_MS = 5000
WHOLE = 10000
"""The weights of a splitter add up to this."""


@dataclass(frozen=True, slots=True)
class InstancesOf:
    """Key of the instances of a service in another datacenter, and of its discovery chain as compiled there."""

    service: str
    datacenter: str


@dataclass(frozen=True, slots=True)
class GatewaysOf:
    """Key of the mesh gateways of a datacenter; of this one where it is empty."""

    datacenter: str


@dataclass(frozen=True, slots=True)
class QueryResult:
    """Key of a prepared query's result."""

    query: str


Elsewhere = InstancesOf | GatewaysOf | QueryResult
"""Key of what is read beside the services of this datacenter."""


@dataclass(frozen=True, slots=True)
class Target:
    """Set of instances of a service."""

    service: str
    datacenter: str = ""
    """Empty for the datacenter whose sidecars are served."""
    subset: str = ""
    filter: str = ""
    """Filter expression of Consul's that selects the subset's instances."""
    only_passing: bool = False
    connect_timeout_ms: int = DEFAULT_CONNECT_TIMEOUT_MS
    external_sni: str = ""
    """Server name for TLS in place of Consul's."""
    mesh_gateway: str = ""
    """Way to another datacenter: ``local``, ``remote``, or directly."""
    prepared_query: bool = False
    """Whether ``service`` is a prepared query, which determines the instances."""

    @property
    def is_here(self) -> bool:
        """Whether it is a service of the catalog whose sidecars are served."""
        return not self.datacenter and not self.prepared_query

    @property
    def instances(self) -> str | InstancesOf | QueryResult:
        """Key of its instances."""
        if self.prepared_query:
            return QueryResult(self.service)
        return InstancesOf(self.service, self.datacenter) if self.datacenter else self.service

    def gateways(self, mode: str | None) -> GatewaysOf | None:
        """Return the mesh gateways that lead there, if any; ``mode`` takes precedence over the target's own."""
        if not self.datacenter or self.external_sni:
            return None
        match mode or self.mesh_gateway:
            case "local":
                return GatewaysOf("")
            case "remote":
                return GatewaysOf(self.datacenter)
        return None


@dataclass(frozen=True, slots=True)
class HashPolicy:
    """Source of a request's hash: a header, a cookie, a query parameter, or the client's address."""

    header: str = ""
    query_parameter: str = ""
    cookie: str = ""
    cookie_path: str = ""
    cookie_ttl_ms: int | None = None
    """Milliseconds for which the cookie that Envoy makes is kept; 0 for a session, ``None`` where it makes none."""
    source_ip: bool = False
    terminal: bool = False


@dataclass(frozen=True, slots=True)
class LoadBalancer:
    """Method by which an instance is picked."""

    policy: str = ""
    choice_count: int | None = None
    minimum_ring_size: int | None = None
    maximum_ring_size: int | None = None
    hash_policies: tuple[HashPolicy, ...] = ()

    @property
    def hashes(self) -> bool:
        """Whether the pick depends on the request."""
        return self.policy in ("ring_hash", "maglev")


@dataclass(frozen=True, slots=True)
class Resolver:
    """Resolver: a target, and further ones that are used while no instance of those before is healthy."""

    target: str
    failover: tuple[str, ...] = ()
    request_timeout_ms: int | None = None
    load_balancer: LoadBalancer | None = None


@dataclass(frozen=True, slots=True)
class Split:
    """Share of the requests; ``weight`` is out of `WHOLE`."""

    weight: int
    node: str
    request_headers: HeaderChanges = HeaderChanges()
    response_headers: HeaderChanges = HeaderChanges()


@dataclass(frozen=True, slots=True)
class Splitter:
    """Division of the requests."""

    splits: tuple[Split, ...]
    load_balancer: LoadBalancer | None = None


@dataclass(frozen=True, slots=True)
class Retries:
    """Conditions and number of retries."""

    on: tuple[str, ...]
    """Conditions, in Envoy's words."""
    count: int | None = None
    status_codes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Route:
    """Destination of the requests of one kind."""

    match: RequestMatch
    node: str
    prefix_rewrite: str = ""
    request_timeout_ms: int | None = None
    """0 is no limit at all; ``None`` leaves it to Envoy (15 s)."""
    idle_timeout_ms: int | None = None
    retries: Retries | None = None
    request_headers: HeaderChanges = HeaderChanges()
    response_headers: HeaderChanges = HeaderChanges()


@dataclass(frozen=True, slots=True)
class Router:
    """Routes of which the first that matches is used."""

    routes: tuple[Route, ...]


Node = Router | Splitter | Resolver


@dataclass(frozen=True, slots=True)
class DiscoveryChain:
    """Chain of routes, splits and resolvers by which a service is reached."""

    service: str
    protocol: str = "tcp"
    start: str = ""
    nodes: Mapping[str, Node] = field(default_factory=dict)
    targets: Mapping[str, Target] = field(default_factory=dict)
    virtual_ips: tuple[str, ...] = ()
    refusal: str | None = None
    """Reason why this chain can't be followed; its service is then set aside as an upstream rather than routed wrongly.
    """
    problems: tuple[str, ...] = ()
    """Problems of the chain with which its service is served all the same."""

    @property
    def is_default(self) -> bool:
        """Whether it is no more than the service's own instances, all of them."""
        resolver = self.first_resolver()
        if resolver is None or resolver != Resolver(resolver.target):
            return False
        target = self.targets.get(resolver.target)
        return target is not None and (target.service, target.subset, target.datacenter) == (self.service, "", "")

    def of(self, service: str) -> DiscoveryChain:
        """Return the same chain for another service, where it `is_default`, except for the virtual IPs."""
        targets = {key: replace(target, service=service) for key, target in self.targets.items()}
        return replace(self, service=service, targets=targets, virtual_ips=())

    def spelled(self, spelled: Callable[[str], str]) -> DiscoveryChain:
        """Return the same chain with the services here that it leads to spelled as the catalog does."""
        if all(spelled(each.service) == each.service for each in self.targets.values() if each.is_here):
            return self
        targets = {
            key: replace(each, service=spelled(each.service)) if each.is_here else each
            for key, each in self.targets.items()
        }
        return replace(self, targets=targets)

    def speaking(self, protocol: str | None) -> DiscoveryChain:
        """Return the chain for a caller that speaks ``protocol`` (Consul: ``Protocol`` of an upstream's settings)."""
        if protocol is None or protocol == self.protocol:
            return self
        if protocol not in HTTP_PROTOCOLS and self.first_resolver() is None:
            return replace(
                self, refusal=f"its discovery chain divides requests, which protocol {protocol!r} has none of"
            )
        return replace(self, protocol=protocol)

    def reads(self, mode: str | None) -> frozenset[str | Elsewhere]:
        """Return what has to be read to know where the chain leads; ``mode`` as for `Target.gateways`."""
        found: set[str | Elsewhere] = {target.instances for target in self.targets.values()}
        gateways = (target.gateways(mode) for target in self.targets.values())
        return frozenset(found | {each for each in gateways if each is not None})

    def first_resolver(self) -> Resolver | None:
        """Return the resolver that a TCP connection ends at: the one that the chain begins with."""
        node = self.nodes.get(self.start)
        return node if isinstance(node, Resolver) else None


def default_chain(
    service: str, protocol: str = "tcp", connect_timeout_ms: int = DEFAULT_CONNECT_TIMEOUT_MS
) -> DiscoveryChain:
    """Return the chain of a service that no config entry is about: all of its own instances."""
    return DiscoveryChain(
        service,
        protocol,
        start="resolver",
        nodes={"resolver": Resolver("target")},
        targets={"target": Target(service, connect_timeout_ms=connect_timeout_ms)},
    )


def query_chain(query: str, protocol: str) -> DiscoveryChain:
    """Return the chain of an upstream that is a prepared query: the query's result."""
    return DiscoveryChain(
        query,
        protocol,
        start="resolver",
        nodes={"resolver": Resolver("target")},
        targets={"target": Target(query, prepared_query=True)},
    )

"""A compiled discovery chain (Consul: ``/v1/discovery-chain/:service``): how requests to a service find its instances.

It begins at one node. A router picks the next node by the request, a splitter by chance, a resolver ends at a target.
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
    """Names the instances of a service in another datacenter, and its discovery chain as that one compiles it."""

    service: str
    datacenter: str


@dataclass(frozen=True, slots=True)
class GatewaysOf:
    """Names the mesh gateways of a datacenter; of our own where it is empty."""

    datacenter: str


@dataclass(frozen=True, slots=True)
class QueryResult:
    """Names what a prepared query finds."""

    query: str


Elsewhere = InstancesOf | GatewaysOf | QueryResult
"""What is read beside the services here."""


@dataclass(frozen=True, slots=True)
class Target:
    """Some instances of some service."""

    service: str
    datacenter: str = ""
    """Empty for the datacenter whose sidecars are served."""
    subset: str = ""
    filter: str = ""
    """Which instances belong to the subset (a filter expression of Consul's)."""
    only_passing: bool = False
    connect_timeout_ms: int = DEFAULT_CONNECT_TIMEOUT_MS
    external_sni: str = ""
    """What to ask for in TLS in place of Consul's name."""
    mesh_gateway: str = ""
    """How another datacenter is reached: ``local``, ``remote``, or directly."""
    prepared_query: bool = False
    """Whether ``service`` is a prepared query, which says whose instances these are."""

    @property
    def is_here(self) -> bool:
        """Whether it is a service of the catalog whose sidecars are served."""
        return not self.datacenter and not self.prepared_query

    @property
    def instances(self) -> str | InstancesOf | QueryResult:
        """What its instances are known under."""
        if self.prepared_query:
            return QueryResult(self.service)
        return InstancesOf(self.service, self.datacenter) if self.datacenter else self.service

    def gateways(self, mode: str | None) -> GatewaysOf | None:
        """The mesh gateways that lead there, if any do; ``mode`` counts before the target's own."""
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
    """What a request is hashed by: a header, a cookie, a query parameter, or the address that it comes from."""

    header: str = ""
    query_parameter: str = ""
    cookie: str = ""
    cookie_path: str = ""
    cookie_ttl_ms: int | None = None
    """How long the cookie that Envoy makes is kept; 0 for a session, ``None`` where it makes none."""
    source_ip: bool = False
    terminal: bool = False


@dataclass(frozen=True, slots=True)
class LoadBalancer:
    """How an instance is picked."""

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
    """Ends at a target, and at the ones after it when no instance of those before is healthy."""

    target: str
    failover: tuple[str, ...] = ()
    request_timeout_ms: int | None = None
    load_balancer: LoadBalancer | None = None


@dataclass(frozen=True, slots=True)
class Split:
    """A share of the requests; ``weight`` is out of `WHOLE`."""

    weight: int
    node: str
    request_headers: HeaderChanges = HeaderChanges()
    response_headers: HeaderChanges = HeaderChanges()


@dataclass(frozen=True, slots=True)
class Splitter:
    """Divides the requests."""

    splits: tuple[Split, ...]
    load_balancer: LoadBalancer | None = None


@dataclass(frozen=True, slots=True)
class Retries:
    """When a request is tried once more, and how often."""

    on: tuple[str, ...]
    """In Envoy's words."""
    count: int | None = None
    status_codes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Route:
    """Where requests of one kind go."""

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
    """Picks the first route that matches."""

    routes: tuple[Route, ...]


Node = Router | Splitter | Resolver


@dataclass(frozen=True, slots=True)
class DiscoveryChain:
    """How a service is reached."""

    service: str
    protocol: str = "tcp"
    start: str = ""
    nodes: Mapping[str, Node] = field(default_factory=dict)
    targets: Mapping[str, Target] = field(default_factory=dict)
    virtual_ips: tuple[str, ...] = ()
    refusal: str | None = None
    """Why this chain can't be followed; its service is then set aside as an upstream rather than routed wrongly."""
    problems: tuple[str, ...] = ()
    """What of it is not followed, though the service is served."""

    @property
    def is_default(self) -> bool:
        """Whether it is no more than the service's own instances, all of them."""
        resolver = self.first_resolver()
        if resolver is None or resolver != Resolver(resolver.target):
            return False
        target = self.targets.get(resolver.target)
        return target is not None and (target.service, target.subset, target.datacenter) == (self.service, "", "")

    def of(self, service: str) -> DiscoveryChain:
        """The same for another service, where it `is_default`; but for the virtual IPs, which are its own."""
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
        """The same chain for a caller that speaks ``protocol`` (Consul: ``Protocol`` of an upstream's settings)."""
        if protocol is None or protocol == self.protocol:
            return self
        if protocol not in HTTP_PROTOCOLS and self.first_resolver() is None:
            return replace(
                self, refusal=f"its discovery chain divides requests, which protocol {protocol!r} has none of"
            )
        return replace(self, protocol=protocol)

    def reads(self, mode: str | None) -> frozenset[str | Elsewhere]:
        """What has to be read to know where it leads; ``mode`` as for `Target.gateways`."""
        found: set[str | Elsewhere] = {target.instances for target in self.targets.values()}
        gateways = (target.gateways(mode) for target in self.targets.values())
        return frozenset(found | {each for each in gateways if each is not None})

    def first_resolver(self) -> Resolver | None:
        """The resolver that a TCP connection ends at: the one that the chain begins with."""
        node = self.nodes.get(self.start)
        return node if isinstance(node, Resolver) else None


def default_chain(
    service: str, protocol: str = "tcp", connect_timeout_ms: int = DEFAULT_CONNECT_TIMEOUT_MS
) -> DiscoveryChain:
    """The chain of a service about which no config entry says anything: its own instances, all of them."""
    return DiscoveryChain(
        service,
        protocol,
        start="resolver",
        nodes={"resolver": Resolver("target")},
        targets={"target": Target(service, connect_timeout_ms=connect_timeout_ms)},
    )


def query_chain(query: str, protocol: str) -> DiscoveryChain:
    """The chain of an upstream that is a prepared query: whatever that finds."""
    return DiscoveryChain(
        query,
        protocol,
        start="resolver",
        nodes={"resolver": Resolver("target")},
        targets={"target": Target(query, prepared_query=True)},
    )

"""Limits on the configuration of one service's owner; they are far above what services need.

The server evaluates what a service's owner writes, and every sidecar that calls the service is configured with it. So
each kind of it has a limit. A service that exceeds one is set aside as an upstream, and nothing else is affected.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

from xds.mesh.chains import DiscoveryChain, Resolver, Router, Splitter

DEFAULT_RING = 1024
"""Default number of entries of a hash ring (Envoy's ``minimum_ring_size``)."""


@dataclass(frozen=True, slots=True)
class Quotas:
    """Limits; each has the name that ``gossamer serve --quota`` uses."""

    routes: int = 500
    """Routes of one router."""
    splits: int = 500
    """Splits of a chain, all splitters together."""
    targets: int = 250
    """Targets of a chain, those of failover included: each is a cluster in every caller."""
    expressions: int = 20_000
    """Instructions of the regular expressions of a chain, or of an intention, all programs together."""
    ring: int = 1 << 20
    """Entries of the hash rings of a chain, all clusters together."""
    filters: int = 50_000
    """Comparisons that the filters of a chain's subsets make: terms, for each instance that they are asked of."""
    headers: int = 1000
    """Changes of headers in a chain."""
    instances: int = 3_000
    """Instances of one service."""
    addresses: int = 256
    """Addresses at which one service is dialed: each is a cluster in every caller."""
    permissions: int = 100
    """HTTP permissions of one source in an intention."""
    sources: int = 1_500
    """Sources that the intentions to one service name."""
    denied: int = 1_000
    """Sources among them that are denied: for each of these, every spelling is spelled out."""


DEFAULT_QUOTAS = Quotas()


def with_changes(quotas: Quotas, changes: Mapping[str, int]) -> Quotas:
    """Return ``quotas`` with some of them set otherwise.

    Raises:
        KeyError: there is no quota of that name.
    """
    names = {each.name for each in fields(Quotas)}
    unknown = sorted(changes.keys() - names)
    if unknown:
        raise KeyError(unknown[0])
    return Quotas(**{name: changes.get(name, getattr(quotas, name)) for name in names})


def names() -> tuple[str, ...]:
    """Return the names of all quotas."""
    return tuple(each.name for each in fields(Quotas))


def excess(chain: DiscoveryChain, terms: Mapping[str, int], instances: Mapping[str, int], quotas: Quotas) -> str | None:
    """Return how a chain exceeds a quota, ``None`` where it exceeds none.

    Args:
        chain: as it was compiled.
        terms: by target, how many comparisons its filter makes of one instance.
        instances: by target, of how many instances.
        quotas: the limits.
    """
    for name, amount, what in _amounts(chain, terms, instances):
        limit = getattr(quotas, name)
        if amount > limit:
            return f"{what}: {amount}, and the quota {name} is {limit} (gossamer serve --quota {name}={amount})"
    return None


def _amounts(
    chain: DiscoveryChain, terms: Mapping[str, int], instances: Mapping[str, int]
) -> Iterator[tuple[str, int, str]]:
    """Yield the amounts of a chain: the name of the quota, the amount, and its description."""
    nodes = list(chain.nodes.values())
    routes = [route for node in nodes if isinstance(node, Router) for route in node.routes]
    splits = [split for node in nodes if isinstance(node, Splitter) for split in node.splits]
    resolvers = [node for node in nodes if isinstance(node, Resolver)]
    yield "routes", len(routes), "its router has too many routes"
    yield "splits", len(splits), "its splitters have too many splits"
    yield "targets", sum(1 + len(each.failover) for each in resolvers), "its discovery chain has too many targets"
    changes = [each for route in routes for each in (route.request_headers, route.response_headers)]
    changes += [each for split in splits for each in (split.request_headers, split.response_headers)]
    headers = sum(len(each.add) + len(each.set) + len(each.remove) for each in changes)
    yield "headers", headers, "its routes change too many headers"
    rings = (
        (1 + len(each.failover)) * (each.load_balancer.minimum_ring_size or DEFAULT_RING)
        for each in resolvers
        if each.load_balancer is not None and each.load_balancer.policy == "ring_hash"
    )
    yield "ring", sum(rings), "its hash rings have too many entries"
    yield "instances", max(instances.values(), default=0), "it has too many instances"
    compared = sum(terms.get(key, 0) * count for key, count in instances.items())
    yield "filters", compared, "the filters of its subsets compare too much"

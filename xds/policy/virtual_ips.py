"""The table of virtual IPs: which service an address belongs to.

The owner of a service can claim any address for it, with a tagged address. So the claims are ranked:

1. What is **assigned** wins over what is claimed: addresses that Consul's servers assigned (the tag ``consul-virtual``
   from Consul 1.11 on, ``AutoVirtualIPs`` and ``ManualVirtualIPs`` of a discovery chain), and those that a mesh file
   assigns.
2. Then the earlier claim wins: Consul's CreateIndex, the name where that is equal. A service keeps the index of its
   first claim for as long as any of its instances claims the address, so that a rolling deployment of the owner does
   not lose the address.
3. A service answers at every port of its address; another service's claim takes no port from it. Ports divide an
   address only where they are meant to: between assigned claims, under ``strict``, and at instances' own addresses.

Claims outside the ranges for virtual IPs are accepted where they are assigned, and refused otherwise: such an address
may belong to a host.

**Several servers.** They see the same claims and so determine the same owners. A server can't know rule 2's first claim
from before its start if every instance that made it is gone; then it uses the existing instances. Such a conflict is
between two tagged addresses. Every server reports it for both services, and it ends when one of the tags is removed.

Only claims of services that some connected sidecar may call are known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from xds.mesh.addresses import IPNetwork, canonical_ip, parse_ip
from xds.mesh.chains import DiscoveryChain
from xds.mesh.facts import ANY_PORT, Instance, ServiceInstances, VirtualAddress

NEVER = 1 << 63
"""Later than any Consul index: a claim whose beginning is unknown."""
Rank = tuple[bool, int, str]
"""Rank of a claim, of which the lowest wins: whether it is not assigned, since when it exists, the service."""


@dataclass(frozen=True, slots=True)
class Claims:
    """Claims of a service, each with the index since which it exists, and the claims that it can't have."""

    since: Mapping[VirtualAddress, int]
    malformed: tuple[str, ...] = ()
    """Claims that are no IP addresses."""
    outside: tuple[str, ...] = ()
    """Addresses outside the ranges for virtual IPs that are not assigned."""


def claims(
    instances: ServiceInstances,
    chain: DiscoveryChain | None,
    ranges: Iterable[IPNetwork],
    dialed_directly: Iterable[Instance] = (),
    destinations: Iterable[VirtualAddress] = (),
) -> Claims:
    """Return the addresses at which a service is dialed, in canonical form.

    Args:
        instances: the service's; they are tagged with addresses.
        chain: its discovery chain, which lists addresses that are assigned to it.
        ranges: ranges in which tagged addresses need not be assigned.
        dialed_directly: the instances whose own addresses are dialed, at the ports of their applications.
        destinations: the addresses outside the mesh that it stands for.
    """
    first = min((instance.create_index for instance in instances.instances), default=NEVER)
    allowed = tuple(ranges)
    since: dict[VirtualAddress, int] = {}
    malformed, outside = set[str](), set[str]()
    claimed = [(at, instance.create_index) for instance in instances.instances for at in instance.virtual_ips]
    claimed += [
        (VirtualAddress(instance.address, instance.application_port, own=True), instance.create_index)
        for instance in dialed_directly
    ]
    claimed += [(at, first) for at in destinations]
    if chain is not None:
        claimed += [(VirtualAddress(ip, assigned=True), first) for ip in chain.virtual_ips]
    for at, index in claimed:
        ip = canonical_ip(at.ip)
        if ip is None:
            malformed.add(at.ip)
        elif not (at.own or at.assigned or any(parse_ip(ip) in network for network in allowed)):
            outside.add(ip)
        else:
            canonical = at if ip == at.ip else at._replace(ip=ip)
            since[canonical] = min(since.get(canonical, NEVER), index)
    return Claims(since, tuple(sorted(map(str, malformed))), tuple(sorted(outside)))


class VirtualIPTable:
    """Owner of each address, kept as claims come and go; a change costs only the addresses that it is about.

    ``strict``: a service answers only at the port that it claims an address for.
    """

    def __init__(self, *, strict: bool = False) -> None:
        self._strict = strict
        self._claims: dict[str, Mapping[VirtualAddress, int]] = {}
        self._claimants: dict[str, dict[str, Mapping[VirtualAddress, int]]] = {}
        """Claims by IP and service."""

    def claim(self, service: str, since: Mapping[VirtualAddress, int]) -> frozenset[str]:
        """Replace what ``service`` claims; the services whose addresses may differ now, itself included."""
        before = self._claims.get(service, {})
        since = {at: min(index, before.get(at, NEVER)) for at, index in since.items()}
        if before == since:
            return frozenset()
        touched = {service}
        for ip in {at.ip for at in (*before, *since)}:
            claimants = self._claimants.setdefault(ip, {})
            touched |= claimants.keys()
            claimed = {at: index for at, index in since.items() if at.ip == ip}
            if claimed:
                claimants[service] = claimed
            else:
                claimants.pop(service, None)
            if not claimants:
                del self._claimants[ip]
        if since:
            self._claims[service] = since
        else:
            self._claims.pop(service, None)
        return frozenset(touched)

    def owners(self, ip: str) -> dict[int, str]:
        """Return the services that answer at ``ip``, by port; under `ANY_PORT` the one of all other ports."""
        first: dict[int, Rank] = {}
        for service, claimed in self._claimants.get(ip, {}).items():
            for at, index in claimed.items():
                rank = (not at.assigned, index, service)
                port = at.port if self._divides(at) else ANY_PORT
                first[port] = min(first.get(port, rank), rank)
        if not first:
            return {}
        best = min(first.values())
        whole = first.pop(ANY_PORT, None)
        # A service that claims all ports does not share: it is either first, or has nothing.
        if whole == best or (len({service for *_, service in first.values()}) == 1 and not self._is_by_port(ip)):
            return {ANY_PORT: best[2]}
        return {port: service for port, (*_, service) in sorted(first.items())}

    def _divides(self, at: VirtualAddress) -> bool:
        """Return whether the port of a claim counts, so that it leaves the others of its address to others."""
        return at.port != ANY_PORT and (at.own or at.assigned or self._strict)

    def _is_by_port(self, ip: str) -> bool:
        """Return whether an address that one service alone claims is that service's at the claimed ports only."""
        return self._strict or self.is_own(ip)

    def is_own(self, ip: str) -> bool:
        """Return whether ``ip`` is only instances' own address: its other ports do not belong to the mesh."""
        return all(at.own for claimed in self._claimants.get(ip, {}).values() for at in claimed)

    def owned(self, service: str) -> tuple[VirtualAddress, ...]:
        """Return the addresses at which ``service`` answers, sorted."""
        ips = sorted({at.ip for at in self._claims.get(service, ())})
        return tuple(
            VirtualAddress(ip, port, self.is_own(ip))
            for ip in ips
            for port, who in self.owners(ip).items()
            if who == service
        )

    def lost(self, service: str) -> dict[VirtualAddress, str]:
        """Return the addresses that ``service`` claims and another service has, with that service's name."""
        lost = {}
        for at in sorted(self._claims.get(service, ())):
            owners = self.owners(at.ip)
            owner = owners.get(at.port) or owners.get(ANY_PORT) or next(iter(owners.values()))
            if owner != service:
                lost[at] = owner
        return lost

    def contested(self, service: str) -> dict[str, tuple[str, ...]]:
        """Return the addresses that ``service`` has and others claim as well, with the names of those."""
        found = {}
        for ip in sorted({at.ip for at in self._claims.get(service, ())}):
            if len(self._claimants[ip]) > 1 and service in self.owners(ip).values():
                others = [
                    other for other in self._claimants[ip] if any(service == who for who in self._lost_at(other, ip))
                ]
                if others:
                    found[ip] = tuple(sorted(others))
        return found

    def _lost_at(self, service: str, ip: str) -> list[str]:
        return [owner for at, owner in self.lost(service).items() if at.ip == ip]

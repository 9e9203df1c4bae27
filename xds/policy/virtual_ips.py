"""The virtual-IP table: which service answers at an address.

An address belongs to one service, which answers there at whatever port is dialed. Where several services claim one
address for different ports (Consul's ``virtual`` tagged address carries one), the port decides. Where two claim the
same port, the one that was registered earlier keeps it (Consul's CreateIndex, the name where that is equal), the
other's claim is set aside and nothing else is touched. The table is a function of the claims alone, not of how they
came about, so a restart changes no owner. Claims are known of services that some connected sidecar may call.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from xds.mesh.chains import DiscoveryChain
from xds.mesh.facts import ANY_PORT, Instance, ServiceInstances, VirtualAddress, canonical_ip

NEVER = 1 << 63
"""Later than any Consul index: a claim whose beginning is unknown."""


@dataclass(frozen=True, slots=True)
class Claims:
    """What a service claims, each with the index since which it does, and what is no IP address."""

    since: Mapping[VirtualAddress, int]
    malformed: tuple[str, ...] = ()


def claims(
    instances: ServiceInstances,
    chain: DiscoveryChain | None,
    dialed_directly: Iterable[Instance] = (),
    outside: Iterable[VirtualAddress] = (),
) -> Claims:
    """The addresses at which a service is dialed, in canonical form.

    Those that its instances are tagged with, those that its discovery chain lists, and the own addresses of the
    instances that are ``dialed_directly``, at the ports of their applications, and those ``outside`` the mesh that it
    stands for.
    """
    first = min((instance.create_index for instance in instances.instances), default=NEVER)
    since: dict[VirtualAddress, int] = {}
    malformed: list[str] = []
    claimed = [(at, instance.create_index) for instance in instances.instances for at in instance.virtual_ips]
    claimed += [
        (VirtualAddress(instance.address, instance.application_port, own=True), instance.create_index)
        for instance in dialed_directly
    ]
    claimed += [(at, first) for at in outside]
    claimed += [(VirtualAddress(ip), first) for ip in (chain.virtual_ips if chain else ())]
    for at, index in claimed:
        ip = canonical_ip(at.ip)
        if ip is None:
            malformed.append(at.ip)
            continue
        canonical = at if ip == at.ip else at._replace(ip=ip)
        since[canonical] = min(since.get(canonical, NEVER), index)
    return Claims(since, tuple(sorted(set(malformed))))


class VirtualIPTable:
    """Who owns which address, kept as claims come and go; a change costs the addresses it is about.

    ``strict``: a service answers only at the port that it claims an address for.
    """

    def __init__(self, *, strict: bool = False) -> None:
        self._strict = strict
        self._claims: dict[str, Mapping[VirtualAddress, int]] = {}
        self._claimants: dict[str, dict[str, Mapping[VirtualAddress, int]]] = {}
        """By IP and service, what it claims there."""

    def claim(self, service: str, since: Mapping[VirtualAddress, int]) -> frozenset[str]:
        """Replace what ``service`` claims; the services whose addresses may differ now, itself included."""
        before = self._claims.get(service, {})
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
        """The services that answer at ``ip``, by port; under `ANY_PORT` whoever does at all others."""
        claimants = self._claimants.get(ip, {})
        if not claimants:
            return {}
        first: dict[int, tuple[int, str]] = {}
        for service, claimed in claimants.items():
            for at, index in claimed.items():
                first[at.port] = min(first.get(at.port, (index, service)), (index, service))
        earliest = min(first.values())
        whole = first.pop(ANY_PORT, None)
        # Who claims all of it shares with nobody: either it was there first, or it has nothing.
        if whole == earliest or ((len(claimants) == 1 or len(first) == 1) and not self._strict and not self.is_own(ip)):
            return {ANY_PORT: earliest[1]}
        return {port: service for port, (_, service) in sorted(first.items())}

    def is_own(self, ip: str) -> bool:
        """Whether ``ip`` is nothing but instances' own address, so that what nobody claims there is not the mesh's."""
        return all(at.own for claimed in self._claimants.get(ip, {}).values() for at in claimed)

    def owned(self, service: str) -> tuple[VirtualAddress, ...]:
        """The addresses at which ``service`` answers, sorted."""
        ips = sorted({at.ip for at in self._claims.get(service, ())})
        return tuple(
            VirtualAddress(ip, port, self.is_own(ip))
            for ip in ips
            for port, who in self.owners(ip).items()
            if who == service
        )

    def lost(self, service: str) -> dict[VirtualAddress, str]:
        """The addresses that ``service`` claims and another service has, with that service's name."""
        lost = {}
        for at in sorted(self._claims.get(service, ())):
            owners = self.owners(at.ip)
            owner = owners.get(at.port) or owners.get(ANY_PORT) or next(iter(owners.values()))
            if owner != service:
                lost[at] = owner
        return lost

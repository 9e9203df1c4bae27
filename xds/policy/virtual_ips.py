"""The virtual-IP table: which service answers at an address.

An address belongs to one service. Where two claim it, the one that was registered earlier keeps it (Consul's
CreateIndex, the name where that is equal), the other's claim is set aside and nothing else is touched. The table is a
function of the claims alone, not of how they came about, so a restart changes no owner. Claims are known of services
that some connected sidecar may call.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from xds.mesh.facts import DiscoveryChain, Instance, ServiceInstances

NEVER = 1 << 63
"""Later than any Consul index: a claim whose beginning is unknown."""


@dataclass(frozen=True, slots=True)
class Claims:
    """The virtual IPs that a service claims, each with the index since which it does, and those that are no IPs."""

    since: Mapping[str, int]
    malformed: tuple[str, ...] = ()


def claims(
    instances: ServiceInstances, chain: DiscoveryChain | None, dialed_directly: Iterable[Instance] = ()
) -> Claims:
    """The addresses at which a service is dialed, in canonical form.

    Those that its instances are tagged with, those that its discovery chain lists, and the own addresses of the
    instances that are ``dialed_directly``.
    """
    first = min((instance.create_index for instance in instances.instances), default=NEVER)
    since: dict[str, int] = {}
    malformed: list[str] = []
    tagged = [(ip, instance.create_index) for instance in instances.instances for ip in instance.virtual_ips]
    tagged += [(instance.address, instance.create_index) for instance in dialed_directly]
    listed = [(ip, first) for ip in (chain.virtual_ips if chain else ())]
    for text, index in [*tagged, *listed]:
        try:
            ip = str(ipaddress.ip_address(text))
        except ValueError:
            malformed.append(text)
            continue
        since[ip] = min(since.get(ip, NEVER), index)
    return Claims(since, tuple(sorted(set(malformed))))


class VirtualIPTable:
    """Who owns which address, kept as claims come and go; a change costs the addresses it is about."""

    def __init__(self) -> None:
        self._claims: dict[str, Mapping[str, int]] = {}
        self._claimants: dict[str, set[str]] = {}

    def claim(self, service: str, since: Mapping[str, int]) -> frozenset[str]:
        """Replace what ``service`` claims; the services whose addresses may differ now, itself included."""
        before = self._claims.get(service, {})
        if before == since:
            return frozenset()
        touched = {service}
        for ip in before.keys() | since.keys():
            claimants = self._claimants.setdefault(ip, set())
            touched |= claimants
            if ip in since:
                claimants.add(service)
            else:
                claimants.discard(service)
            if not claimants:
                del self._claimants[ip]
        if since:
            self._claims[service] = since
        else:
            self._claims.pop(service, None)
        return frozenset(touched)

    def owner(self, ip: str) -> str | None:
        """The service that answers at ``ip``."""
        claimants: Iterable[str] = self._claimants.get(ip, ())
        return min(claimants, key=lambda service: (self._claims[service][ip], service), default=None)

    def owned(self, service: str) -> tuple[str, ...]:
        """The addresses at which ``service`` answers, sorted."""
        return tuple(sorted(ip for ip in self._claims.get(service, ()) if self.owner(ip) == service))

    def lost(self, service: str) -> dict[str, str]:
        """The addresses that ``service`` claims and another service has, with that service's name."""
        owners = {ip: self.owner(ip) for ip in sorted(self._claims.get(service, ()))}
        return {ip: owner for ip, owner in owners.items() if owner is not None and owner != service}

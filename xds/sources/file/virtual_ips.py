"""Assigns virtual IPs to services that have none, as Consul does: from 240.0.0.0/4, the first being 240.0.0.1. Pure.

Unlike in Consul, an address is never assigned to a second service: a client that still uses it must not reach another
service.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from xds.mesh.names import fold

LAST = ipaddress.IPv4Address("255.255.255.254")


class ExhaustedError(Exception):
    """Range without a free virtual IP."""


@dataclass(frozen=True, slots=True)
class Given:
    """Virtual IPs that were assigned."""

    by_service: Mapping[str, str] = field(default_factory=dict)
    last: ipaddress.IPv4Address = ipaddress.IPv4Address("240.0.0.0")
    """The highest one that was ever given."""

    def to(self, services: Iterable[str], taken: Mapping[str, str]) -> Given:
        """Assign a virtual IP to each of ``services`` that has none.

        Args:
            services: who needs one, in the order in which new ones are given.
            taken: addresses that services claim themselves, and who does. One that was given to another is taken back.

        Raises:
            ExhaustedError: the range is used up.
        """
        before = self.by_service.items()
        result = {service: address for service, address in before if taken.get(address, service) == service}
        given = {fold(service): service for service in result}
        last = self.last
        for service in services:
            if service in result:
                continue
            other = given.get(fold(service))
            if other is not None:  # it is the same service, which is spelled differently now
                result[service] = result.pop(other)
                continue
            last = _after(last)
            while str(last) in taken:
                last = _after(last)
            result[service] = str(last)
        return Given(result, last)


def _after(address: ipaddress.IPv4Address) -> ipaddress.IPv4Address:
    if address >= LAST:
        raise ExhaustedError("every virtual IP of 240.0.0.0/4 has been given")
    return address + 1

"""Rules of what is redirected. Pure; `xds.redirect.nftables` and `xds.redirect.iptables` encode them.

Consul's rules (``consul connect redirect-traffic``): every TCP connection of the host goes to the sidecar's outbound
port, except the sidecar's own and those to 127.0.0.1; every TCP connection to the host goes to its inbound port.
Exclusions come first. Gossamer's differ in three ways: IPv6 is redirected as well, one transaction replaces the
previous rules, and they can be verified and undone.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from xds.outbound_port import OUTBOUND_LISTENER_PORT

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

DNS_PORT = 53


@dataclass(frozen=True, slots=True)
class DnsRedirect:
    """Destination of DNS queries.

    Without ``port``, every query to port 53 goes to ``address``:53. With it, only queries that were sent to ``address``
    are redirected, to its port ``port`` (Consul's two forms).
    """

    address: IPAddress
    port: int | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """Redirection of one host."""

    proxy_uid: int
    inbound_port: int
    outbound_port: int = OUTBOUND_LISTENER_PORT
    exclude_inbound_ports: tuple[int, ...] = ()
    exclude_outbound_ports: tuple[int, ...] = ()
    exclude_outbound_cidrs: tuple[IPNetwork, ...] = ()
    exclude_uids: tuple[int, ...] = ()
    dns: DnsRedirect | None = None
    sidecar_dns_port: int | None = None
    """Port where the sidecar answers the host's DNS queries over UDP, except its own and those of excluded users."""

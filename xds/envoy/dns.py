"""Encodes the DNS listener of a sidecar: it answers for its upstreams with their virtual IPs, and forwards the rest.

Only names that the sidecar has an address for are answered (unlike Consul's DNS, which ignores intentions). Envoy
answers queries for addresses, over UDP; it forwards others to the host's resolvers.

The table of Envoy's filter works around two of its limits:

* It answers NXDOMAIN where a name has addresses of the other family only, and musl then considers the name missing. So
  a name with only IPv4 addresses has them as IPv6 addresses too (``::ffff:240.0.0.1``, RFC 4291, 2.5.5.2), to which the
  kernel connects over IPv4.
* It compares names with their case, which DNS ignores (RFC 1035, 2.3.3). So the table has each name as the catalog
  spells it, in small and in capital letters. For every other spelling ``gossamer sidecar`` runs ``xds.companion.dns``
  in front of Envoy, which asks in small letters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from google.protobuf.duration_pb2 import Duration

from xds.envoy import names
from xds.envoy.tls import typed
from xds.wire.envoy.config import core_pb2 as core
from xds.wire.envoy.config import listener_pb2 as listener
from xds.wire.envoy.extensions import dns_cares_pb2, dns_filter_pb2, dns_table_pb2

ANSWER_TTL = Duration(seconds=30)
"""The shortest that Envoy takes."""
FORWARD_TIMEOUT = Duration(seconds=2)
PENDING = 256

Named = tuple[str, tuple[str, ...]]
"""A service, and the addresses at which it is dialed."""


_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,180}[A-Za-z0-9_])?")


def unanswerable(services: Iterable[Named]) -> list[str]:
    """Return the services whose name can't be part of a DNS name; Envoy would reject all because of one."""
    return [service for service, _ in services if not _LABEL.fullmatch(service)]


def dns_listener(port: int, services: Iterable[Named], datacenter: str, *, dual_stack: bool) -> listener.Listener:
    """Return the listener that answers DNS queries at ``port`` of loopback."""
    config = dns_filter_pb2.DnsFilterConfig(
        stat_prefix="virtual_dns",
        server_config=dns_filter_pb2.DnsFilterConfig.ServerContextConfig(
            inline_dns_table=dns_table_pb2.DnsTable(
                virtual_domains=[
                    _domain(name, addresses)
                    for service, addresses in services
                    if _LABEL.fullmatch(service)
                    for name in _names_of(service, datacenter)
                ]
            )
        ),
        client_config=dns_filter_pb2.DnsFilterConfig.ClientContextConfig(
            resolver_timeout=FORWARD_TIMEOUT,
            max_pending_lookups=PENDING,
            typed_dns_resolver_config=core.TypedExtensionConfig(
                name="envoy.network.dns_resolver.cares", typed_config=typed(dns_cares_pb2.CaresDnsResolverConfig())
            ),
        ),
    )
    made = listener.Listener(
        name=names.listener("virtual_dns", "127.0.0.1", port),
        address=_udp("127.0.0.1", port),
        listener_filters=[listener.ListenerFilter(name="envoy.filters.udp.dns_filter", typed_config=typed(config))],
    )
    if dual_stack:
        made.additional_addresses.append(listener.AdditionalAddress(address=_udp("::1", port)))
    return made


def _names_of(service: str, datacenter: str) -> Iterable[str]:
    """Yield a service's names as in Consul's DNS (``agent/dns.go``): the short ones and the fully qualified ones."""
    found: dict[str, None] = {}
    for suffix in ("virtual.consul", f"virtual.default.ns.default.ap.{datacenter}.dc.consul"):
        for spelled in (service, service.lower(), service.upper()):
            found[f"{spelled}.{suffix}"] = None
        found[f"{service}.{suffix}".upper()] = None
    return found


def _of_both_families(addresses: Iterable[str]) -> list[str]:
    found = list(addresses)
    return found if any(":" in each for each in found) else [*found, *(f"::ffff:{each}" for each in found)]


def _domain(name: str, addresses: Iterable[str]) -> dns_table_pb2.DnsTable.DnsVirtualDomain:
    listed = dns_table_pb2.DnsTable.AddressList(address=_of_both_families(addresses))
    endpoint = dns_table_pb2.DnsTable.DnsEndpoint(address_list=listed)
    return dns_table_pb2.DnsTable.DnsVirtualDomain(name=name, endpoint=endpoint, answer_ttl=ANSWER_TTL)


def _udp(address: str, port: int) -> core.Address:
    socket = core.SocketAddress(protocol=core.SocketAddress.UDP, address=address, port_value=port)
    return core.Address(socket_address=socket)

"""Listeners: the outbound one that does not know the services, the public one that does the letting in, explicit ones.

The outbound listener is of constant shape. A matcher on the dialed address sends the virtual-IP ranges to one chain,
which names the upstream cluster after that address; so a new upstream is a cluster and its endpoints, and the
listener stays as it is. Only the addresses that services claim outside the ranges vary, and they sit in the matcher:
a changed matcher drains no connection, a changed chain would.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from dataclasses import dataclass

from google.protobuf.wrappers_pb2 import BoolValue, StringValue, UInt32Value

from xds.envoy import names
from xds.envoy.clusters import socket_address
from xds.envoy.identities import admitted_identities
from xds.envoy.rbac import network_rbac
from xds.envoy.resource import LISTENER, Resource, encode
from xds.envoy.tls import downstream_transport_socket, typed
from xds.mesh.facts import ExplicitUpstream, ProxySettings, Sidecar
from xds.policy.intentions import ConnectionPolicy
from xds.wire.envoy.config import core_pb2 as core
from xds.wire.envoy.config import listener_pb2 as listener
from xds.wire.envoy.extensions import (
    filter_state_pb2,
    network_inputs_pb2,
    original_dst_pb2,
    set_filter_state_pb2,
    tcp_proxy_pb2,
)
from xds.wire.xds import core_pb2 as xds_core
from xds.wire.xds import matcher_pb2 as xds_matcher

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

OUTBOUND_LISTENER_PORT = 15001
CONSUL_VIRTUAL_IPS = ipaddress.ip_network("240.0.0.0/4")
"""What Consul gives its virtual IPs from."""

MESH_CHAIN = "mesh"
PASSTHROUGH_CHAIN = "passthrough"


@dataclass(frozen=True, slots=True)
class OutboundSettings:
    """What holds for the outbound listeners of a whole mesh."""

    virtual_ranges: tuple[IPNetwork, ...] = (CONSUL_VIRTUAL_IPS,)
    destinations_only: bool = False
    """No way past the mesh: a connection to any address that is not a virtual IP is closed."""


def outbound(settings: OutboundSettings, port: int, virtual_ips: Collection[str]) -> Resource:
    """The listener that the kernel redirects outbound connections to.

    ``virtual_ips`` are the addresses of the sidecar's upstreams; those inside the ranges change nothing.
    """
    name = names.listener("outbound_listener", "127.0.0.1", port)
    chains = [
        listener.FilterChain(name=MESH_CHAIN, filters=[_pick_cluster(), _tcp_proxy("upstream.mesh", cluster="unset")])
    ]
    if not settings.destinations_only:
        passthrough = _tcp_proxy("upstream.original-destination", cluster=names.ORIGINAL_DESTINATION)
        chains.append(listener.FilterChain(name=PASSTHROUGH_CHAIN, filters=[passthrough]))
    message = listener.Listener(
        name=name,
        address=socket_address("127.0.0.1", port),
        traffic_direction=core.OUTBOUND,
        listener_filters=[
            listener.ListenerFilter(
                name="envoy.filters.listener.original_dst", typed_config=typed(original_dst_pb2.OriginalDst())
            )
        ],
        filter_chains=chains,
        # A second Envoy on this port would take half of the connections, silently, and carry them as someone else.
        enable_reuse_port=BoolValue(value=False),
        filter_chain_matcher=_by_destination(settings, virtual_ips),
    )
    past = () if settings.destinations_only else (names.ORIGINAL_DESTINATION,)
    singles = tuple(names.virtual_ip_cluster(str(address)) for address in _outside_ranges(settings, virtual_ips))
    return encode(LISTENER, name, message, clusters=(*past, *singles), of_all_upstreams=True)


def _outside_ranges(
    settings: OutboundSettings, virtual_ips: Collection[str]
) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    addresses = (ipaddress.ip_address(ip) for ip in virtual_ips)
    outside = (a for a in addresses if not any(a in network for network in settings.virtual_ranges))
    return sorted(outside, key=lambda a: (a.version, int(a)))


def _by_destination(settings: OutboundSettings, virtual_ips: Collection[str]) -> xds_matcher.Matcher:
    singles = [ipaddress.ip_network(address) for address in _outside_ranges(settings, virtual_ips)]
    networks = [*settings.virtual_ranges, *singles]
    ranges = xds_matcher.IPMatcher.IPRangeMatcher(
        ranges=[
            xds_core.CidrRange(
                address_prefix=str(network.network_address), prefix_len=UInt32Value(value=network.prefixlen)
            )
            for network in networks
        ],
        on_match=_chain_action(MESH_CHAIN),
    )
    tree = xds_matcher.Matcher.MatcherTree(
        input=xds_core.TypedExtensionConfig(
            name="envoy.matching.inputs.destination_ip",
            typed_config=typed(network_inputs_pb2.DestinationIPInput()),
        ),
        custom_match=xds_core.TypedExtensionConfig(
            name="envoy.matching.custom_matchers.ip_range_matcher",
            typed_config=typed(xds_matcher.IPMatcher(range_matchers=[ranges])),
        ),
    )
    return xds_matcher.Matcher(
        matcher_tree=tree,
        on_no_match=None if settings.destinations_only else _chain_action(PASSTHROUGH_CHAIN),
    )


def _chain_action(chain: str) -> xds_matcher.Matcher.OnMatch:
    return xds_matcher.Matcher.OnMatch(
        action=xds_core.TypedExtensionConfig(name="filter-chain-name", typed_config=typed(StringValue(value=chain)))
    )


def _pick_cluster() -> listener.Filter:
    """Names the cluster after the dialed address. Where there is none of that name, the connection is reset."""
    config = set_filter_state_pb2.Config(
        on_new_connection=[
            filter_state_pb2.FilterStateValue(
                object_key="envoy.tcp_proxy.cluster",
                format_string=core.SubstitutionFormatString(
                    text_format_source=core.DataSource(
                        inline_string=names.virtual_ip_cluster("%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%")
                    )
                ),
            )
        ]
    )
    return listener.Filter(name="envoy.filters.network.set_filter_state", typed_config=typed(config))


def _tcp_proxy(stat_prefix: str, cluster: str) -> listener.Filter:
    return listener.Filter(
        name="envoy.filters.network.tcp_proxy",
        typed_config=typed(tcp_proxy_pb2.TcpProxy(stat_prefix=stat_prefix, cluster=cluster)),
    )


def public_address(sidecar: Sidecar, settings: ProxySettings) -> tuple[str, int]:
    """Where the public listener binds (Consul: ``bind_address``, else the service's address, else every address)."""
    return (
        settings.bind_address or sidecar.address or "0.0.0.0",  # noqa: S104 - Consul's default
        settings.bind_port or sidecar.port,
    )


def public(sidecar: Sidecar, settings: ProxySettings, policy: ConnectionPolicy, trust_domain: str) -> Resource:
    """The listener that other sidecars connect to: mutual TLS, then the intentions, then the application."""
    address, port = public_address(sidecar, settings)
    name = names.listener("public_listener", address, port)
    message = listener.Listener(
        name=name,
        address=socket_address(address, port),
        traffic_direction=core.INBOUND,
        filter_chains=[
            listener.FilterChain(
                filters=[
                    listener.Filter(
                        name="envoy.filters.network.rbac", typed_config=typed(network_rbac(policy, trust_domain))
                    ),
                    _tcp_proxy("public_listener", cluster=names.LOCAL_APP),
                ],
                transport_socket=downstream_transport_socket(admitted_identities(policy, trust_domain)),
            )
        ],
    )
    return encode(LISTENER, name, message, clusters=(names.LOCAL_APP,))


def explicit(upstream: ExplicitUpstream, cluster: str, datacenter: str) -> Resource:
    """A listener on the local address that a registration gives an upstream."""
    name = names.listener(upstream.name, upstream.local_bind_address, upstream.local_bind_port)
    message = listener.Listener(
        name=name,
        address=socket_address(upstream.local_bind_address, upstream.local_bind_port),
        traffic_direction=core.OUTBOUND,
        filter_chains=[
            listener.FilterChain(
                filters=[_tcp_proxy(names.upstream_stat_prefix(upstream.name, datacenter), cluster=cluster)]
            )
        ],
    )
    return encode(LISTENER, name, message, clusters=(cluster,))

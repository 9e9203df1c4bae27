"""Encodes the outbound listener, whose shape does not depend on the services, and listeners of explicit upstreams.

The outbound listener has a constant shape. A matcher on the dialed address sends the virtual-IP ranges to one chain,
which derives the name of the upstream's cluster from that address; so a new upstream is a cluster and its endpoints,
and the listener stays the same. Only addresses that are claimed outside the ranges, that carry HTTP, or whose port
matters are listed, and they are in the matcher: a changed matcher drains no connection, a changed chain would. All
chains that a matcher may ever name exist from the start.

Where clusters come on demand, other chains of the same kinds accept the connections (`ChainSelection`): they request a
missing cluster and hold the connection until it arrives.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import BoolValue, StringValue, UInt32Value

from xds.envoy import http_connection_managers as managers
from xds.envoy import names
from xds.envoy.clusters import socket_address
from xds.envoy.egress import HTTP_CHAIN, TLS_CHAIN, EgressHost, inspectors
from xds.envoy.overrides import listener_from
from xds.envoy.tls import ads_source, typed
from xds.mesh.addresses import IPNetwork
from xds.mesh.config_entries import ClusterMode
from xds.mesh.facts import ANY_PORT, ExplicitUpstream, VirtualAddress
from xds.mesh.http import HTTP_PROTOCOLS
from xds.policy.mesh_wide_settings import MeshWideSettings
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

OnMatch = xds_matcher.Matcher.OnMatch

PASSTHROUGH_CHAIN = "passthrough"
OWN_ADDRESSES = ("127.0.0.1", "::1")
"""Addresses at which the outbound listener listens."""
NOWHERE = "nowhere"
"""Name of no chain: a connection that is matched to it is closed."""
KINDS = ("tcp", "http", "grpc")
"""The kinds of chains: connections, requests, and requests that are counted by gRPC method."""


def kind(protocol: str) -> str:
    """Return the kind of filter chain that carries a protocol."""
    return "grpc" if protocol == "grpc" else "http" if protocol in HTTP_PROTOCOLS else "tcp"


def outbound(
    settings: MeshWideSettings,
    port: int,
    listed: Mapping[VirtualAddress, str],
    hosts: Collection[EgressHost] = (),
    *,
    dual_stack: bool = False,
    mode: ClusterMode = ClusterMode.EAGER,
    on_demand: bool = False,
    max_request_headers_kb: int | None = None,
) -> listener.Listener:
    """Return the listener that the kernel redirects outbound connections to.

    Args:
        settings: settings of every outbound listener.
        port: where it listens, on loopback.
        hosts: the hosts outside the mesh that are reached through a gateway.
        dual_stack: whether on that of IPv6 as well.
        mode: when the clusters are sent. What may change over has the chains of both ways, so that it drains nothing.
        on_demand: whether they are sent on demand now.
        max_request_headers_kb: how large the headers of a request may be; ``None`` for Envoy's default.
        listed: the addresses that it has to list (`MeshWideSettings.lists`), each with its protocol; sorted.
    """
    name = names.listener("outbound_listener", "127.0.0.1", port)
    selection = ChainSelection(mode, on_demand)
    chains = [
        _mesh_chain(each, by_port, asks, max_request_headers_kb)
        for each in KINDS
        for by_port in (False, True)
        for asks in selection.all(each)
    ]
    chains.append(
        listener.FilterChain(name=TLS_CHAIN, filters=_picked_connection(names.EGRESS_HOST, "upstream.egress"))
    )
    requests = managers.outbound(
        "upstream.egress.http", names.EGRESS_SCOPE, grpc=False, max_request_headers_kb=max_request_headers_kb
    )
    chains.append(listener.FilterChain(name=HTTP_CHAIN, filters=[managers.network_filter(requests)]))
    if not settings.destinations_only:
        passthrough = tcp_proxy("upstream.original-destination", cluster=names.ORIGINAL_DESTINATION)
        chains.append(listener.FilterChain(name=PASSTHROUGH_CHAIN, filters=[passthrough]))
    more = [listener.AdditionalAddress(address=socket_address("::1", port))] if dual_stack else []
    return listener.Listener(
        name=name,
        address=socket_address("127.0.0.1", port),
        additional_addresses=more,
        traffic_direction=core.OUTBOUND,
        listener_filters=[
            listener.ListenerFilter(
                name="envoy.filters.listener.original_dst", typed_config=typed(original_dst_pb2.OriginalDst())
            ),
            *inspectors(hosts),
        ],
        filter_chains=chains,
        # A second Envoy on this port would silently receive half of the connections, and carry them under another
        # identity.
        enable_reuse_port=BoolValue(value=False),
        filter_chain_matcher=_by_destination(settings, port, listed, hosts, selection),
    )


def outbound_clusters(
    settings: MeshWideSettings, listed: Mapping[VirtualAddress, str], hosts: Iterable[EgressHost] = ()
) -> tuple[str, ...]:
    """Return the clusters that the outbound listener names."""
    past = () if settings.destinations_only else (names.ORIGINAL_DESTINATION,)
    named = sorted(names.dialed(at) for at, protocol in listed.items() if kind(protocol) == "tcp")
    return (*past, *named, *sorted(host.cluster for host in hosts))


def outbound_routes(listed: Mapping[VirtualAddress, str], hosts: Iterable[EgressHost] = ()) -> tuple[str, ...]:
    """Return the routes that the outbound listener names."""
    named = {names.dialed(at) for at, protocol in listed.items() if kind(protocol) != "tcp"}
    return tuple(sorted(named | {names.egress_scope(host.port) for host in hosts if host.http}))


@dataclass(frozen=True, slots=True)
class ChainSelection:
    """Selection of filter chains: which are generated, and which accept connections.

    There are chains that request missing clusters, and chains that do not. A sidecar whose mode may change has both for
    TCP. For HTTP it has those that request clusters from the start, because an established connection stays with its
    chain, and its next request may need a cluster that was removed.
    """

    mode: ClusterMode
    on_demand: bool

    def all(self, kind: str) -> tuple[bool, ...]:
        """Return, for each existing chain of a kind, whether it requests missing clusters."""
        return (False, True) if self.mode is ClusterMode.AUTO and kind == "tcp" else (self.asks(kind),)

    def asks(self, kind: str) -> bool:
        """Return whether the chain that accepts connections requests missing clusters."""
        return self.on_demand or (self.mode is ClusterMode.AUTO and kind != "tcp")

    def chain(self, kind: str, *, by_port: bool) -> str:
        """Return the name of the chain that accepts connections."""
        return _chain(kind, by_port, self.asks(kind))


def _chain(kind: str, by_port: bool, on_demand: bool) -> str:
    return f"mesh-{kind}{'-by-port' if by_port else ''}{'-on-demand' if on_demand else ''}"


@functools.cache
def _mesh_chain(kind: str, by_port: bool, on_demand: bool, max_request_headers_kb: int | None) -> listener.FilterChain:
    dialed = names.DIALED_ADDRESS_AND_PORT if by_port else names.DIALED_ADDRESS
    if kind == "tcp":
        filters = _picked_connection(dialed, "upstream.mesh", on_demand=on_demand)
    else:
        requests = managers.outbound(
            f"upstream.mesh.{kind}",
            dialed,
            grpc=kind == "grpc",
            on_demand=on_demand,
            max_request_headers_kb=max_request_headers_kb,
        )
        filters = [managers.network_filter(requests)]
    return listener.FilterChain(name=_chain(kind, by_port, on_demand), filters=filters)


def _by_destination(
    settings: MeshWideSettings,
    own_port: int,
    listed: Mapping[VirtualAddress, str],
    hosts: Collection[EgressHost],
    selection: ChainSelection,
) -> xds_matcher.Matcher:
    """Return the matcher that picks the chain of a connection: by address, the most specific first, then by port."""
    past = _outside(hosts, None if settings.destinations_only else _go_to(PASSTHROUGH_CHAIN))
    by_kind = {selection.chain("tcp", by_port=False): [_network(each) for each in settings.virtual_ranges]}
    ports: dict[str, dict[VirtualAddress, str]] = {}
    chains = {protocol: selection.chain(kind(protocol), by_port=False) for protocol in {*listed.values()}}
    for at, protocol in listed.items():
        if at.port == ANY_PORT:
            by_kind.setdefault(chains[protocol], []).append(_one_address(at.ip))
        else:
            ports.setdefault(at.ip, {})[at] = protocol
    ranges = [_range(encoded, _go_to(chain)) for chain, encoded in by_kind.items() if encoded]
    # A connection to the listener's own address would loop from Envoy to itself until no connections are left.
    itself = _exact("destination_port", _PORT_INPUT, {str(own_port): NOWHERE}, past)
    ranges.append(_range(map(_one_address, OWN_ADDRESSES), itself))
    for ip, there in sorted(ports.items()):
        otherwise = past
        if not all(at.own for at in there):
            otherwise = _go_to(selection.chain("tcp", by_port=False))  # refused without a cluster of that name
        ranges.append(_range([_one_address(ip)], _by_port(there, otherwise, selection)))
    tree = xds_matcher.Matcher.MatcherTree(
        input=_input("destination_ip", network_inputs_pb2.DestinationIPInput()),
        custom_match=xds_core.TypedExtensionConfig(
            name="envoy.matching.custom_matchers.ip_range_matcher",
            typed_config=typed(xds_matcher.IPMatcher(range_matchers=ranges)),
        ),
    )
    return xds_matcher.Matcher(matcher_tree=tree, on_no_match=past)


def _outside(hosts: Collection[EgressHost], past: OnMatch | None) -> OnMatch | None:
    """Return the chains for connections that are not to a virtual IP, by server name or host where a gateway leads to
    hosts."""
    ports = {}
    for port in sorted({each.port for each in hosts}):
        there = [each for each in hosts if each.port == port]
        then = past
        if any(each.http for each in there):
            then = _exact("application_protocol", _PROTOCOL_INPUT, dict.fromkeys(HTTP_INSPECTED, HTTP_CHAIN), then)
        server_names = [each.host for each in there if not each.http]
        if server_names:
            then = _exact("server_name", _SERVER_NAME_INPUT, dict.fromkeys(server_names, TLS_CHAIN), then)
        if then is not None:
            ports[str(port)] = then
    if not ports:
        return past
    tree = xds_matcher.Matcher.MatcherTree(
        input=_input("destination_port", network_inputs_pb2.DestinationPortInput()),
        exact_match_map=xds_matcher.Matcher.MatcherTree.MatchMap(map=ports),
    )
    return OnMatch(matcher=xds_matcher.Matcher(matcher_tree=tree, on_no_match=past))


_PORT_INPUT = network_inputs_pb2.DestinationPortInput()
_PROTOCOL_INPUT = network_inputs_pb2.ApplicationProtocolInput()
_SERVER_NAME_INPUT = network_inputs_pb2.ServerNameInput()
HTTP_INSPECTED = ("'http/1.0'", "'http/1.1'", "'h2c'")
"""Results of the HTTP inspector, as a matcher's input has them."""


def _exact(name: str, message: Message, chains: Mapping[str, str], otherwise: OnMatch | None) -> OnMatch:
    tree = xds_matcher.Matcher.MatcherTree(
        input=_input(name, message),
        exact_match_map=xds_matcher.Matcher.MatcherTree.MatchMap(
            map={text: _go_to(chain) for text, chain in chains.items()}
        ),
    )
    return OnMatch(matcher=xds_matcher.Matcher(matcher_tree=tree, on_no_match=otherwise))


def _by_port(there: Mapping[VirtualAddress, str], otherwise: OnMatch | None, selection: ChainSelection) -> OnMatch:
    chains = {str(at.port): _go_to(selection.chain(kind(protocol), by_port=True)) for at, protocol in there.items()}
    tree = xds_matcher.Matcher.MatcherTree(
        input=_input("destination_port", network_inputs_pb2.DestinationPortInput()),
        exact_match_map=xds_matcher.Matcher.MatcherTree.MatchMap(map=chains),
    )
    return OnMatch(matcher=xds_matcher.Matcher(matcher_tree=tree, on_no_match=otherwise))


def _range(encoded: Iterable[bytes], then: OnMatch) -> xds_matcher.IPMatcher.IPRangeMatcher:
    """Return the matcher for these networks; each is encoded as if it were the only one, because repeated fields
    concatenate."""
    found = xds_matcher.IPMatcher.IPRangeMatcher.FromString(b"".join(encoded))
    found.on_match.CopyFrom(then)
    return found


def _network(network: IPNetwork) -> bytes:
    return _encoded_range(str(network.network_address), network.prefixlen)


@functools.lru_cache(maxsize=1 << 16)
def _one_address(ip: str) -> bytes:
    return _encoded_range(ip, 128 if ":" in ip else 32)


def _encoded_range(address: str, length: int) -> bytes:
    found = xds_core.CidrRange(address_prefix=address, prefix_len=UInt32Value(value=length))
    return xds_matcher.IPMatcher.IPRangeMatcher(ranges=[found]).SerializeToString()


def _input(name: str, message: Message) -> xds_core.TypedExtensionConfig:
    return xds_core.TypedExtensionConfig(name=f"envoy.matching.inputs.{name}", typed_config=typed(message))


def _go_to(chain: str) -> OnMatch:
    return OnMatch(
        action=xds_core.TypedExtensionConfig(name="filter-chain-name", typed_config=typed(StringValue(value=chain)))
    )


def _picked_connection(name: str, stat_prefix: str, *, on_demand: bool = False) -> list[listener.Filter]:
    """Return the filter that connects to the cluster named after the connection's address; without such a cluster it
    resets the connection."""
    return [_pick_cluster(name), tcp_proxy(stat_prefix, cluster="unset", on_demand=on_demand)]


def _pick_cluster(dialed: str) -> listener.Filter:
    config = set_filter_state_pb2.Config(
        on_new_connection=[
            filter_state_pb2.FilterStateValue(
                object_key="envoy.tcp_proxy.cluster",
                format_string=core.SubstitutionFormatString(text_format_source=core.DataSource(inline_string=dialed)),
            )
        ]
    )
    return listener.Filter(name="envoy.filters.network.set_filter_state", typed_config=typed(config))


def tcp_proxy(stat_prefix: str, cluster: str, *, on_demand: bool = False) -> listener.Filter:
    """Return a chain's last filter for connections whose contents Envoy does not inspect."""
    config = tcp_proxy_pb2.TcpProxy(stat_prefix=stat_prefix, cluster=cluster)
    if on_demand:
        config.on_demand.odcds_config.CopyFrom(ads_source())
        config.on_demand.timeout.CopyFrom(managers.ON_DEMAND_TIMEOUT)
    return listener.Filter(name="envoy.filters.network.tcp_proxy", typed_config=typed(config))


def explicit_name(upstream: ExplicitUpstream) -> str:
    """Return the name of an explicit upstream's listener, and of the clusters and routes behind it."""
    if upstream.local_bind_socket_path:
        return f"{upstream.name}:{upstream.local_bind_socket_path}"
    return names.listener(upstream.name, upstream.local_bind_address, upstream.local_bind_port)


def explicit(
    upstream: ExplicitUpstream, protocol: str, datacenter: str, *, max_request_headers_kb: int | None = None
) -> listener.Listener:
    """Return a listener on the local address that a registration gives an upstream.

    Args:
        upstream: as the registration has it.
        protocol: of the upstream.
        datacenter: of the sidecar, for statistics.
        max_request_headers_kb: how large the headers of a request may be; ``None`` for Envoy's default.

    Raises:
        OverrideError: the user's own JSON of it can't be used.
    """
    name = explicit_name(upstream)
    if upstream.settings.listener_json:
        return listener_from("envoy_listener_json", upstream.settings.listener_json, name)
    if upstream.local_bind_socket_path:
        pipe = core.Pipe(path=upstream.local_bind_socket_path, mode=upstream.local_bind_socket_mode)
        address = core.Address(pipe=pipe)
    else:
        address = socket_address(upstream.local_bind_address, upstream.local_bind_port)
    stat_prefix = names.upstream_stat_prefix(upstream.name, datacenter)
    if protocol in HTTP_PROTOCOLS:
        requests = managers.outbound(
            stat_prefix, name, grpc=protocol == "grpc", max_request_headers_kb=max_request_headers_kb
        )
        last = managers.network_filter(requests)
    else:
        last = tcp_proxy(stat_prefix, cluster=name)
    made = listener.Listener(
        name=name,
        address=address,
        traffic_direction=core.OUTBOUND,
        filter_chains=[listener.FilterChain(filters=[last])],
    )
    if upstream.settings.balance_connections:
        made.connection_balance_config.exact_balance.SetInParent()
    return made

"""The outbound listener is constant; only addresses outside the ranges vary, and only in its matcher."""

from __future__ import annotations

import ipaddress

from google.protobuf.wrappers_pb2 import StringValue

from xds.envoy import outbound
from xds.mesh.config_entries import ClusterMode
from xds.mesh.facts import VirtualAddress
from xds.policy.mesh_wide_settings import MeshWideSettings
from xds.wire.envoy.config import listener_pb2 as listener
from xds.wire.xds import matcher_pb2 as xds_matcher

SETTINGS = MeshWideSettings()


TCP = "tcp"


def made(settings: MeshWideSettings = SETTINGS, **listed: str) -> listener.Listener:
    """Return the listener that lists ``listed``: addresses (``a`` to ``z`` below) with their protocols."""
    told = {ADDRESSES[name]: protocol for name, protocol in listed.items()}
    told = {at: protocol for at, protocol in told.items() if settings.lists(at, protocol)}
    return outbound.outbound(settings, 15001, told)


def test_a_connection_to_the_listener_itself_is_closed() -> None:
    message = made(inside="http")
    for address in ("127.0.0.1", "::1"):
        assert chain_of(message, address, 15001) not in {chain.name for chain in message.filter_chains}
        assert chain_of(message, address, 15002) == outbound.PASSTHROUGH_CHAIN
    assert chain_of(message, "127.0.0.2", 15001) == outbound.PASSTHROUGH_CHAIN


ADDRESSES = {
    "inside": VirtualAddress("240.0.0.1"),
    "outside": VirtualAddress("10.96.0.7"),
    "six": VirtualAddress("fd00::7"),
    "port80": VirtualAddress("10.96.0.9", 80),
    "port81": VirtualAddress("10.96.0.9", 81),
    "own": VirtualAddress("10.0.0.5", 8080, own=True),
}


def chain_of(message: listener.Listener, address: str, port: int) -> str | None:
    """Return the chain that accepts a connection, by Envoy's documentation of matchers."""
    return _decide(message.filter_chain_matcher, ipaddress.ip_address(address), port)


def _decide(
    matcher: xds_matcher.Matcher, address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int
) -> str | None:
    tree = matcher.matcher_tree
    found: xds_matcher.Matcher.OnMatch | None = None
    if tree.HasField("custom_match"):
        ranges = xds_matcher.IPMatcher()
        tree.custom_match.typed_config.Unpack(ranges)
        longest = -1
        for each in ranges.range_matchers:
            for cidr in each.ranges:
                network = ipaddress.ip_network(f"{cidr.address_prefix}/{cidr.prefix_len.value}")
                if address in network and network.prefixlen > longest:
                    longest, found = network.prefixlen, each.on_match
    elif str(port) in tree.exact_match_map.map:
        found = tree.exact_match_map.map[str(port)]
    if found is None and matcher.HasField("on_no_match"):
        found = matcher.on_no_match
    if found is None:
        return None
    if found.HasField("matcher"):
        return _decide(found.matcher, address, port)
    name = StringValue()
    found.action.typed_config.Unpack(name)
    return name.value


def test_upstreams_inside_the_ranges_change_nothing() -> None:
    assert made() == made(inside=TCP)
    assert chain_of(made(), "240.0.0.1", 1) == "mesh-tcp"
    assert chain_of(made(), "10.1.1.1", 1) == "passthrough"


def test_new_addresses_change_the_matcher_and_no_chain() -> None:
    before, after = made(), made(outside=TCP, six="http", inside="grpc", port80="http2", port81=TCP, own="http")
    assert before.filter_chain_matcher != after.filter_chain_matcher
    assert list(before.filter_chains) == list(after.filter_chains)
    for address, port, chain in (
        ("10.96.0.7", 5, "mesh-tcp"), ("fd00::7", 5, "mesh-http"), ("240.0.0.1", 5, "mesh-grpc"),
        ("240.0.0.2", 5, "mesh-tcp"), ("10.96.0.9", 80, "mesh-http-by-port"), ("10.96.0.9", 81, "mesh-tcp-by-port"),
        ("10.96.0.9", 82, "mesh-tcp"), ("10.0.0.5", 8080, "mesh-http-by-port"), ("10.0.0.5", 22, "passthrough"),
    ):  # fmt: skip
        assert chain_of(after, address, port) == chain, (address, port)


def test_further_ranges_come_from_the_settings() -> None:
    more = MeshWideSettings((*SETTINGS.virtual_ranges, ipaddress.ip_network("10.96.0.0/12")))
    assert made(more) == made(more, outside=TCP)
    assert chain_of(made(more), "10.96.0.7", 1) == "mesh-tcp"


def test_destinations_only_has_no_passthrough() -> None:
    only = made(MeshWideSettings(destinations_only=True), own=TCP)
    assert "passthrough" not in [chain.name for chain in only.filter_chains]
    assert chain_of(only, "10.1.1.1", 1) is None
    assert chain_of(only, "10.0.0.5", 22) is None


def test_the_name_equals_that_of_consul() -> None:
    assert made().name == "outbound_listener:127.0.0.1:15001"


def test_an_auto_listener_has_the_tcp_chains_of_both_modes_and_on_demand_http_from_the_start() -> None:
    told = {ADDRESSES["outside"]: "http"}
    eager, asking = (
        outbound.outbound(SETTINGS, 15001, told, mode=ClusterMode.AUTO, on_demand=way) for way in (False, True)
    )
    assert eager.filter_chains == asking.filter_chains, "changing over drains nothing"
    assert [chain_of(each, "240.0.0.1", 80) for each in (eager, asking)] == ["mesh-tcp", "mesh-tcp-on-demand"]
    assert {chain_of(each, "10.96.0.7", 80) for each in (eager, asking)} == {"mesh-http-on-demand"}
    always = outbound.outbound(SETTINGS, 15001, told, mode=ClusterMode.EAGER)
    assert chain_of(always, "10.96.0.7", 80) == "mesh-http"
    assert not any("on-demand" in chain.name for chain in always.filter_chains)

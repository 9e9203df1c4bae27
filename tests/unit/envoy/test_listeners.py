"""The outbound listener is constant; only addresses outside the ranges vary, and only in its matcher."""

from __future__ import annotations

import ipaddress

from tests.unit.facts import make_sidecar
from xds.envoy import listeners
from xds.mesh.facts import ProxySettings
from xds.policy.intentions import ConnectionPolicy
from xds.wire.envoy.config import listener_pb2 as listener
from xds.wire.xds import matcher_pb2 as matcher

SETTINGS = listeners.OutboundSettings()


def outbound(*virtual_ips: str, settings: listeners.OutboundSettings = SETTINGS) -> listener.Listener:
    return listener.Listener.FromString(listeners.outbound(settings, 15001, virtual_ips).body)


def ranges(message: listener.Listener) -> list[str]:
    found = matcher.IPMatcher()
    message.filter_chain_matcher.matcher_tree.custom_match.typed_config.Unpack(found)
    return [f"{r.address_prefix}/{r.prefix_len.value}" for r in found.range_matchers[0].ranges]


def test_upstreams_inside_the_ranges_change_nothing() -> None:
    assert listeners.outbound(SETTINGS, 15001, ()) == listeners.outbound(SETTINGS, 15001, ("240.0.0.1", "255.0.0.1"))


def test_addresses_outside_change_the_matcher_and_no_chain() -> None:
    before, after = outbound(), outbound("10.96.0.7", "240.0.0.1", "fd00::7")
    assert ranges(after) == ["240.0.0.0/4", "10.96.0.7/32", "fd00::7/128"]
    assert list(before.filter_chains) == list(after.filter_chains)


def test_further_ranges_come_from_the_settings() -> None:
    more = listeners.OutboundSettings((*SETTINGS.virtual_ranges, ipaddress.ip_network("10.96.0.0/12")))
    assert ranges(outbound("10.96.0.7", settings=more)) == ["240.0.0.0/4", "10.96.0.0/12"]


def test_destinations_only_leaves_no_way_past_the_mesh() -> None:
    only = outbound(settings=listeners.OutboundSettings(destinations_only=True))
    assert [chain.name for chain in only.filter_chains] == ["mesh"]
    assert not only.filter_chain_matcher.HasField("on_no_match")


def test_the_names_are_consuls() -> None:
    assert outbound().name == "outbound_listener:127.0.0.1:15001"
    sidecar = make_sidecar("web", address="")
    public = listeners.public(sidecar, ProxySettings(), ConnectionPolicy(allow=True), "td")
    assert public.name == "public_listener:0.0.0.0:20000"
    bound = listeners.public(
        sidecar, ProxySettings(bind_address="10.1.1.1", bind_port=21000), ConnectionPolicy(allow=True), "td"
    )
    assert bound.name == "public_listener:10.1.1.1:21000"

"""Tests of routes and clusters in the control plane, above all on demand."""

from __future__ import annotations

import json

import pytest

from tests.unit.control.bench import Bench, names_of
from tests.unit.facts import make_instances
from xds.ads.messages import Request
from xds.envoy.resource import CLUSTER, ENDPOINT, LISTENER, ROUTE, SCOPED_ROUTE
from xds.envoy.routes import BY_ADDRESS, CLUSTER_HEADER
from xds.mesh import mesh
from xds.mesh.chains import DiscoveryChain, Resolver, Target, default_chain
from xds.mesh.config_entries import (
    ClusterMode,
    ConfigEntries,
    Extension,
    ProxyMode,
    ProxySettings,
)
from xds.mesh.mesh import Key, Kind
from xds.wire.envoy.config import route_pb2


def test_a_listener_names_the_routes_that_have_to_be_there_before_it(bench: Bench) -> None:
    proxy = bench.connect("web")
    bench.service("page", "240.0.0.9", chain=default_chain("page", "http"))
    listener = proxy.get(LISTENER, "outbound_listener:127.0.0.1:15001")
    assert listener is not None
    assert listener.routes == ("vip:240.0.0.9",)
    assert proxy.get(SCOPED_ROUTE, "vip:240.0.0.9") is not None
    bench.service("page", "240.0.0.9", chain=default_chain("page"))
    listener = proxy.get(LISTENER, "outbound_listener:127.0.0.1:15001")
    assert listener is not None
    assert listener.routes == ()
    assert proxy.get(SCOPED_ROUTE, "vip:240.0.0.9") is None


SLOW = DiscoveryChain("page", "http", "r", {"r": Resolver("t", request_timeout_ms=7)}, {"t": Target("page")})
"""A chain with routes of its own."""


@pytest.mark.parametrize("before", ["tcp", "http"])
@pytest.mark.parametrize("first", ["loses", "gains", "both"])
def test_an_address_that_moves_keeps_nothing_of_its_old_owner(bench: Bench, before: str, first: str) -> None:
    loses = {Key(Kind.INSTANCES, "old"): make_instances("old")}
    gains = {Key(Kind.INSTANCES, "page"): make_instances("page", "240.0.0.9")}
    bench.service("old", "240.0.0.9", chain=default_chain("old", before))
    bench.service("page", chain=SLOW)
    proxy = bench.connect("web")
    for batch in {"loses": (loses, gains), "gains": (gains, loses), "both": ({**gains, **loses},)}[first]:
        bench.plane.apply(batch)
    assert proxy.get(SCOPED_ROUTE, "vip:240.0.0.9") is not None
    for type_url in (CLUSTER, ENDPOINT):
        assert not {"vip:240.0.0.9", "http:vip:240.0.0.9"} & names_of(proxy, type_url)


def test_while_a_protocol_changes_each_kind_has_its_own_cluster(bench: Bench) -> None:
    proxy = bench.connect("web")
    for protocol, there in (("tcp", "vip:240.0.0.9"), ("http", "http:vip:240.0.0.9")):
        bench.service("page", "240.0.0.9", chain=default_chain("page", protocol))
        assert {name for name in names_of(proxy, CLUSTER) if "240.0.0.9" in name} == {there}


def test_on_demand_a_scope_stands_for_routes_that_are_asked_for(bench: Bench) -> None:
    bench.service("page", "240.0.0.9", chain=SLOW)
    eager = bench.connect("web")
    whole = eager.get(SCOPED_ROUTE, "vip:240.0.0.9")
    assert whole is not None
    assert eager.get(ROUTE, "vip:240.0.0.9") is None
    assert eager.select(ROUTE, ["vip:240.0.0.9"]) == []
    sidecar = ProxySettings(mode=ProxyMode.TRANSPARENT, clusters=ClusterMode.ON_DEMAND)
    bench.plane.apply({mesh.CONFIG_ENTRIES: ConfigEntries(proxy_defaults=sidecar)})
    proxy = bench.connect("web", 1)
    scope, routes = (proxy.get(type_url, "vip:240.0.0.9") for type_url in (SCOPED_ROUTE, ROUTE))
    assert scope is not None
    assert routes is not None
    assert scope.clusters == (), "it waits for no cluster"
    assert routes.clusters == whole.clusters
    assert proxy.select(SCOPED_ROUTE, ["vip:240.0.0.9"]) == [scope]
    assert proxy.select(ROUTE, ["vip:240.0.0.9", "vip:240.0.0.2"]) == [routes]
    pointer = route_pb2.ScopedRouteConfiguration.FromString(scope.body)
    content = route_pb2.RouteConfiguration.FromString(routes.body)
    assert (pointer.on_demand, pointer.route_configuration_name, content.name) == (True, *["vip:240.0.0.9"] * 2)
    inline = route_pb2.ScopedRouteConfiguration.FromString(whole.body).route_configuration
    assert content.virtual_hosts == inline.virtual_hosts


def test_on_demand_upstreams_without_a_split_share_their_routes(bench: Bench) -> None:
    bench.service("page", "240.0.0.9", chain=default_chain("page", "http"))
    eager = bench.connect("web")
    [whole] = eager.select(SCOPED_ROUTE, ["vip:240.0.0.9"])
    assert whole.clusters == ("http:vip:240.0.0.9",)
    sidecar = ProxySettings(mode=ProxyMode.TRANSPARENT, clusters=ClusterMode.ON_DEMAND)
    bench.plane.apply({mesh.CONFIG_ENTRIES: ConfigEntries(proxy_defaults=sidecar)})
    proxy = bench.connect("web", 1)
    [scope] = proxy.select(SCOPED_ROUTE, ["vip:240.0.0.9"])
    pointer = route_pb2.ScopedRouteConfiguration.FromString(scope.body)
    assert (pointer.on_demand, pointer.route_configuration_name) == (False, BY_ADDRESS)
    assert proxy.get(ROUTE, "vip:240.0.0.9") is None
    shared = proxy.get(ROUTE, BY_ADDRESS)
    assert shared is not None
    [route] = route_pb2.RouteConfiguration.FromString(shared.body).virtual_hosts[0].routes
    assert route.route.cluster_header == CLUSTER_HEADER


SIZE = 99


def test_on_demand_routes_that_an_extension_touched_are_not_shared(bench: Bench) -> None:
    patch = {
        "ResourceFilter": {"ResourceType": "route", "TrafficDirection": "outbound"},
        "Op": "add",
        "Path": "/max_direct_response_body_size_bytes",
        "Value": SIZE,
    }
    extension = Extension("builtin/property-override", False, json.dumps({"Patches": [patch]}))
    sidecar = ProxySettings(mode=ProxyMode.TRANSPARENT, clusters=ClusterMode.ON_DEMAND, extensions=(extension,))
    bench.plane.apply({mesh.CONFIG_ENTRIES: ConfigEntries(proxy_defaults=sidecar)})
    bench.service("page", "240.0.0.9", chain=default_chain("page", "http"))
    routes = bench.connect("web").get(ROUTE, "vip:240.0.0.9")
    assert routes is not None
    assert routes.body.endswith(b"\x08" + SIZE.to_bytes(1, "big"))


def test_on_demand_requested_routes_follow_their_chain(bench: Bench) -> None:
    sidecar = ProxySettings(mode=ProxyMode.TRANSPARENT, clusters=ClusterMode.ON_DEMAND)
    bench.plane.apply({mesh.CONFIG_ENTRIES: ConfigEntries(proxy_defaults=sidecar)})
    bench.service("page", "240.0.0.9", chain=SLOW)
    proxy = bench.connect("web")
    proxy.session.receive(Request(SCOPED_ROUTE, subscribe=("*",)))
    proxy.session.receive(Request(ROUTE, subscribe=("vip:240.0.0.9",)))

    def sent() -> list[tuple[str, str]]:
        found = []
        while (response := proxy.session.next_response()) is not None:
            found += [(each.type_url, each.name) for each in response.resources]
            proxy.session.receive(Request(response.type_url, response.nonce))
        return found

    assert set(sent()) == {(ROUTE, "vip:240.0.0.9"), (SCOPED_ROUTE, "vip:240.0.0.9")}
    slower = {"r": Resolver("t", request_timeout_ms=8)}
    chain = DiscoveryChain("page", "http", "r", slower, {"t": Target("page")})
    bench.service("page", "240.0.0.9", chain=chain)
    assert sent() == [(ROUTE, "vip:240.0.0.9")], "the scope is the same"
    bench.service("page", "240.0.0.9", chain=default_chain("page", "http"))
    assert sent() == [(SCOPED_ROUTE, "vip:240.0.0.9")], "it has no routes of its own any more"
    bench.service("page", "240.0.0.9", chain=chain)
    proxy.session.receive(Request(ROUTE, subscribe=("vip:240.0.0.9",)))
    assert set(sent()) == {(ROUTE, "vip:240.0.0.9"), (SCOPED_ROUTE, "vip:240.0.0.9")}

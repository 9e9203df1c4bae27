"""Tests of the control plane: from facts to the resources that each proxy is meant to have."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.control.bench import OUTBOUND, Bench, names_of
from tests.unit.facts import make_instance, make_instances, make_sidecar
from xds.control import proxy as proxy_module
from xds.control.proxy import SERVED_TYPES, Proxy
from xds.control.sidecar_inputs import SidecarInputs
from xds.control.sidecar_resources import OwnResources, own_resources
from xds.envoy.resource import CLUSTER, ENDPOINT, LISTENER, SECRET
from xds.mesh import mesh
from xds.mesh.chains import DiscoveryChain, default_chain
from xds.mesh.config_entries import (
    ConfigEntries,
    EntryProblem,
    MeshSettings,
    ProxyMode,
    ProxySettings,
)
from xds.mesh.facts import (
    ExplicitUpstream,
    LeafKey,
    LeafRefused,
    ServiceInstances,
)
from xds.mesh.intentions import (
    Action,
    Intention,
)
from xds.mesh.mesh import Demand, Key, Kind
from xds.wire.envoy.config import endpoint_pb2 as endpoint
from xds.wire.envoy.config import listener_pb2


def test_a_transparent_sidecar_gets_a_cluster_for_each_virtual_ip_it_may_dial(bench: Bench) -> None:
    proxy = bench.connect("web")
    assert proxy.ready
    assert names_of(proxy, CLUSTER) == {"local_app", "original-destination", "vip:240.0.0.2", "vip:10.96.0.2"}
    assert names_of(proxy, ENDPOINT) == {"vip:240.0.0.2", "vip:10.96.0.2"}
    assert names_of(proxy, LISTENER) == {"outbound_listener:127.0.0.1:15001", "public_listener:10.0.0.1:20000"}
    assert names_of(proxy, SECRET) == {"leaf", "roots"}


def test_an_instance_that_is_dialed_directly_has_a_cluster_for_its_own_address(bench: Bench) -> None:
    proxy = bench.connect("web")
    apis = tuple(make_instance("api", number, "240.0.0.2") for number in (1, 2))
    bench.service("api", instances=ServiceInstances("api", apis))
    assert names_of(proxy, CLUSTER) & {"vip:10.0.0.1:8080", "vip:10.0.0.2:8080"} == set()
    listener = proxy.get(LISTENER, "outbound_listener:127.0.0.1:15001")

    entries = ConfigEntries(service_defaults={"api": ProxySettings(dialed_directly=True)})
    bench.plane.apply({mesh.CONFIG_ENTRIES: entries})
    assert names_of(proxy, CLUSTER) >= {"vip:240.0.0.2", "vip:10.0.0.1:8080", "vip:10.0.0.2:8080"}
    assert proxy.get(LISTENER, "outbound_listener:127.0.0.1:15001") != listener, "it has to list these addresses"
    there = {name: _endpoints(proxy, f"vip:{name}") for name in ("240.0.0.2", "10.0.0.1:8080", "10.0.0.2:8080")}
    assert there == {
        "240.0.0.2": ["10.0.0.1", "10.0.0.2"], "10.0.0.1:8080": ["10.0.0.1"], "10.0.0.2:8080": ["10.0.0.2"],
    }  # fmt: skip

    bench.plane.apply({mesh.CONFIG_ENTRIES: ConfigEntries()})
    assert names_of(proxy, CLUSTER) & {"vip:10.0.0.1:8080", "vip:10.0.0.2:8080"} == set()
    assert proxy.get(LISTENER, "outbound_listener:127.0.0.1:15001") == listener


def _endpoints(proxy: Proxy, name: str) -> list[str]:
    resource = proxy.get(ENDPOINT, name)
    assert resource is not None
    message = endpoint.ClusterLoadAssignment.FromString(resource.body)
    return [each.endpoint.address.socket_address.address for group in message.endpoints for each in group.lb_endpoints]


def test_only_services_that_a_connected_proxy_serves_or_may_call_are_read(bench: Bench) -> None:
    assert bench.demand == Demand()
    bench.intentions(Intention("web", "db", Action.DENY))
    bench.plane.apply({mesh.SERVICE_NAMES: frozenset({"web", "api", "db"})})
    first, second = bench.connect("web"), bench.connect("web", token="other")
    assert bench.demand == Demand(frozenset({"web", "api"}), frozenset({LeafKey("web", ""), LeafKey("web", "other")}))
    bench.plane.detach(first)
    assert bench.demand.leaves == {LeafKey("web", ""), LeafKey("web", "other")}
    bench.plane.let_go(first)
    assert bench.demand.leaves == {LeafKey("web", "other")}
    bench.plane.detach(second)
    bench.plane.let_go(second)
    assert bench.demand == Demand()


def test_a_proxy_that_reconnects_is_served_the_resources_built_for_it(bench: Bench) -> None:
    before = bench.connect("web")
    bench.plane.detach(before)
    again = bench.connect("web")
    assert again.ready
    assert again.get(LISTENER, OUTBOUND) is before.get(LISTENER, OUTBOUND)
    bench.plane.let_go(before)
    bench.service("db", "240.0.0.9")
    assert "vip:240.0.0.9" in names_of(again, CLUSTER)


def test_a_proxy_that_reconnects_is_sent_what_changed_meanwhile(bench: Bench) -> None:
    before = bench.connect("web")
    bench.plane.detach(before)
    bench.service(
        "web", instances=ServiceInstances("web", (make_instance("web", sidecar=make_sidecar("web", port=1)),))
    )
    assert "public_listener:10.0.0.1:1" in names_of(bench.connect("web"), LISTENER)


def test_a_proxy_that_reconnects_with_a_revoked_token_is_sent_nothing(bench: Bench) -> None:
    before = bench.connect("web")
    bench.plane.detach(before)
    bench.plane.apply({Key(Kind.LEAF, LeafKey("web", "")): LeafRefused("revoked")})
    again = bench.connect("web")
    assert not again.ready
    assert not names_of(again, SECRET)


def test_sidecars_of_one_service_share_the_same_resource_objects(bench: Bench) -> None:
    bench.service("web", instances=ServiceInstances("web", (make_instance("web", 1), make_instance("web", 2))))
    first, second = bench.connect("web", 1), bench.connect("web", 2)
    assert first.get(CLUSTER, "vip:240.0.0.2") is second.get(CLUSTER, "vip:240.0.0.2")


def test_problems_of_an_entry_are_reported_for_the_services_it_concerns(bench: Bench) -> None:
    proxy = bench.connect("web")
    own, other, everybody = (
        EntryProblem(kind, name, "Mode: expected 'direct'")
        for kind, name in (("service-defaults", "web"), ("service-defaults", "api"), ("proxy-defaults", "global"))
    )
    bench.plane.apply({mesh.CONFIG_ENTRIES: ConfigEntries(problems=(own, other, everybody))})
    assert proxy.problems() == {"web": [str(own), str(everybody)]}
    assert str(own) == "service-defaults/web: Mode: expected 'direct'"


def test_a_deleted_intention_removes_the_upstream(bench: Bench) -> None:
    proxy = bench.connect("web")
    bench.intentions(Intention("web", "api", Action.DENY))
    assert names_of(proxy, CLUSTER) == {"local_app", "original-destination"}


def test_the_destinations_listener_follows_its_intentions(bench: Bench) -> None:
    bench.leaf("api")
    api = bench.connect("api")
    before = api.get(LISTENER, "public_listener:10.0.0.1:20000")
    bench.intentions(Intention("web", "api", Action.DENY))
    assert api.get(LISTENER, "public_listener:10.0.0.1:20000") != before


def test_a_new_upstream_leaves_the_outbound_listener_alone(bench: Bench) -> None:
    proxy = bench.connect("web")
    before = proxy.get(LISTENER, "outbound_listener:127.0.0.1:15001")
    bench.service("db", "240.0.0.9")
    assert proxy.get(LISTENER, "outbound_listener:127.0.0.1:15001") is before
    bench.service("legacy", "10.96.0.9")
    assert proxy.get(LISTENER, "outbound_listener:127.0.0.1:15001") is not before


def test_an_unknown_sidecar_waits_and_is_served_when_it_is_registered(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.service("web", instances=ServiceInstances("web"))
    bench.leaf("web")
    proxy = bench.connect("web")
    for serial in ("02", "03"):
        bench.leaf("web", serial=serial)
    assert not proxy.ready
    assert [r.message for r in caplog.records].count(f"sidecar 'web-1-sidecar-proxy' waits: {proxy.blocker}") == 1
    assert "is registered" in str(proxy.blocker)
    bench.service("web")
    assert proxy.ready


def test_the_node_name_tells_equal_ids_apart() -> None:
    bench = Bench()
    here = make_instance("web", 1, sidecar=make_sidecar("web", 1, node="here", port=1111))
    there = make_instance("web", 1, sidecar=make_sidecar("web", 1, node="there", port=2222))
    bench.service("web", instances=ServiceInstances("web", (here, there)))
    bench.leaf("web")
    assert "public_listener:10.0.0.1:2222" in names_of(bench.connect("web", node_name="there"), LISTENER)
    assert not bench.connect("web", node_name="elsewhere").ready


def test_nothing_is_sent_without_a_leaf_and_the_refusal_is_reported(bench: Bench) -> None:
    proxy = bench.connect("web", token="weak")
    key = Key(Kind.LEAF, LeafKey("web", "weak"))
    bench.plane.apply({key: LeafRefused("Permission denied")})
    assert not proxy.ready
    assert "Permission denied" in str(proxy.blocker)
    bench.leaf("web", token="weak")
    assert proxy.ready


def test_a_revoked_token_opens_nothing_to_new_streams_and_blocks_no_other(bench: Bench) -> None:
    """The one that is connected keeps its certificate, and goes on following the intentions."""
    bench.leaf("api", token="t")
    connected = bench.connect("api", token="t")
    bench.plane.apply({Key(Kind.LEAF, LeafKey("api", "t")): LeafRefused("ACL not found")})
    assert not bench.connect("api", token="t").ready
    before = connected.get(LISTENER, "public_listener:10.0.0.1:20000")
    bench.intentions(Intention("web", "api", Action.DENY))
    assert connected.get(LISTENER, "public_listener:10.0.0.1:20000") != before
    assert connected.get(SECRET, "leaf") is not None


def test_a_first_response_waits_for_upstreams_but_not_forever(bench: Bench) -> None:
    bench.plane.apply({mesh.SERVICE_NAMES: frozenset({"web", "api", "slow"})})
    proxy = bench.connect("web")
    assert not proxy.ready
    assert proxy.incomplete
    assert proxy.unread() == ["slow"]
    proxy.stop_waiting()
    assert proxy.ready
    bench.service("slow", "240.0.0.7")
    assert "vip:240.0.0.7" in names_of(proxy, CLUSTER)


def test_of_two_services_with_one_address_the_earlier_one_keeps_it(bench: Bench) -> None:
    proxy = bench.connect("web")
    before = {name: proxy.get(CLUSTER, name) for name in names_of(proxy, CLUSTER)}
    late = ServiceInstances("late", (make_instance("late", 9, "240.0.0.2", "240.0.0.8"),))
    bench.service("late", instances=late)
    after = {name: proxy.get(CLUSTER, name) for name in names_of(proxy, CLUSTER)}
    assert after.keys() - before.keys() == {"vip:240.0.0.8"}
    assert all(after[name] is before[name] for name in before)
    assert proxy.problems() == {
        "api": ["virtual IP 240.0.0.2 is claimed by 'late' as well; this service keeps it"],
        "late": ["virtual IP 240.0.0.2 belongs to service 'api', to which it was assigned or which claimed it first"],
    }


def test_an_address_with_a_new_owner_leads_to_it(bench: Bench) -> None:
    proxy = bench.connect("web")
    before = proxy.get(CLUSTER, "vip:240.0.0.2")
    bench.service("late", instances=ServiceInstances("late", (make_instance("late", 9, "240.0.0.2"),)))
    bench.service("api", instances=make_instances("api", "10.96.0.2"))
    assert "vip:240.0.0.2" in names_of(proxy, CLUSTER)
    assert proxy.get(CLUSTER, "vip:240.0.0.2") != before
    bench.service("late", instances=ServiceInstances("late"))
    assert "vip:240.0.0.2" not in names_of(proxy, CLUSTER)


def test_a_chain_that_can_not_be_followed_sets_its_service_aside(bench: Bench) -> None:
    proxy = bench.connect("web")
    bench.plane.apply({Key(Kind.CHAIN, "api"): DiscoveryChain("api", refusal="it redirects")})
    assert names_of(proxy, CLUSTER) == {"local_app", "original-destination"}
    assert proxy.problems() == {"api": ["it redirects"]}


def test_an_explicit_upstream_has_a_listener_and_keeps_its_virtual_ip() -> None:
    bench = Bench()
    upstream = ExplicitUpstream("api", "", "127.0.0.1", 9191)
    instance = make_instance("web", 1, sidecar=make_sidecar("web", upstreams=(upstream,)))
    bench.service("web", instances=ServiceInstances("web", (instance,)))
    bench.service("api", "240.0.0.2")
    bench.leaf("web")
    proxy = bench.connect("web")
    assert {"api:127.0.0.1:9191", "outbound_listener:127.0.0.1:15001"} < names_of(proxy, LISTENER)
    assert {"api:127.0.0.1:9191", "vip:240.0.0.2"} < names_of(proxy, CLUSTER)


def test_a_direct_sidecar_has_no_outbound_listener() -> None:
    bench = Bench()
    direct = make_instance("web", 1, sidecar=make_sidecar("web", settings=ProxySettings()))
    bench.service("web", instances=ServiceInstances("web", (direct,)))
    bench.service("api", "240.0.0.2")
    bench.leaf("web")
    proxy = bench.connect("web")
    assert names_of(proxy, LISTENER) == {"public_listener:10.0.0.1:20000"}
    assert names_of(proxy, CLUSTER) == {"local_app"}
    bench.plane.apply({mesh.CONFIG_ENTRIES: ConfigEntries(ProxySettings(mode=ProxyMode.TRANSPARENT))})
    assert "vip:240.0.0.2" in names_of(proxy, CLUSTER)


def test_the_outbound_port_can_be_another() -> None:
    bench = Bench()
    settings = ProxySettings(mode=ProxyMode.TRANSPARENT, outbound_listener_port=15999)
    instance = make_instance("web", 1, sidecar=make_sidecar("web", settings=settings))
    bench.service("web", instances=ServiceInstances("web", (instance,)))
    bench.leaf("web")
    assert "outbound_listener:127.0.0.1:15999" in names_of(bench.connect("web"), LISTENER)


def test_an_explicit_upstream_without_instances_is_reported_and_served_empty() -> None:
    bench = Bench()
    upstream = ExplicitUpstream("ghost", "", "127.0.0.1", 9191)
    instance = make_instance("web", 1, sidecar=make_sidecar("web", upstreams=(upstream,)))
    bench.service("web", instances=ServiceInstances("web", (instance,)))
    bench.leaf("web")
    proxy = bench.connect("web")
    assert not proxy.ready, "its endpoints have not been read"
    bench.plane.apply(
        {Key(Kind.INSTANCES, "ghost"): ServiceInstances("ghost"), Key(Kind.CHAIN, "ghost"): default_chain("ghost")}
    )
    assert proxy.ready
    assert "ghost:127.0.0.1:9191" in names_of(proxy, LISTENER)
    assert "upstream 'ghost': has no instances" in proxy.problems()["web"][0]


def test_the_mesh_entry_can_set_destinations_only(bench: Bench) -> None:
    proxy = bench.connect("web")
    bench.plane.apply({mesh.CONFIG_ENTRIES: ConfigEntries(mesh=MeshSettings(destinations_only=True))})
    assert "original-destination" not in names_of(proxy, CLUSTER)
    resource = proxy.get(LISTENER, "outbound_listener:127.0.0.1:15001")
    assert resource is not None
    chains = listener_pb2.Listener.FromString(resource.body).filter_chains
    assert "passthrough" not in [chain.name for chain in chains]


def test_a_leaf_rotation_touches_the_secret_alone(bench: Bench) -> None:
    proxy = bench.connect("web")
    before = {(t, n): proxy.get(t, n) for t in SERVED_TYPES for n in names_of(proxy, t)}
    bench.leaf("web", serial="02")
    after = {(t, n): proxy.get(t, n) for t in SERVED_TYPES for n in names_of(proxy, t)}
    assert {key for key in after if after[key] != before[key]} == {(SECRET, "leaf")}


def test_a_service_that_can_not_be_encoded_affects_no_other(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else a registration may hold one day: the others still get the deny."""
    bench.leaf("api")
    proxies = [bench.connect("web"), bench.connect("api")]
    real = own_resources

    def fails_for_web(inputs: SidecarInputs, *more: Any) -> OwnResources:
        if inputs.sidecar.service == "web":
            raise ValueError("value out of range")
        return real(inputs, *more)

    monkeypatch.setattr(proxy_module, "own_resources", fails_for_web)
    before = proxies[1].get(LISTENER, "public_listener:10.0.0.1:20000")
    bench.intentions(Intention("*", "*", Action.DENY))
    assert proxies[1].get(LISTENER, "public_listener:10.0.0.1:20000") != before
    assert "value out of range" in str(proxies[0].blocker)
    assert not bench.connect("web").ready
    monkeypatch.undo()
    bench.intentions(Intention("web", "*", Action.DENY))
    assert proxies[0].blocker is None

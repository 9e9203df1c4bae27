"""Tests of who is served: authorization of streams, client certificates, registrations."""

from __future__ import annotations

import pytest

from tests.unit.control.bench import Bench, names_of
from tests.unit.facts import make_instance, make_leaf, make_sidecar
from xds.ads.codec import Node
from xds.control import connected
from xds.control.proxy import Client
from xds.envoy.resource import CLUSTER, LISTENER
from xds.mesh.facts import (
    Authorized,
    LeafKey,
    ServiceInstances,
    StreamRefused,
    StreamUndecided,
)
from xds.mesh.intentions import (
    Action,
    Intention,
)
from xds.mesh.mesh import Demand, Key, Kind


def test_each_stream_is_authorized_anew_and_ends_when_it_is_refused(bench: Bench) -> None:
    before = bench.connect("web")
    assert before.ready
    bench.plane.detach(before)
    bench.authorizes = False
    again = bench.connect("web")
    refusals: list[StreamRefused] = []
    again.refuse = refusals.append
    assert not again.ready
    bench.plane.apply({Key(Kind.STREAM, again.stream_key): StreamUndecided("no leader")})
    assert "not known yet: no leader" in str(again.blocker)
    bench.plane.apply({Key(Kind.STREAM, again.stream_key): Authorized()})
    assert again.ready
    bench.plane.apply({Key(Kind.STREAM, again.stream_key): None})
    assert not refusals, "only a definite answer ends a stream"
    bench.plane.apply({Key(Kind.STREAM, again.stream_key): StreamRefused("ACL not found")})
    assert refusals == [StreamRefused("ACL not found")]
    assert "ACL not found" in str(again.blocker)
    bench.plane.detach(again)
    assert bench.plane.refused() == [again]
    assert bench.demand.leaves == set()
    bench.plane.let_go(again)
    assert bench.plane.refused() == []


def test_some_of_the_refused_sidecars_are_shown(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connected, "REFUSED_KEPT", 3)
    bench.authorizes = False
    for number in range(5):
        proxy = bench.connect("web", number)
        bench.plane.apply({Key(Kind.STREAM, proxy.stream_key): StreamRefused("no")})
        bench.plane.detach(proxy)
    assert [proxy.client.node.id for proxy in bench.plane.refused()] == [f"web-{n}-sidecar-proxy" for n in (2, 3, 4)]


@pytest.mark.parametrize("token", ["", "t"])
def test_a_client_certificate_of_the_service_needs_no_token(bench: Bench, token: str) -> None:
    bench.authorizes = False
    node = Node("web-1-sidecar-proxy", "web", "", "1.40.0")
    own = frozenset({"spiffe://td.consul/ns/default/dc/dc1/svc/web"})
    proxy = bench.plane.attach(Client(node, token, "test", True, "s", own))
    key = LeafKey("web", "", certified=True)
    assert bench.demand.leaves == {key}
    assert not bench.streams, "nothing is asked about a token"
    bench.plane.apply({Key(Kind.LEAF, key): make_leaf("web", "01")})
    assert proxy.ready


@pytest.mark.parametrize(
    "identity",
    [
        "spiffe://td.consul/ns/default/dc/dc1/svc/api",
        "spiffe://td.consul/ns/default/dc/dc2/svc/web",
        "spiffe://other.consul/ns/default/dc/dc1/svc/web",
        "spiffe://td.consul/ns/default/dc/dc1/svc/WEB",
        "web",
    ],
)
def test_a_client_certificate_that_names_no_service_authenticates_nothing(bench: Bench, identity: str) -> None:
    bench.authorizes = False
    node = Node("web-1-sidecar-proxy", "web", "", "1.40.0")
    proxy = bench.plane.attach(Client(node, "", "test", True, "s", frozenset({identity})))
    refusals: list[StreamRefused] = []
    proxy.refuse = refusals.append
    assert bench.streams == {proxy.stream_key}
    bench.plane.apply({Key(Kind.STREAM, proxy.stream_key): StreamRefused("it presents no token", unauthenticated=True)})
    assert refusals[0].reason == f"its client certificate is for {identity}, and it presents no token"


def test_nothing_is_read_for_a_sidecar_that_may_not_have_its_key(bench: Bench) -> None:
    bench.connect("db", token="stolen")
    assert bench.demand == Demand(leaves=frozenset({LeafKey("db", "stolen")}))


def test_a_sidecar_of_another_service_does_not_belong_to_this_one() -> None:
    bench = Bench()
    theirs = make_instance("web", 1, sidecar=make_sidecar("db", service_id="web-1-sidecar-proxy"))
    bench.service("web", instances=ServiceInstances("web", (theirs,)))
    bench.leaf("web")
    assert not bench.connect("web").ready


def test_a_registration_that_disappears_is_still_watched(bench: Bench) -> None:
    proxy = bench.connect("web")
    bench.service("web", instances=ServiceInstances("web"))
    assert not proxy.registered
    assert "public_listener:10.0.0.1:20000" in names_of(proxy, LISTENER)
    bench.intentions(Intention("web", "api", Action.DENY))
    assert "vip:240.0.0.2" not in names_of(proxy, CLUSTER)


def test_an_address_that_can_not_be_bound_is_reported_and_the_others_are_served() -> None:
    bench = Bench()
    broken = make_sidecar("web", address="a.host.name")
    bench.service("web", instances=ServiceInstances("web", (make_instance("web", 1, sidecar=broken),)))
    bench.service("api", "240.0.0.2")
    bench.leaf("web")
    proxy = bench.connect("web")
    assert names_of(proxy, LISTENER) == {"outbound_listener:127.0.0.1:15001"}
    assert "can't bind 'a.host.name'" in proxy.problems()["web"][0]

"""From facts to what each proxy is meant to have."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.facts import ROOTS, make_instance, make_instances, make_leaf, make_sidecar
from xds.ads.codec import Node
from xds.ads.messages import Request
from xds.control import connected
from xds.control import proxy as proxy_module
from xds.control.plane import ControlPlane
from xds.control.proxy import SERVED_TYPES, Client, Proxy
from xds.control.sidecar_inputs import SidecarInputs
from xds.control.sidecar_resources import OwnResources, own_resources
from xds.envoy.names import address_of
from xds.envoy.resource import CLUSTER, ENDPOINT, LISTENER, ROUTE, SCOPED_ROUTE, SECRET
from xds.envoy.routes import BY_ADDRESS, CLUSTER_HEADER, by_address, pointed_to, pointer
from xds.mesh import mesh
from xds.mesh.chains import DiscoveryChain, Resolver, Target, default_chain
from xds.mesh.facts import (
    Authorized,
    ExplicitUpstream,
    LeafKey,
    LeafRefused,
    ServiceInstances,
    StreamKey,
    StreamRefused,
    StreamUndecided,
)
from xds.mesh.http import HeaderMatch, Match, RequestMatch, TextMatch
from xds.mesh.intentions import (
    Action,
    ClaimCheck,
    Intention,
    Permission,
    RemoteKeys,
    TokenCheck,
    TokenLocation,
    TokenProvider,
)
from xds.mesh.mesh import Demand, Key, Kind
from xds.mesh.settings import (
    AccessLogs,
    ClusterMode,
    ConfigEntries,
    Destination,
    EntryProblem,
    ExposedPath,
    Extension,
    MeshSettings,
    PassiveHealthCheck,
    ProxyMode,
    ProxySettings,
    TLSParameters,
    UpstreamSettings,
)
from xds.metrics import Metrics
from xds.policy.mesh_wide_settings import MeshWideSettings
from xds.sources import decode
from xds.wire.envoy.config import endpoint_pb2 as endpoint
from xds.wire.envoy.config import listener_pb2, route_pb2

STREAMS = itertools.count()


class Bench:
    """A control plane with a source that is the test."""

    def __init__(
        self,
        *,
        default_allow: bool = True,
        soon: Callable[[Callable[[], None]], object] = lambda then: then(),
        later: Callable[[Callable[[], None]], object] = lambda then: then(),
    ) -> None:
        self.demand = Demand()
        self.streams = frozenset[StreamKey]()
        self.authorizes = True
        """Whether every stream may be served."""
        self.plane = ControlPlane(MeshWideSettings(), self._demanded, Metrics(), soon, later)
        self.names: frozenset[str] = frozenset()
        self.plane.apply(
            {
                mesh.ROOTS: ROOTS,
                mesh.INTENTIONS: (),
                mesh.DEFAULT_ALLOW: default_allow,
                mesh.DATACENTER: "dc1",
                mesh.SERVICE_NAMES: frozenset(),
                mesh.CONFIG_ENTRIES: ConfigEntries(),
            }
        )

    def _demanded(self, demand: Demand) -> None:
        new, self.streams = demand.streams - self.streams, demand.streams
        self.demand = replace(demand, streams=frozenset())
        if self.authorizes:
            self.plane.apply({Key(Kind.STREAM, each): Authorized() for each in new})

    def service(
        self,
        name: str,
        *virtual_ips: str,
        instances: ServiceInstances | None = None,
        chain: DiscoveryChain | None = None,
    ) -> None:
        self.names |= {name}
        self.plane.apply({mesh.SERVICE_NAMES: self.names})
        self.plane.apply(
            {
                Key(Kind.INSTANCES, name): instances or make_instances(name, *virtual_ips),
                Key(Kind.CHAIN, name): chain or default_chain(name),
            }
        )

    def leaf(self, service: str, token: str = "", serial: str = "01") -> None:
        self.plane.apply({Key(Kind.LEAF, LeafKey(service, token)): make_leaf(service, serial)})

    def connect(self, service: str, number: int = 1, token: str = "", node_name: str = "", **more: Any) -> Proxy:
        node = Node(f"{service}-{number}-sidecar-proxy", service, node_name, "1.40.0", **more)
        return self.plane.attach(Client(node, token, "test", True, str(next(STREAMS))))

    def intentions(self, *intentions: Intention) -> None:
        self.plane.apply({mesh.INTENTIONS: intentions})


OUTBOUND = "outbound_listener:127.0.0.1:15001"


def names(proxy: Proxy, type_url: str) -> set[str]:
    return set(proxy.names(type_url))


@pytest.fixture
def bench() -> Bench:
    made = Bench()
    made.service("web", "240.0.0.1")
    made.service("api", "240.0.0.2", "10.96.0.2")
    made.leaf("web")
    return made


def everything_we_send() -> Iterator[tuple[str, bytes]]:
    """One of each kind of resource, with every option in use; for the conformance test."""
    bench = Bench(default_allow=False)
    upstream = ExplicitUpstream(
        "api", "", "127.0.0.1", 9191, settings=UpstreamSettings(connect_timeout_ms=1500, balance_connections=True)
    )
    web = make_sidecar(
        "web",
        upstreams=(upstream,),
        settings=ProxySettings(
            mode=ProxyMode.TRANSPARENT,
            max_inbound_connections=7,
            local_connect_timeout_ms=100,
            exposed_paths=(ExposedPath("/health", 21500, 8080), ExposedPath("/metrics", 21500, 9102)),
        ),
    )
    bench.service("web", instances=ServiceInstances("web", (make_instance("web", 1, "240.0.0.1", sidecar=web),)))
    gateway = make_instance("api", 2, service_id="gateway", sidecar=None, name="gateway", is_gateway=True)
    apis = (make_instance("api", 1, "240.0.0.2", "fd00::2"), gateway)
    bench.service("api", instances=ServiceInstances("api", apis))
    bench.service("shop", "240.0.0.3", instances=shop_instances(), chain=decode.chain("shop", SHOP_CHAIN))
    remote = RemoteKeys(
        "https://okta/keys", 100, 1000, True, 2, 10, 20, "LOGICAL_DNS", 300, ca_file="/etc/ssl/ca.pem"
    )  # fmt: skip
    locations = (TokenLocation("x-token", "Bearer "), TokenLocation(query_parameter="t"), TokenLocation(cookie="t"))
    bench.plane.apply(
        {
            mesh.CONFIG_ENTRIES: ConfigEntries(
                mesh=MeshSettings(
                    allow_permissive_mtls=True,
                    incoming_tls=TLSParameters("TLSv1_2", "TLSv1_3", ("ECDHE-ECDSA-AES128-GCM-SHA256",)),
                    escaped_slashes="REJECT_REQUEST",
                    headers_with_underscores="DROP_HEADER",
                ),
                service_defaults={
                    "shop": ProxySettings(
                        protocol="grpc",
                        balance_inbound_connections=True,
                        max_inbound_connections=7,
                        permissive_mtls=True,
                        tracing_json='{"random_sampling": {"value": 1}, "verbose": true}',
                        access_logs=AccessLogs(),
                        local_request_timeout_ms=500,
                        local_idle_timeout_ms=700,
                        max_request_headers_kb=90,
                    ),
                    "web": ProxySettings(
                        access_logs=AccessLogs("file", "/dev/null", text_format="%PROTOCOL%"),
                        upstream_defaults=UpstreamSettings(
                            max_connections=1,
                            max_pending_requests=2,
                            max_concurrent_requests=3,
                            passive_health_check=PassiveHealthCheck(1, 2, 3, 4, 5),
                        ),
                    ),
                },
                destinations={"api": Destination(("10.9.9.9", "api.example"), 443)},
                token_providers={
                    "okta": TokenProvider("okta", "https://okta", ("me",), remote_keys=remote, locations=locations),
                    "local": TokenProvider(
                        "local", keys="{}", payload_header="x-claims", pad_payload=True, cache_size=3
                    ),
                },
            )
        }
    )
    everything = RequestMatch(
        TextMatch(Match.REGEX, "/a.*"),
        (
            HeaderMatch("x", TextMatch(Match.CONTAINS, "y", True), True),
            HeaderMatch("z", TextMatch(Match.PRESENT)),
        ),
        methods=("GET",),
    )
    tokens = (TokenCheck("okta", (ClaimCheck(("role",), "admin"),)), TokenCheck("local"))
    bench.intentions(
        Intention("web", "api", Action.ALLOW),
        Intention("web", "shop", Action.PERMISSIONS, (Permission(True, everything, tokens),), tokens),
        Intention("*", "web", Action.ALLOW),
        Intention("db", "web", Action.DENY),
    )
    for service in ("web", "shop"):
        bench.leaf(service)
        proxy = bench.connect(service, dual_stack=True, dns_port=8653)
        assert proxy.ready
        assert not proxy.problems()
        for type_url in SERVED_TYPES:
            for name in proxy.names(type_url):
                resource = proxy.get(type_url, name)
                assert resource is not None
                yield type_url, resource.body
                if type_url == SCOPED_ROUTE and address_of(name) is not None:
                    for asked_for in filter(None, (pointer(resource), pointed_to(resource), by_address())):
                        yield asked_for.type_url, asked_for.body


def shop_instances() -> ServiceInstances:
    return ServiceInstances("shop", (make_instance("shop", 1, "240.0.0.3", meta=(("version", "v1"),)),))


HEADERS = {"Add": {"a": "1"}, "Set": {"b": "2"}, "Remove": ["c"]}
SHOP_CHAIN = {
    "Chain": {
        "ServiceName": "shop",
        "Datacenter": "dc1",
        "Protocol": "grpc",
        "StartNode": "router:shop",
        "Nodes": {
            "router:shop": {
                "Type": "router",
                "Name": "shop.default.default",
                "Routes": [
                    {
                        "NextNode": "splitter:shop",
                        "Definition": {
                            "Match": {
                                "HTTP": {
                                    "PathPrefix": "/v1",
                                    "Header": [{"Name": "x", "Regex": "y"}],
                                    "QueryParam": [{"Name": "q", "Exact": "1"}, {"Name": "r", "Present": True}],
                                    "Methods": ["GET"],
                                }
                            },
                            "Destination": {
                                "PrefixRewrite": "/",
                                "RequestTimeout": "3s",
                                "IdleTimeout": "4s",
                                "NumRetries": 5,
                                "RetryOn": ["reset"],
                                "RetryOnStatusCodes": [503],
                                "RequestHeaders": HEADERS,
                                "ResponseHeaders": HEADERS,
                            },
                        },
                    },
                    {"NextNode": "resolver:shop", "Definition": {"Match": {"HTTP": {"PathExact": "/"}}}},
                    {"NextNode": "resolver:shop", "Definition": {"Match": {"HTTP": {"PathRegex": "/.*"}}}},
                ],
            },
            "splitter:shop": {
                "Type": "splitter",
                "Name": "shop.default.default",
                "LoadBalancer": {
                    "Policy": "ring_hash",
                    "HashPolicies": [
                        {"SourceIP": True, "Terminal": True},
                        {"Field": "header", "FieldValue": "x"},
                        {"Field": "query_parameter", "FieldValue": "x"},
                        {"Field": "cookie", "FieldValue": "x", "CookieConfig": {"TTL": "1h", "Path": "/"}},
                    ],
                },
                "Splits": [
                    {
                        "NextNode": "resolver:shop",
                        "Weight": 33.33,
                        "Definition": {"RequestHeaders": HEADERS, "ResponseHeaders": HEADERS},
                    },
                    {"NextNode": "resolver:v1", "Weight": 66.67, "Definition": {}},
                ],
            },
            "resolver:shop": {
                "Type": "resolver",
                "Name": "shop.default.default.dc1",
                "LoadBalancer": {"Policy": "least_request", "LeastRequestConfig": {"ChoiceCount": 3}},
                "Resolver": {"Target": "shop", "RequestTimeout": 2_000_000_000, "Failover": {"Targets": ["v1"]}},
            },
            "resolver:v1": {
                "Type": "resolver",
                "Name": "v1.shop.default.default.dc1",
                "LoadBalancer": {
                    "Policy": "ring_hash",
                    "RingHashConfig": {"MinimumRingSize": 8, "MaximumRingSize": 16},
                },
                "Resolver": {"Target": "v1"},
            },
        },
        "Targets": {
            "shop": {"Service": "shop", "Datacenter": "dc1"},
            "v1": {
                "Service": "shop",
                "ServiceSubset": "v1",
                "Datacenter": "dc1",
                "ConnectTimeout": "2s",
                "Subset": {"Filter": "Service.Meta.version == v1", "OnlyPassing": True},
            },
        },
    }
}


def test_a_transparent_sidecar_gets_a_cluster_for_each_virtual_ip_it_may_dial(bench: Bench) -> None:
    proxy = bench.connect("web")
    assert proxy.ready
    assert names(proxy, CLUSTER) == {"local_app", "original-destination", "vip:240.0.0.2", "vip:10.96.0.2"}
    assert names(proxy, ENDPOINT) == {"vip:240.0.0.2", "vip:10.96.0.2"}
    assert names(proxy, LISTENER) == {"outbound_listener:127.0.0.1:15001", "public_listener:10.0.0.1:20000"}
    assert names(proxy, SECRET) == {"leaf", "roots"}


def test_an_instance_that_is_dialed_directly_has_a_cluster_for_its_own_address(bench: Bench) -> None:
    proxy = bench.connect("web")
    apis = tuple(make_instance("api", number, "240.0.0.2") for number in (1, 2))
    bench.service("api", instances=ServiceInstances("api", apis))
    assert names(proxy, CLUSTER) & {"vip:10.0.0.1:8080", "vip:10.0.0.2:8080"} == set()
    listener = proxy.get(LISTENER, "outbound_listener:127.0.0.1:15001")

    entries = ConfigEntries(service_defaults={"api": ProxySettings(dialed_directly=True)})
    bench.plane.apply({mesh.CONFIG_ENTRIES: entries})
    assert names(proxy, CLUSTER) >= {"vip:240.0.0.2", "vip:10.0.0.1:8080", "vip:10.0.0.2:8080"}
    assert proxy.get(LISTENER, "outbound_listener:127.0.0.1:15001") != listener, "it has to list these addresses"
    there = {name: _endpoints(proxy, f"vip:{name}") for name in ("240.0.0.2", "10.0.0.1:8080", "10.0.0.2:8080")}
    assert there == {
        "240.0.0.2": ["10.0.0.1", "10.0.0.2"], "10.0.0.1:8080": ["10.0.0.1"], "10.0.0.2:8080": ["10.0.0.2"],
    }  # fmt: skip

    bench.plane.apply({mesh.CONFIG_ENTRIES: ConfigEntries()})
    assert names(proxy, CLUSTER) & {"vip:10.0.0.1:8080", "vip:10.0.0.2:8080"} == set()
    assert proxy.get(LISTENER, "outbound_listener:127.0.0.1:15001") == listener


def _endpoints(proxy: Proxy, name: str) -> list[str]:
    resource = proxy.get(ENDPOINT, name)
    assert resource is not None
    message = endpoint.ClusterLoadAssignment.FromString(resource.body)
    return [each.endpoint.address.socket_address.address for group in message.endpoints for each in group.lb_endpoints]


def test_only_what_a_connected_proxy_serves_or_may_call_is_read(bench: Bench) -> None:
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


def test_a_proxy_that_comes_again_is_served_what_was_made_for_it(bench: Bench) -> None:
    before = bench.connect("web")
    bench.plane.detach(before)
    again = bench.connect("web")
    assert again.ready
    assert again.get(LISTENER, OUTBOUND) is before.get(LISTENER, OUTBOUND)
    bench.plane.let_go(before)
    bench.service("db", "240.0.0.9")
    assert "vip:240.0.0.9" in names(again, CLUSTER)


def test_a_proxy_that_comes_again_gets_what_changed_meanwhile(bench: Bench) -> None:
    before = bench.connect("web")
    bench.plane.detach(before)
    bench.service(
        "web", instances=ServiceInstances("web", (make_instance("web", sidecar=make_sidecar("web", port=1)),))
    )
    assert "public_listener:10.0.0.1:1" in names(bench.connect("web"), LISTENER)


def test_a_proxy_that_comes_again_with_a_token_that_was_revoked_gets_nothing(bench: Bench) -> None:
    before = bench.connect("web")
    bench.plane.detach(before)
    bench.plane.apply({Key(Kind.LEAF, LeafKey("web", "")): LeafRefused("revoked")})
    again = bench.connect("web")
    assert not again.ready
    assert not names(again, SECRET)


def test_siblings_share_the_very_same_resources(bench: Bench) -> None:
    bench.service("web", instances=ServiceInstances("web", (make_instance("web", 1), make_instance("web", 2))))
    first, second = bench.connect("web", 1), bench.connect("web", 2)
    assert first.get(CLUSTER, "vip:240.0.0.2") is second.get(CLUSTER, "vip:240.0.0.2")


def test_what_can_not_be_followed_of_an_entry_is_told_of_whom_it_concerns(bench: Bench) -> None:
    proxy = bench.connect("web")
    own, other, everybody = (
        EntryProblem(kind, name, "Mode: expected 'direct'")
        for kind, name in (("service-defaults", "web"), ("service-defaults", "api"), ("proxy-defaults", "global"))
    )
    bench.plane.apply({mesh.CONFIG_ENTRIES: ConfigEntries(problems=(own, other, everybody))})
    assert proxy.problems() == {"web": [str(own), str(everybody)]}
    assert str(own) == "service-defaults/web: Mode: expected 'direct'"


def test_an_intention_that_goes_takes_the_upstream_with_it(bench: Bench) -> None:
    proxy = bench.connect("web")
    bench.intentions(Intention("web", "api", Action.DENY))
    assert names(proxy, CLUSTER) == {"local_app", "original-destination"}


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
    assert "public_listener:10.0.0.1:2222" in names(bench.connect("web", node_name="there"), LISTENER)
    assert not bench.connect("web", node_name="elsewhere").ready


def test_nothing_is_sent_without_a_leaf_and_the_refusal_is_told(bench: Bench) -> None:
    proxy = bench.connect("web", token="weak")
    key = Key(Kind.LEAF, LeafKey("web", "weak"))
    bench.plane.apply({key: LeafRefused("Permission denied")})
    assert not proxy.ready
    assert "Permission denied" in str(proxy.blocker)
    bench.leaf("web", token="weak")
    assert proxy.ready


def test_a_revoked_token_opens_nothing_to_newcomers_and_freezes_nobody(bench: Bench) -> None:
    """The one that is connected keeps its certificate, and goes on following the intentions."""
    bench.leaf("api", token="t")
    connected = bench.connect("api", token="t")
    bench.plane.apply({Key(Kind.LEAF, LeafKey("api", "t")): LeafRefused("ACL not found")})
    assert not bench.connect("api", token="t").ready
    before = connected.get(LISTENER, "public_listener:10.0.0.1:20000")
    bench.intentions(Intention("web", "api", Action.DENY))
    assert connected.get(LISTENER, "public_listener:10.0.0.1:20000") != before
    assert connected.get(SECRET, "leaf") is not None


def test_a_first_answer_waits_for_upstreams_but_not_for_ever(bench: Bench) -> None:
    bench.plane.apply({mesh.SERVICE_NAMES: frozenset({"web", "api", "slow"})})
    proxy = bench.connect("web")
    assert not proxy.ready
    assert proxy.incomplete
    assert proxy.unread() == ["slow"]
    proxy.stop_waiting()
    assert proxy.ready
    bench.service("slow", "240.0.0.7")
    assert "vip:240.0.0.7" in names(proxy, CLUSTER)


def test_of_two_services_on_one_address_the_earlier_keeps_it_and_nothing_else_changes(bench: Bench) -> None:
    proxy = bench.connect("web")
    before = {name: proxy.get(CLUSTER, name) for name in names(proxy, CLUSTER)}
    late = ServiceInstances("late", (make_instance("late", 9, "240.0.0.2", "240.0.0.8"),))
    bench.service("late", instances=late)
    after = {name: proxy.get(CLUSTER, name) for name in names(proxy, CLUSTER)}
    assert after.keys() - before.keys() == {"vip:240.0.0.8"}
    assert all(after[name] is before[name] for name in before)
    assert proxy.problems() == {
        "api": ["virtual IP 240.0.0.2 is claimed by 'late' as well; this service keeps it"],
        "late": ["virtual IP 240.0.0.2 belongs to service 'api', to which it was assigned or which claimed it first"],
    }


def test_an_address_that_changes_hands_points_at_its_new_owner(bench: Bench) -> None:
    proxy = bench.connect("web")
    before = proxy.get(CLUSTER, "vip:240.0.0.2")
    bench.service("late", instances=ServiceInstances("late", (make_instance("late", 9, "240.0.0.2"),)))
    bench.service("api", instances=make_instances("api", "10.96.0.2"))
    assert "vip:240.0.0.2" in names(proxy, CLUSTER)
    assert proxy.get(CLUSTER, "vip:240.0.0.2") != before
    bench.service("late", instances=ServiceInstances("late"))
    assert "vip:240.0.0.2" not in names(proxy, CLUSTER)


def test_a_chain_that_can_not_be_followed_sets_its_service_aside(bench: Bench) -> None:
    proxy = bench.connect("web")
    bench.plane.apply({Key(Kind.CHAIN, "api"): DiscoveryChain("api", refusal="it redirects")})
    assert names(proxy, CLUSTER) == {"local_app", "original-destination"}
    assert proxy.problems() == {"api": ["it redirects"]}


def test_an_explicit_upstream_has_a_listener_and_keeps_its_virtual_ip() -> None:
    bench = Bench()
    upstream = ExplicitUpstream("api", "", "127.0.0.1", 9191)
    instance = make_instance("web", 1, sidecar=make_sidecar("web", upstreams=(upstream,)))
    bench.service("web", instances=ServiceInstances("web", (instance,)))
    bench.service("api", "240.0.0.2")
    bench.leaf("web")
    proxy = bench.connect("web")
    assert {"api:127.0.0.1:9191", "outbound_listener:127.0.0.1:15001"} < names(proxy, LISTENER)
    assert {"api:127.0.0.1:9191", "vip:240.0.0.2"} < names(proxy, CLUSTER)


def test_a_direct_sidecar_has_no_outbound_listener() -> None:
    bench = Bench()
    direct = make_instance("web", 1, sidecar=make_sidecar("web", settings=ProxySettings()))
    bench.service("web", instances=ServiceInstances("web", (direct,)))
    bench.service("api", "240.0.0.2")
    bench.leaf("web")
    proxy = bench.connect("web")
    assert names(proxy, LISTENER) == {"public_listener:10.0.0.1:20000"}
    assert names(proxy, CLUSTER) == {"local_app"}
    bench.plane.apply({mesh.CONFIG_ENTRIES: ConfigEntries(ProxySettings(mode=ProxyMode.TRANSPARENT))})
    assert "vip:240.0.0.2" in names(proxy, CLUSTER)


def test_the_outbound_port_can_be_another() -> None:
    bench = Bench()
    settings = ProxySettings(mode=ProxyMode.TRANSPARENT, outbound_listener_port=15999)
    instance = make_instance("web", 1, sidecar=make_sidecar("web", settings=settings))
    bench.service("web", instances=ServiceInstances("web", (instance,)))
    bench.leaf("web")
    assert "outbound_listener:127.0.0.1:15999" in names(bench.connect("web"), LISTENER)


def test_an_explicit_upstream_without_instances_is_said_and_served_empty() -> None:
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
    assert "ghost:127.0.0.1:9191" in names(proxy, LISTENER)
    assert "upstream 'ghost': has no instances" in proxy.problems()["web"][0]


def test_destinations_only_comes_from_the_mesh_entry_too(bench: Bench) -> None:
    proxy = bench.connect("web")
    bench.plane.apply({mesh.CONFIG_ENTRIES: ConfigEntries(mesh=MeshSettings(destinations_only=True))})
    assert "original-destination" not in names(proxy, CLUSTER)
    resource = proxy.get(LISTENER, "outbound_listener:127.0.0.1:15001")
    assert resource is not None
    chains = listener_pb2.Listener.FromString(resource.body).filter_chains
    assert "passthrough" not in [chain.name for chain in chains]


def test_a_leaf_rotation_touches_the_secret_alone(bench: Bench) -> None:
    proxy = bench.connect("web")
    before = {(t, n): proxy.get(t, n) for t in SERVED_TYPES for n in names(proxy, t)}
    bench.leaf("web", serial="02")
    after = {(t, n): proxy.get(t, n) for t in SERVED_TYPES for n in names(proxy, t)}
    assert {key for key in after if after[key] != before[key]} == {(SECRET, "leaf")}


def test_what_can_not_be_encoded_is_its_own_problem_and_nobody_elses(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_of_those_that_were_refused_some_are_shown(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_a_client_certificate_of_something_else_counts_for_nothing(bench: Bench, identity: str) -> None:
    bench.authorizes = False
    node = Node("web-1-sidecar-proxy", "web", "", "1.40.0")
    proxy = bench.plane.attach(Client(node, "", "test", True, "s", frozenset({identity})))
    refusals: list[StreamRefused] = []
    proxy.refuse = refusals.append
    assert bench.streams == {proxy.stream_key}
    bench.plane.apply({Key(Kind.STREAM, proxy.stream_key): StreamRefused("it presents no token", unauthenticated=True)})
    assert refusals[0].reason == f"its client certificate is for {identity}, and it presents no token"


def test_nothing_is_read_for_one_that_may_not_have_its_key(bench: Bench) -> None:
    bench.connect("db", token="stolen")
    assert bench.demand == Demand(leaves=frozenset({LeafKey("db", "stolen")}))


def test_a_sidecar_of_another_service_is_none_of_this_one() -> None:
    bench = Bench()
    theirs = make_instance("web", 1, sidecar=make_sidecar("db", service_id="web-1-sidecar-proxy"))
    bench.service("web", instances=ServiceInstances("web", (theirs,)))
    bench.leaf("web")
    assert not bench.connect("web").ready


def test_a_registration_that_disappears_goes_on_being_followed(bench: Bench) -> None:
    proxy = bench.connect("web")
    bench.service("web", instances=ServiceInstances("web"))
    assert not proxy.registered
    assert "public_listener:10.0.0.1:20000" in names(proxy, LISTENER)
    bench.intentions(Intention("web", "api", Action.DENY))
    assert "vip:240.0.0.2" not in names(proxy, CLUSTER)


def test_what_can_not_be_bound_is_said_and_the_rest_is_served() -> None:
    bench = Bench()
    broken = make_sidecar("web", address="a.host.name")
    bench.service("web", instances=ServiceInstances("web", (make_instance("web", 1, sidecar=broken),)))
    bench.service("api", "240.0.0.2")
    bench.leaf("web")
    proxy = bench.connect("web")
    assert names(proxy, LISTENER) == {"outbound_listener:127.0.0.1:15001"}
    assert "can't bind 'a.host.name'" in proxy.problems()["web"][0]


# -- what is wrong with one thing is nobody else's problem ------------------------------------------------------------


def web_with(**proxy: Any) -> ServiceInstances:
    return ServiceInstances("web", (make_instance("web", 1, sidecar=make_sidecar("web", **proxy)),))


def test_a_chain_that_can_not_be_followed_does_not_stop_who_names_it_as_an_upstream() -> None:
    bench = Bench()
    bench.service("web", instances=web_with(upstreams=(ExplicitUpstream("api", "", "127.0.0.1", 9191),)))
    answer = {
        "Chain": {
            "Datacenter": "dc1",
            "StartNode": "r",
            "Nodes": {"r": {"Type": "resolver", "Name": "api.default.default.dc1", "Resolver": {"Target": "t"}}},
            "Targets": {
                "t": {
                    "Service": "api",
                    "Datacenter": "dc1",
                    "ServiceSubset": "v1",
                    "Subset": {"Filter": "Service.EnableTagOverride == true"},
                }
            },
        }
    }
    bench.service("api", "240.0.0.2", chain=decode.chain("api", answer))
    bench.leaf("web")
    proxy = bench.connect("web")
    assert proxy.ready
    assert "not known of an instance" in proxy.problems()["web"][0]


def test_a_bad_override_of_an_upstream_leaves_the_intentions_followed() -> None:
    bench = Bench()
    settings = UpstreamSettings(cluster_json='{"nope": 1}', listener_json="{")
    upstream = ExplicitUpstream("api", "", "127.0.0.1", 9191, settings=settings)
    bench.service("web", instances=web_with(upstreams=(upstream,)))
    bench.service("api", "240.0.0.2")
    bench.leaf("web")
    proxy = bench.connect("web")
    assert {"api:127.0.0.1:9191"} <= names(proxy, LISTENER) & names(proxy, CLUSTER)
    said = " ".join(proxy.problems()["web"])
    assert "the generated listener is used" in said
    assert "the generated cluster is used" in said
    before = proxy.get(LISTENER, "public_listener:10.0.0.1:20000")
    bench.intentions(Intention("*", "web", Action.DENY))
    assert proxy.get(LISTENER, "public_listener:10.0.0.1:20000") != before


def test_an_exposed_path_that_can_not_be_does_not_stop_anything() -> None:
    bench = Bench()
    settings = ProxySettings(exposed_paths=(ExposedPath("/health", 21500, 8080),))
    proxy = {"local_service_socket_path": "/run/x", "local_service_address": "localhost", "settings": settings}
    bench.service("web", instances=web_with(**proxy))
    bench.leaf("web")
    connected = bench.connect("web")
    assert names(connected, LISTENER) == {"public_listener:10.0.0.1:20000"}
    assert "'localhost' is no IP address" in connected.problems()["web"][0]


def test_a_subset_and_a_service_of_its_name_have_clusters_of_their_own() -> None:
    bench = Bench()
    http = ConfigEntries(proxy_defaults=ProxySettings(protocol="http", mode=ProxyMode.TRANSPARENT))
    bench.plane.apply({mesh.CONFIG_ENTRIES: http})
    bench.service("web", instances=web_with())
    slow = {"r": Resolver("t", request_timeout_ms=7)}
    subset = {"t": Target("api", subset="v1", filter="Service.ID != x")}
    bench.service("api", "240.0.0.2", chain=DiscoveryChain("api", "http", "r", slow, subset))
    bench.service("v1.api", "240.0.0.3", chain=DiscoveryChain("v1.api", "http", "r", slow, {"t": Target("v1.api")}))
    bench.leaf("web")
    made = names(bench.connect("web"), CLUSTER)
    assert {"api/v1.api.default.dc1.internal.td.consul", "v1.api.default.dc1.internal.td.consul"} <= made


def test_instances_on_one_host_that_are_dialed_directly_are_told_apart_by_port() -> None:
    bench = Bench()
    directly = ProxySettings(mode=ProxyMode.TRANSPARENT, dialed_directly=True)
    apis = tuple(
        make_instance(
            "api", number, address="FD00::7", port=20000 + number,
            sidecar=make_sidecar("api", number, local_service_port=8080 + number, settings=directly),
        )
        for number in (1, 2)
    )  # fmt: skip
    bench.service("web", instances=web_with())
    bench.service("api", instances=ServiceInstances("api", apis))
    bench.leaf("web")
    proxy = bench.connect("web")
    ports = {}
    for number in (1, 2):
        resource = proxy.get(ENDPOINT, f"vip:[fd00::7]:{8080 + number}")
        assert resource is not None
        message = endpoint.ClusterLoadAssignment.FromString(resource.body)
        [only] = message.endpoints[0].lb_endpoints
        ports[number] = only.endpoint.address.socket_address.port_value
    assert ports == {1: 20001, 2: 20002}


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
def test_an_address_that_moves_takes_nothing_of_its_old_owner_along(bench: Bench, before: str, first: str) -> None:
    loses = {Key(Kind.INSTANCES, "old"): make_instances("old")}
    gains = {Key(Kind.INSTANCES, "page"): make_instances("page", "240.0.0.9")}
    bench.service("old", "240.0.0.9", chain=default_chain("old", before))
    bench.service("page", chain=SLOW)
    proxy = bench.connect("web")
    for batch in {"loses": (loses, gains), "gains": (gains, loses), "both": ({**gains, **loses},)}[first]:
        bench.plane.apply(batch)
    assert proxy.get(SCOPED_ROUTE, "vip:240.0.0.9") is not None
    for type_url in (CLUSTER, ENDPOINT):
        assert not {"vip:240.0.0.9", "http:vip:240.0.0.9"} & names(proxy, type_url)


def test_while_a_protocol_changes_each_kind_has_its_own_cluster(bench: Bench) -> None:
    proxy = bench.connect("web")
    for protocol, there in (("tcp", "vip:240.0.0.9"), ("http", "http:vip:240.0.0.9")):
        bench.service("page", "240.0.0.9", chain=default_chain("page", protocol))
        assert {name for name in names(proxy, CLUSTER) if "240.0.0.9" in name} == {there}


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


def test_on_demand_upstreams_that_divide_no_requests_share_their_routes(bench: Bench) -> None:
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


def test_on_demand_routes_that_were_asked_for_follow_their_chain(bench: Bench) -> None:
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

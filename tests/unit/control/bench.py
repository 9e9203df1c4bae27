"""A control plane whose source is the test, and a mesh that has every kind of resource."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from tests.unit.facts import ROOTS, make_instance, make_instances, make_leaf, make_sidecar
from xds.ads.codec import Node
from xds.control.plane import ControlPlane
from xds.control.proxy import SERVED_TYPES, Client, Proxy
from xds.envoy.names import address_of
from xds.envoy.resource import SCOPED_ROUTE
from xds.envoy.routes import by_address, pointed_to, pointer
from xds.mesh import mesh
from xds.mesh.chains import DiscoveryChain, default_chain
from xds.mesh.config_entries import (
    AccessLogs,
    ConfigEntries,
    Destination,
    ExposedPath,
    MeshSettings,
    PassiveHealthCheck,
    ProxyMode,
    ProxySettings,
    TLSParameters,
    UpstreamSettings,
)
from xds.mesh.facts import (
    Authorized,
    ExplicitUpstream,
    LeafKey,
    ServiceInstances,
    StreamKey,
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
from xds.metrics import Metrics
from xds.policy.mesh_wide_settings import MeshWideSettings
from xds.sources import decode

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


def names_of(proxy: Proxy, type_url: str) -> set[str]:
    return set(proxy.names(type_url))


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

"""Tests that what is wrong with one thing affects nothing else."""

from __future__ import annotations

from typing import Any

from tests.unit.control.bench import Bench, names_of
from tests.unit.facts import make_instance, make_sidecar
from xds.envoy.resource import CLUSTER, ENDPOINT, LISTENER
from xds.mesh import mesh
from xds.mesh.chains import DiscoveryChain, Resolver, Target
from xds.mesh.config_entries import (
    ConfigEntries,
    ExposedPath,
    ProxyMode,
    ProxySettings,
    UpstreamSettings,
)
from xds.mesh.facts import (
    ExplicitUpstream,
    ServiceInstances,
)
from xds.mesh.intentions import (
    Action,
    Intention,
)
from xds.sources import decode
from xds.wire.envoy.config import endpoint_pb2 as endpoint


def web_with(**proxy: Any) -> ServiceInstances:
    return ServiceInstances("web", (make_instance("web", 1, sidecar=make_sidecar("web", **proxy)),))


def test_a_chain_that_can_not_be_followed_leaves_sidecars_that_name_it_as_an_upstream_served() -> None:
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
    assert {"api:127.0.0.1:9191"} <= names_of(proxy, LISTENER) & names_of(proxy, CLUSTER)
    said = " ".join(proxy.problems()["web"])
    assert "the generated listener is used" in said
    assert "the generated cluster is used" in said
    before = proxy.get(LISTENER, "public_listener:10.0.0.1:20000")
    bench.intentions(Intention("*", "web", Action.DENY))
    assert proxy.get(LISTENER, "public_listener:10.0.0.1:20000") != before


def test_an_invalid_exposed_path_affects_nothing_else() -> None:
    bench = Bench()
    settings = ProxySettings(exposed_paths=(ExposedPath("/health", 21500, 8080),))
    proxy = {"local_service_socket_path": "/run/x", "local_service_address": "localhost", "settings": settings}
    bench.service("web", instances=web_with(**proxy))
    bench.leaf("web")
    connected = bench.connect("web")
    assert names_of(connected, LISTENER) == {"public_listener:10.0.0.1:20000"}
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
    made = names_of(bench.connect("web"), CLUSTER)
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

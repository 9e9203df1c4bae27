"""Exposed paths: one listener a port, exactly the named paths, the right port behind each."""

from __future__ import annotations

import ipaddress

from tests.unit.facts import make_sidecar
from xds.envoy.exposed import exposed_clusters, exposed_listeners
from xds.mesh.config_entries import ExposedPath, ProxySettings
from xds.mesh.facts import ExplicitUpstream
from xds.policy.listeners import exposable
from xds.wire.envoy.extensions import http_connection_manager_pb2 as manager


def test_paths_share_a_listener_by_port_and_lead_where_they_should() -> None:
    paths = (
        ExposedPath("/health", 21500, 8080),
        ExposedPath("/metrics", 21500, 9102),
        ExposedPath("/met-rics", 21501, 9102),
        ExposedPath("/grpc.health.v1.Health/Check", 21501, 8080, http2=True),
    )
    sidecar, settings = make_sidecar("web"), ProxySettings()
    assert {r.name for r in exposed_clusters(sidecar, settings, paths)} == {
        "exposed_cluster_9102", "exposed_cluster_8080_http2",
    }  # fmt: skip
    made = {message.name: (message, named) for message, named in exposed_listeners(sidecar, settings, paths, ())}
    assert made.keys() == {"exposed_paths:10.0.0.1:21500", "exposed_paths:10.0.0.1:21501"}
    message, named = made["exposed_paths:10.0.0.1:21500"]
    assert named == ("exposed_cluster_9102", "local_app")
    config = manager.HttpConnectionManager()
    message.filter_chains[0].filters[0].typed_config.Unpack(config)
    routes = {r.match.path: r.route.cluster for r in config.route_config.virtual_hosts[0].routes}
    assert routes == {"/health": "local_app", "/metrics": "exposed_cluster_9102"}


def test_sources_of_probes_can_be_restricted() -> None:
    sources = [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8")]
    paths = [ExposedPath("/health", 21500, 8080)]
    [(message, _)] = exposed_listeners(make_sidecar("web"), ProxySettings(), paths, sources)
    ranges = message.filter_chains[0].filter_chain_match.source_prefix_ranges
    assert [f"{each.address_prefix}/{each.prefix_len.value}" for each in ranges] == ["10.0.0.0/8", "fd00::/8"]


def test_an_application_on_a_unix_socket_has_its_paths_on_a_port() -> None:
    sidecar = make_sidecar("web", local_service_socket_path="/run/app.sock")
    made = exposed_clusters(sidecar, ProxySettings(), [ExposedPath("/health", 21500, 8080)])
    assert [each.name for each in made] == ["exposed_cluster_8080"]


def test_a_port_that_another_listener_needs_is_not_exposed() -> None:
    good = ExposedPath("/health", 21500, 8080)
    paths = (
        ExposedPath("/a", 20000, 8080), ExposedPath("/b", 15001, 8080), ExposedPath("/c", 9191, 8080),
        good, ExposedPath("/health", 21500, 9999), good, ExposedPath("/d", 8080, 8080), ExposedPath("/e", 9999, 8080),
    )  # fmt: skip
    sidecar = make_sidecar("web", upstreams=(ExplicitUpstream("api", "", "127.0.0.1", 9191),))
    exposed, problems = exposable(sidecar, ProxySettings(exposed_paths=paths))
    assert exposed == [good]
    owners = ("the public listener", "the outbound listener", "the upstream 'api'", "exposed twice")
    for said, words in zip(problems, (*owners, "the application", "the application"), strict=True):
        assert words in said

"""Exposed paths: one listener a port, exactly the named paths, the right port behind each."""

from __future__ import annotations

from tests.unit.facts import make_sidecar
from xds.envoy.exposed import exposable, exposed_resources
from xds.envoy.resource import CLUSTER, LISTENER
from xds.mesh.facts import ExplicitUpstream
from xds.mesh.settings import ExposedPath, ProxySettings
from xds.wire.envoy.config import listener_pb2 as listener
from xds.wire.envoy.extensions import http_connection_manager_pb2 as manager


def test_paths_share_a_listener_by_port_and_lead_where_they_should() -> None:
    paths = (
        ExposedPath("/health", 21500, 8080),
        ExposedPath("/metrics", 21500, 9102),
        ExposedPath("/met-rics", 21501, 9102),
    )
    made = {r.name: r for r in exposed_resources(make_sidecar("web"), ProxySettings(), paths)}
    listeners = {name: resource for name, resource in made.items() if resource.type_url == LISTENER}
    assert listeners.keys() == {"exposed_paths:10.0.0.1:21500", "exposed_paths:10.0.0.1:21501"}
    assert {name for name, r in made.items() if r.type_url == CLUSTER} == {"exposed_cluster_9102"}
    first = listeners["exposed_paths:10.0.0.1:21500"]
    assert first.clusters == ("exposed_cluster_9102", "local_app")
    config = manager.HttpConnectionManager()
    message = listener.Listener.FromString(first.body)
    message.filter_chains[0].filters[0].typed_config.Unpack(config)
    routes = {r.match.path: r.route.cluster for r in config.route_config.virtual_hosts[0].routes}
    assert routes == {"/health": "local_app", "/metrics": "exposed_cluster_9102"}


def test_an_application_on_a_unix_socket_has_its_paths_on_a_port() -> None:
    sidecar = make_sidecar("web", local_service_socket_path="/run/app.sock")
    made = exposed_resources(sidecar, ProxySettings(), [ExposedPath("/health", 21500, 8080)])
    assert "exposed_cluster_8080" in {resource.name for resource in made}


def test_a_port_that_another_listener_needs_stays_that_ones() -> None:
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

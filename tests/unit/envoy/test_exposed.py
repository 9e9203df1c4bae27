"""Exposed paths: one listener a port, exactly the named paths, the right port behind each."""

from __future__ import annotations

from tests.unit.facts import make_sidecar
from xds.envoy.exposed import exposed_resources
from xds.envoy.resource import CLUSTER, LISTENER
from xds.mesh.facts import ExposedPath, ProxySettings
from xds.wire.envoy.config import listener_pb2 as listener
from xds.wire.envoy.extensions import http_connection_manager_pb2 as manager


def test_paths_share_a_listener_by_port_and_lead_where_they_should() -> None:
    paths = (
        ExposedPath("/health", 21500, 8080),
        ExposedPath("/metrics", 21500, 9102),
        ExposedPath("/met-rics", 21501, 9102),
    )
    made = {r.name: r for r in exposed_resources(make_sidecar("web"), ProxySettings(exposed_paths=paths))}
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
    settings = ProxySettings(exposed_paths=(ExposedPath("/health", 21500, 8080),))
    assert "exposed_cluster_8080" in {resource.name for resource in exposed_resources(sidecar, settings)}

"""A registration as the commands beside a sidecar need it."""

from __future__ import annotations

from typing import Any

from xds.mesh.config_entries import ConfigEntries
from xds.sources.registration import Registration, registration


def registered(**proxy: Any) -> Registration:
    service = {
        "Kind": "connect-proxy",
        "ID": "web-1-sidecar-proxy",
        "Service": "web-sidecar-proxy",
        "Port": 20000,
        "Proxy": {"DestinationServiceName": "web", "LocalServicePort": 8080, "Mode": "transparent", **proxy},
    }
    return registration("vm-1", service, ConfigEntries())


def test_the_ports_of_exposed_paths_are_plain() -> None:
    paths = [{"Path": each, "ListenerPort": 21500, "LocalPathPort": 8080} for each in ("/health", "/live")]
    assert registered(Expose={"Paths": paths}).plain_ports == (21500,)


def test_a_port_is_not_plain_because_a_registration_calls_it_that_of_the_metrics() -> None:
    for port in (8080, 20000, 9102):
        found = registered(Config={"envoy_prometheus_bind_addr": f"0.0.0.0:{port}"})
        assert found.plain_ports == ()
        assert "envoy_prometheus_bind_addr: there is no such listener" in found.sidecar.problems[0]


def test_a_port_of_the_mesh_is_not_plain_because_a_path_is_exposed_there() -> None:
    for port in (8080, 20000, 15001):
        path = {"Path": "/health", "ListenerPort": port, "LocalPathPort": 8081}
        assert registered(Expose={"Paths": [path]}).plain_ports == ()

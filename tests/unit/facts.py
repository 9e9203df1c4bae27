"""Facts for tests, with everything filled in that a test does not care about."""

from __future__ import annotations

from typing import Any

from xds.mesh.addresses import HostPort
from xds.mesh.config_entries import ProxyMode, ProxySettings
from xds.mesh.facts import Health, Instance, Leaf, Roots, ServiceInstances, Sidecar, VirtualAddress

ROOTS = Roots("td.consul", ("-----BEGIN CERTIFICATE-----\nroot\n-----END CERTIFICATE-----\n",))
TRANSPARENT = ProxySettings(mode=ProxyMode.TRANSPARENT)


def make_sidecar(service: str, number: int = 1, **more: Any) -> Sidecar:
    values: dict[str, Any] = {
        "service_id": f"{service}-{number}-sidecar-proxy",
        "node": f"node-{service}-{number}",
        "service": service,
        "address": f"10.0.0.{number}",
        "port": 20000,
        "local_service_address": "127.0.0.1",
        "local_service_port": 8080,
        "local_service_socket_path": "",
        "settings": TRANSPARENT,
    }
    return Sidecar(**(values | more))


def make_instance(service: str, number: int = 1, *virtual_ips: str, **more: Any) -> Instance:
    values: dict[str, Any] = {
        "service_id": f"{service}-{number}-sidecar-proxy",
        "node": f"node-{service}-{number}",
        "address": f"10.0.0.{number}",
        "port": 20000,
        "health": Health.PASSING,
        "weight_passing": 1,
        "weight_warning": 1,
        "virtual_ips": tuple(VirtualAddress(ip, assigned=True) for ip in virtual_ips),
        "create_index": number,
        "sidecar": make_sidecar(service, number),
    }
    return Instance(**(values | more))


def make_instances(service: str, *virtual_ips: str, **more: Any) -> ServiceInstances:
    return ServiceInstances(service, (make_instance(service, 1, *virtual_ips, **more),))


def make_leaf(service: str, serial: str = "01") -> Leaf:
    return Leaf(service, f"chain {serial}", f"key {serial}", serial)


FREE_PORT = HostPort("127.0.0.1", 0)
"""Address with a port that the system picks."""

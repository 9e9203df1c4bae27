"""Encodes endpoints: the instances of a service with the health and the weight that Consul computes for them."""

from __future__ import annotations

from collections.abc import Iterable

from xds.envoy.resource import ENDPOINT, Resource, encode_bytes
from xds.envoy.wire_format import field, number, text
from xds.mesh.addresses import canonical_ip, is_ip
from xds.mesh.facts import Health, Instance
from xds.wire.envoy.config import core_pb2 as core

MAX_WEIGHT = 128


def load_assignment(name: str, instances: Iterable[Instance], *, only_passing: bool = False) -> Resource:
    """Return the endpoints of the cluster ``name``, possibly none. ``only_passing`` leaves out instances with a warning
    too."""
    # A ClusterLoadAssignment: cluster_name, and endpoints: a LocalityLbEndpoints with no more than its lb_endpoints.
    locality = b"".join([field(2, _lb_endpoint(i, only_passing)) for i in instances if unreachable(i) is None])
    return encode_bytes(ENDPOINT, name, text(1, name) + field(2, locality))


def unreachable(instance: Instance) -> str | None:
    """Return why Envoy can't be given this instance: one address that is no IP would make it reject the whole list."""
    if not is_ip(instance.address):
        return f"instance {instance.service_id}: address {instance.address!r} is not an IP address"
    if not 0 < instance.port < 65536:
        return f"instance {instance.service_id}: port {instance.port} is not between 1 and 65535"
    return None


def _lb_endpoint(instance: Instance, only_passing: bool) -> bytes:
    gets_traffic, weight = health_and_weight(instance)
    gets_traffic = gets_traffic and (instance.health is Health.PASSING or not only_passing)
    # Both keep new connections away. Operators can tell an instance in maintenance from a broken one in Envoy.
    otherwise = core.DRAINING if instance.health is Health.MAINTENANCE else core.UNHEALTHY
    # LbEndpoint.endpoint: an Endpoint, its address: an Address, its socket_address: address and port_value.
    socket_address = text(2, canonical_ip(instance.address) or "") + number(3, instance.port)
    made = field(1, field(1, field(1, socket_address)))
    health_status = number(2, core.HEALTHY if gets_traffic else otherwise)
    return made + health_status + field(4, number(1, weight))  # load_balancing_weight is a UInt32Value


def health_and_weight(instance: Instance) -> tuple[bool, int]:
    """Return whether an instance gets traffic, and how much (Consul, ``agent/xds/endpoints.go``).

    A critical check and maintenance mode take it out; a warning one selects the warning weight; a weight below 1 takes
    it out as well.
    """
    weight = instance.weight_warning if instance.health is Health.WARNING else instance.weight_passing
    out = instance.health in (Health.CRITICAL, Health.MAINTENANCE)
    return not out and weight >= 1, min(max(weight, 1), MAX_WEIGHT)

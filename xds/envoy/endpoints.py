"""Endpoints: the instances of a service with the health and the weight that Consul computes for them."""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.wrappers_pb2 import UInt32Value

from xds.envoy.clusters import socket_address
from xds.envoy.resource import ENDPOINT, Resource, encode
from xds.mesh.facts import Health, Instance, is_ip
from xds.wire.envoy.config import core_pb2 as core
from xds.wire.envoy.config import endpoint_pb2 as endpoint

MAX_WEIGHT = 128


def load_assignment(name: str, instances: Iterable[Instance], *, only_passing: bool = False) -> Resource:
    """The endpoints of the cluster ``name``; none is an answer too. ``only_passing``: a warning takes out as well."""
    message = endpoint.ClusterLoadAssignment(
        cluster_name=name,
        endpoints=[
            endpoint.LocalityLbEndpoints(
                lb_endpoints=[_lb_endpoint(i, only_passing) for i in instances if unreachable(i) is None]
            )
        ],
    )
    return encode(ENDPOINT, name, message)


def unreachable(instance: Instance) -> str | None:
    """Why Envoy could not be given this instance: it would reject the whole list for one address that is no IP."""
    if not is_ip(instance.address):
        return f"instance {instance.service_id}: address {instance.address!r} is not an IP address"
    if not 0 < instance.port < 65536:
        return f"instance {instance.service_id}: port {instance.port} is not between 1 and 65535"
    return None


def _lb_endpoint(instance: Instance, only_passing: bool) -> endpoint.LbEndpoint:
    gets_traffic, weight = health_and_weight(instance)
    gets_traffic = gets_traffic and (instance.health is Health.PASSING or not only_passing)
    # Either keeps new connections away; one in maintenance is not broken, and Envoy's operators can see which it is.
    otherwise = core.DRAINING if instance.health is Health.MAINTENANCE else core.UNHEALTHY
    return endpoint.LbEndpoint(
        endpoint=endpoint.Endpoint(address=socket_address(instance.address, instance.port)),
        health_status=core.HEALTHY if gets_traffic else otherwise,
        load_balancing_weight=UInt32Value(value=weight),
    )


def health_and_weight(instance: Instance) -> tuple[bool, int]:
    """Whether an instance gets traffic, and how much (Consul, ``agent/xds/endpoints.go``).

    A critical check and maintenance mode take it out; a warning one selects the warning weight; a weight below 1 takes
    it out as well.
    """
    weight = instance.weight_warning if instance.health is Health.WARNING else instance.weight_passing
    out = instance.health in (Health.CRITICAL, Health.MAINTENANCE)
    return not out and weight >= 1, min(max(weight, 1), MAX_WEIGHT)

"""Clusters: one for each virtual IP and each explicit upstream, the local application, and the way past the mesh."""

from __future__ import annotations

import ipaddress

from google.protobuf.duration_pb2 import Duration
from google.protobuf.wrappers_pb2 import UInt32Value

from xds.envoy import names
from xds.envoy.resource import CLUSTER, Resource, encode
from xds.envoy.tls import ads_source, upstream_transport_socket
from xds.mesh.facts import ProxySettings, Sidecar
from xds.wire.envoy.config import cluster_pb2 as cluster
from xds.wire.envoy.config import core_pb2 as core
from xds.wire.envoy.config import endpoint_pb2 as endpoint
from xds.wire.envoy.type import type_pb2 as envoy_type

LOCAL_CONNECT_TIMEOUT_MS = 5000
ENDPOINTS_WAIT = Duration(seconds=5)
"""How long Envoy waits for a cluster's endpoints. They come right behind the cluster; this is the net below."""


def service_cluster(name: str, service: str, datacenter: str, trust_domain: str, connect_timeout_ms: int) -> Resource:
    """A cluster named ``name`` for ``service``: mutual TLS, endpoints over ADS under the cluster's own name.

    Each cluster has an endpoint resource of its own: two clusters that share one stall Envoy for
    ``initial_fetch_timeout`` (Envoy issue 13009).
    """
    consul_name = names.service_cluster(service, datacenter, trust_domain)
    source = ads_source()
    source.initial_fetch_timeout.CopyFrom(ENDPOINTS_WAIT)
    message = cluster.Cluster(
        name=name,
        alt_stat_name=consul_name,
        type=cluster.Cluster.EDS,
        eds_cluster_config=cluster.Cluster.EdsClusterConfig(eds_config=source, service_name=name),
        connect_timeout=milliseconds(connect_timeout_ms),
        circuit_breakers=cluster.CircuitBreakers(),
        outlier_detection=cluster.OutlierDetection(),
        common_lb_config=cluster.Cluster.CommonLbConfig(healthy_panic_threshold=envoy_type.Percent(value=0)),
        transport_socket=upstream_transport_socket(names.spiffe_id(service, datacenter, trust_domain), sni=consul_name),
    )
    return encode(CLUSTER, name, message, endpoints=name)


def local_app(sidecar: Sidecar, settings: ProxySettings) -> Resource:
    """The application beside the sidecar."""
    if sidecar.local_service_socket_path:
        address = core.Address(pipe=core.Pipe(path=sidecar.local_service_socket_path))
    else:
        address = socket_address(sidecar.local_service_address, sidecar.local_service_port)
    return _local(names.LOCAL_APP, address, settings)


def exposed(port: int, sidecar: Sidecar, settings: ProxySettings) -> Resource:
    """The application's port with exposed paths, where that is another than the one that the mesh reaches."""
    return _local(names.exposed_cluster(port), socket_address(sidecar.local_service_address, port), settings)


def _local(name: str, address: core.Address, settings: ProxySettings) -> Resource:
    breakers = cluster.CircuitBreakers()
    if settings.max_inbound_connections:
        breakers.thresholds.add(max_connections=UInt32Value(value=settings.max_inbound_connections))
    message = cluster.Cluster(
        name=name,
        type=cluster.Cluster.STATIC,
        connect_timeout=milliseconds(settings.local_connect_timeout_ms or LOCAL_CONNECT_TIMEOUT_MS),
        circuit_breakers=breakers if settings.max_inbound_connections else None,
        load_assignment=endpoint.ClusterLoadAssignment(
            cluster_name=name,
            endpoints=[
                endpoint.LocalityLbEndpoints(
                    lb_endpoints=[endpoint.LbEndpoint(endpoint=endpoint.Endpoint(address=address))]
                )
            ],
        ),
    )
    return encode(CLUSTER, name, message)


def original_destination() -> Resource:
    """Where connections to addresses outside the mesh go: to the address that was dialed, as it is."""
    message = cluster.Cluster(
        name=names.ORIGINAL_DESTINATION,
        type=cluster.Cluster.ORIGINAL_DST,
        lb_policy=cluster.Cluster.CLUSTER_PROVIDED,
        connect_timeout=milliseconds(5000),
    )
    return encode(CLUSTER, names.ORIGINAL_DESTINATION, message)


def milliseconds(value: int) -> Duration:
    """A duration of ``value`` milliseconds."""
    return Duration(seconds=value // 1000, nanos=value % 1000 * 1_000_000)


def socket_address(address: str, port: int) -> core.Address:
    """A TCP address; ``address`` is an IP."""
    return core.Address(socket_address=core.SocketAddress(address=str(ipaddress.ip_address(address)), port_value=port))

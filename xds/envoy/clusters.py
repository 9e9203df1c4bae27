"""Encodes clusters: those of upstreams, the local application, and the original destination outside the mesh."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

from google.protobuf.duration_pb2 import Duration
from google.protobuf.wrappers_pb2 import UInt32Value

from xds.envoy import names
from xds.envoy.resource import CLUSTER, Resource, encode
from xds.envoy.tls import ads_source, identify_upstream, typed
from xds.mesh.addresses import canonical_ip
from xds.mesh.chains import DEFAULT_CONNECT_TIMEOUT_MS, LoadBalancer, Target
from xds.mesh.config_entries import PassiveHealthCheck, ProxySettings, TLSParameters, UpstreamSettings
from xds.mesh.facts import Sidecar
from xds.mesh.http import MULTIPLEXED
from xds.mesh.spiffe import spiffe_id
from xds.wire.envoy.config import cluster_pb2 as cluster
from xds.wire.envoy.config import core_pb2 as core
from xds.wire.envoy.config import endpoint_pb2 as endpoint
from xds.wire.envoy.extensions import aggregate_cluster_pb2, upstream_http_pb2
from xds.wire.envoy.type import type_pb2 as envoy_type

LOCAL_CONNECT_TIMEOUT_MS = 5000
ENDPOINTS_WAIT = Duration(seconds=5)
"""Seconds that Envoy waits for a cluster's endpoints. They follow the cluster at once, so this is only a safety net."""
HTTP2 = core.Http2ProtocolOptions(allow_connect=True)
ALPN = {"http": ("h2", "http/1.1"), "http2": ("h2",), "grpc": ("h2",)}
"""Protocols offered upstream: two sidecars speak HTTP/2 where the other one can."""


@dataclass(frozen=True, slots=True)
class Here:
    """Place of the mesh, and the TLS settings between its sidecars."""

    datacenter: str
    trust_domain: str
    tls: TLSParameters = TLSParameters()


@functools.lru_cache(maxsize=1 << 14)
def service_cluster(
    name: str,
    target: Target,
    here: Here,
    protocol: str,
    settings: UpstreamSettings,
    balancer: LoadBalancer | None = None,
    *,
    identities: tuple[str, ...] = (),
    stat_name: str = "",
) -> Resource:
    """Return a cluster named ``name`` for a target: mutual TLS, endpoints over ADS under the cluster's own name.

    Its certificate must be of one of the ``identities``, by default the target's own. Each cluster has an endpoint
    resource of its own: two clusters that share one stall Envoy for ``initial_fetch_timeout`` (Envoy issue 13009). The
    result does not depend on the instances, which change all the time, so it is cached.
    """
    datacenter = target.datacenter or here.datacenter
    consul_name = consul_name_of(target, here)
    message = cluster.Cluster.FromString(_nameless(target.connect_timeout_ms, protocol, settings, balancer))
    message.name = message.eds_cluster_config.service_name = name
    message.alt_stat_name = stat_name or consul_name
    identify_upstream(
        message.transport_socket,
        [*identities] or [spiffe_id(target.service, datacenter, here.trust_domain)],
        target.external_sni or consul_name,
        here.tls,
        ALPN.get(protocol, ()),
    )
    return encode(CLUSTER, name, message, endpoints=name)


@functools.lru_cache(maxsize=1024)
def _nameless(
    connect_timeout_ms: int, protocol: str, settings: UpstreamSettings, balancer: LoadBalancer | None
) -> bytes:
    """Return a cluster without its names and the identities of its certificate, which no other cluster has."""
    source = ads_source()
    source.initial_fetch_timeout.CopyFrom(ENDPOINTS_WAIT)
    message = cluster.Cluster(
        type=cluster.Cluster.EDS,
        eds_cluster_config=cluster.Cluster.EdsClusterConfig(eds_config=source),
        connect_timeout=milliseconds(settings.connect_timeout_ms or connect_timeout_ms),
        lb_policy=balancer.policy.upper() if balancer and balancer.policy else "ROUND_ROBIN",
        circuit_breakers=_breakers(settings),
        outlier_detection=_outlier_detection(settings.passive_health_check or PassiveHealthCheck()),
        common_lb_config=cluster.Cluster.CommonLbConfig(healthy_panic_threshold=envoy_type.Percent(value=0)),
    )
    if balancer is not None:
        _tune_balancer(message, balancer)
    _speak(message, protocol, negotiated=True)
    return message.SerializeToString(deterministic=True)


def consul_name_of(target: Target, here: Here) -> str:
    """Return Consul's name for the cluster of a target, which is also the SNI that is expected there."""
    if target.prepared_query:
        return names.query_cluster(target.service, here.datacenter, here.trust_domain)
    return names.service_cluster(target.service, target.datacenter or here.datacenter, here.trust_domain, target.subset)


def aggregate(name: str, consul_name: str, members: Iterable[str]) -> Resource:
    """Return a cluster that uses the first of ``members`` that has healthy instances: failover."""
    config = aggregate_cluster_pb2.ClusterConfig(clusters=members)
    message = cluster.Cluster(
        name=name,
        alt_stat_name=consul_name,
        cluster_type=cluster.Cluster.CustomClusterType(name="envoy.clusters.aggregate", typed_config=typed(config)),
        lb_policy=cluster.Cluster.CLUSTER_PROVIDED,
        connect_timeout=milliseconds(DEFAULT_CONNECT_TIMEOUT_MS),  # an aggregate has none: its members have their own
    )
    return encode(CLUSTER, name, message, clusters=tuple(config.clusters))


def _breakers(settings: UpstreamSettings) -> cluster.CircuitBreakers:
    limits = {
        "max_connections": settings.max_connections,
        "max_pending_requests": settings.max_pending_requests,
        "max_requests": settings.max_concurrent_requests,
    }
    given = {name: UInt32Value(value=value) for name, value in limits.items() if value is not None}
    return cluster.CircuitBreakers(thresholds=[cluster.CircuitBreakers.Thresholds(**given)] if given else [])


def _outlier_detection(check: PassiveHealthCheck) -> cluster.OutlierDetection:
    found = cluster.OutlierDetection()
    if check.interval_ms is not None:
        found.interval.CopyFrom(milliseconds(check.interval_ms))
    if check.max_failures is not None:
        found.consecutive_5xx.value = check.max_failures
    if check.enforcing_consecutive_5xx is not None:
        found.enforcing_consecutive_5xx.value = check.enforcing_consecutive_5xx
    if check.max_ejection_percent is not None:
        found.max_ejection_percent.value = check.max_ejection_percent
    if check.base_ejection_time_ms is not None:
        found.base_ejection_time.CopyFrom(milliseconds(check.base_ejection_time_ms))
    return found


def _tune_balancer(message: cluster.Cluster, balancer: LoadBalancer) -> None:
    if balancer.policy == "least_request" and balancer.choice_count:
        message.least_request_lb_config.choice_count.value = balancer.choice_count
    if balancer.policy == "ring_hash":
        if balancer.minimum_ring_size:
            message.ring_hash_lb_config.minimum_ring_size.value = balancer.minimum_ring_size
        if balancer.maximum_ring_size:
            message.ring_hash_lb_config.maximum_ring_size.value = balancer.maximum_ring_size


def _speak(message: cluster.Cluster, protocol: str, *, negotiated: bool) -> None:
    """Set the protocol to HTTP/2 where the application's is, and to what the other side accepts where it may be."""
    if protocol in MULTIPLEXED:
        explicit = upstream_http_pb2.HttpProtocolOptions.ExplicitHttpConfig(http2_protocol_options=HTTP2)
        options = upstream_http_pb2.HttpProtocolOptions(explicit_http_config=explicit)
    elif protocol == "http" and negotiated:
        auto = upstream_http_pb2.HttpProtocolOptions.AutoHttpConfig(http2_protocol_options=HTTP2)
        options = upstream_http_pb2.HttpProtocolOptions(auto_config=auto)
    else:
        return
    message.typed_extension_protocol_options[names.HTTP_OPTIONS].CopyFrom(typed(options))


def local_app(sidecar: Sidecar, settings: ProxySettings) -> Resource:
    """Return the cluster of the application beside the sidecar."""
    if sidecar.local_service_socket_path:
        address = core.Address(pipe=core.Pipe(path=sidecar.local_service_socket_path))
    else:
        address = socket_address(sidecar.local_service_address, sidecar.local_service_port)
    return _local(names.LOCAL_APP, address, settings, settings.protocol or "tcp")


def exposed(port: int, sidecar: Sidecar, settings: ProxySettings, *, http2: bool) -> Resource:
    """Return the cluster of the application's port with exposed paths, where the mesh uses another port."""
    address = socket_address(sidecar.local_service_address, port)
    return _local(names.exposed_cluster(port, http2=http2), address, settings, "http2" if http2 else "http")


def _local(name: str, address: core.Address, settings: ProxySettings, protocol: str) -> Resource:
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
    _speak(message, protocol, negotiated=False)
    return encode(CLUSTER, name, message)


def original_destination(connect_timeout_ms: int) -> Resource:
    """Return the cluster of connections to addresses outside the mesh, which go to the dialed address unchanged.

    They are counted for each of these addresses (``cluster.original-destination.endpoint.<address>``).
    """
    message = cluster.Cluster(
        name=names.ORIGINAL_DESTINATION,
        type=cluster.Cluster.ORIGINAL_DST,
        lb_policy=cluster.Cluster.CLUSTER_PROVIDED,
        connect_timeout=milliseconds(connect_timeout_ms),
        track_cluster_stats=cluster.TrackClusterStats(per_endpoint_stats=True),
    )
    return encode(CLUSTER, names.ORIGINAL_DESTINATION, message)


def milliseconds(value: int) -> Duration:
    """Return a duration of ``value`` milliseconds."""
    return Duration(seconds=value // 1000, nanos=value % 1000 * 1_000_000)


def socket_address(address: str, port: int) -> core.Address:
    """Return a TCP address; ``address`` is an IP."""
    return core.Address(socket_address=core.SocketAddress(address=canonical_ip(address) or address, port_value=port))

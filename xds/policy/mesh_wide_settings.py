"""Settings that the operator of a mesh gives for all of it, on the command line of ``gossamer serve``."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from xds.mesh.addresses import IPNetwork, parse_ip, parse_network
from xds.mesh.config_entries import ClusterMode
from xds.mesh.facts import ANY_PORT, VirtualAddress
from xds.mesh.http import HTTP_PROTOCOLS
from xds.policy.forbidden import NOTHING_FORBIDDEN, Forbidden
from xds.policy.quotas import DEFAULT_QUOTAS, Quotas

CONSUL_VIRTUAL_IPS = parse_network("240.0.0.0/4")
"""The range from which Consul assigns virtual IPs."""


@dataclass(frozen=True, slots=True)
class MeshWideSettings:
    """Settings that hold for every sidecar of a mesh."""

    virtual_ranges: tuple[IPNetwork, ...] = (CONSUL_VIRTUAL_IPS,)
    destinations_only: bool = False
    """Whether connections to any address that is not a virtual IP are closed."""
    strict_ports: bool = False
    """Whether a service answers only at the port of its virtual address, where that has one."""
    probe_sources: tuple[IPNetwork, ...] = ()
    """Networks that may use exposed paths; empty for all."""
    passthrough_connect_timeout_ms: int = 5000
    """Milliseconds that a connection to an address outside the mesh may take."""
    quotas: Quotas = DEFAULT_QUOTAS
    """Limits of what one service may ask of its callers."""
    clusters: ClusterMode = ClusterMode.EAGER
    """Time at which the clusters of implicit upstreams are sent, unless a sidecar's registration says otherwise."""
    forbidden: Forbidden = NOTHING_FORBIDDEN
    """Features that the owners of services may not use."""

    def lists(self, at: VirtualAddress, protocol: str) -> bool:
        """Return whether an outbound listener has to list an address beside its chain for the ranges."""
        return protocol in HTTP_PROTOCOLS or at.port != ANY_PORT or not _is_inside(at.ip, self.virtual_ranges)


@functools.lru_cache(maxsize=1 << 16)
def _is_inside(ip: str, networks: tuple[IPNetwork, ...]) -> bool:
    return any(parse_ip(ip) in network for network in networks)

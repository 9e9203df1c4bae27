"""The names that Consul gives things in Envoy (``agent/connect/sni.go``, ``uri_service.go``, ``agent/xds``).

Community Edition: namespace and partition are always ``default``.
"""

from __future__ import annotations

import re

LEAF_SECRET = "leaf"  # noqa: S105 - the name of a secret, not a secret
ROOTS_SECRET = "roots"  # noqa: S105
LOCAL_APP = "local_app"
ORIGINAL_DESTINATION = "original-destination"


def service_cluster(service: str, datacenter: str, trust_domain: str) -> str:
    """Consul's name for the cluster of a service; also the SNI that its sidecars expect."""
    return f"{service}.default.{datacenter}.internal.{trust_domain}"


def virtual_ip_cluster(ip: str) -> str:
    """The cluster that the outbound listener picks for a connection to ``ip``."""
    return f"vip:{ip}"


def spiffe_id(service: str, datacenter: str, trust_domain: str) -> str:
    """The identity in the certificate of a service."""
    return f"spiffe://{trust_domain}/ns/default/dc/{datacenter}/svc/{service}"


ANY_SERVICE = "[^/]+"


def spiffe_pattern(service_pattern: str, trust_domain: str) -> str:
    """A regular expression (RE2) for the identities, in any datacenter, of services whose name matches one."""
    return f"^spiffe://{re.escape(trust_domain)}/ns/default/dc/[^/]+/svc/{service_pattern}$"


def upstream_stat_prefix(service: str, datacenter: str) -> str:
    """The stat prefix of a listener for an upstream."""
    return f"upstream.{service}.default.default.{datacenter}"


def listener(base: str, address: str, port: int) -> str:
    """A listener's name: its address is in it because Envoy can't bind a listener anew."""
    return f"{base}:{address}:{port}"

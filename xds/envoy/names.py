"""The names that Consul gives things in Envoy (``agent/connect/sni.go``, ``uri_service.go``, ``agent/xds``).

Community Edition: namespace and partition are always ``default``.
"""

from __future__ import annotations

import re
from urllib.parse import quote

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
    return f"spiffe://{trust_domain}/ns/default/dc/{datacenter}/svc/{in_path(service)}"


def in_path(service: str) -> str:
    """A service's name as it stands in a SPIFFE ID: escaped as Go escapes the path of a URL."""
    return quote(service, safe="$&+,:;=@")


ANY_SERVICE = "[^/]+"


def spiffe_pattern(service_pattern: str, trust_domain: str) -> str:
    """A regular expression (RE2) for the identities, in any datacenter, of services whose name matches one.

    Case makes no difference in the name, because it makes none to Consul when it matches intentions.
    """
    return f"^spiffe://{re.escape(trust_domain)}/ns/default/dc/[^/]+/svc/(?i:{service_pattern})$"


def service_pattern(service: str) -> str:
    """A regular expression for the name of one service in a SPIFFE ID."""
    return re.escape(in_path(service))


def upstream_stat_prefix(service: str, datacenter: str) -> str:
    """The stat prefix of a listener for an upstream."""
    return f"upstream.{service}.default.default.{datacenter}"


def exposed_cluster(port: int) -> str:
    """The application's port with exposed paths."""
    return f"exposed_cluster_{port}"


def listener(base: str, address: str, port: int) -> str:
    """A listener's name: its address is in it because Envoy can't bind a listener anew."""
    return f"{base}:{address}:{port}"

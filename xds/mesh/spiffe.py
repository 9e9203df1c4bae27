"""SPIFFE IDs: the identities in the certificates of services."""

from __future__ import annotations

from urllib.parse import quote


def spiffe_id(service: str, datacenter: str, trust_domain: str) -> str:
    """Return the identity in the certificate of a service."""
    return f"spiffe://{trust_domain}/ns/default/dc/{datacenter}/svc/{in_path(service)}"


def in_path(service: str) -> str:
    """Return a service's name as part of a SPIFFE ID: escaped as Go escapes the path of a URL."""
    return quote(service, safe="$&+,:;=@")

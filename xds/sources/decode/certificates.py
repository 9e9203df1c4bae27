"""Decodes certificates, and an agent's description of itself."""

from __future__ import annotations

from typing import Any

from xds.mesh.facts import Leaf, Roots
from xds.sources.decode.shapes import items, text


def roots(data: Any) -> Roots:
    """Decode ``/v1/connect/ca/roots``."""
    found = sorted(items(data["Roots"], "Roots"), key=lambda root: (not root.get("Active"), root["ID"]))
    return Roots(text(data, "TrustDomain"), tuple(text(root, "RootCert") for root in found))


def leaf(data: Any) -> Leaf:
    """Decode ``/v1/agent/connect/ca/leaf/:service``. After a rotation, the chain contains the cross-signed root."""
    return Leaf(
        service=text(data, "Service"),
        certificate_chain=text(data, "CertPEM"),
        private_key=text(data, "PrivateKeyPEM"),
        serial_number=text(data, "SerialNumber", ""),
    )


def agent_default_allow(data: Any) -> bool:
    """Return the default where no intention matches, from ``/v1/agent/self``.

    Raises:
        KeyError: the answer has no such field.
    """
    debug = data["DebugConfig"]
    policy = debug.get("DefaultIntentionPolicy")
    if policy:
        return bool(policy == "allow")
    resolver = debug.get("ACLResolverSettings") or {}
    enabled = debug["ACLsEnabled"] if "ACLsEnabled" in debug else resolver["ACLsEnabled"]
    if not enabled:
        return True
    policy = debug.get("ACLDefaultPolicy") or resolver.get("ACLDefaultPolicy")
    if policy is None:
        raise KeyError("ACLDefaultPolicy")
    return bool(policy == "allow")

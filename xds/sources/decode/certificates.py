"""Certificates, and what an agent says of itself."""

from __future__ import annotations

from typing import Any

from xds.mesh.facts import Leaf, Roots


def roots(data: Any) -> Roots:
    """``/v1/connect/ca/roots``."""
    found = sorted(data["Roots"] or (), key=lambda root: (not root.get("Active"), root["ID"]))
    return Roots(data["TrustDomain"], tuple(root["RootCert"] for root in found))


def leaf(data: Any) -> Leaf:
    """``/v1/agent/connect/ca/leaf/:service``. The chain holds the cross-signed intermediate after a rotation."""
    return Leaf(
        service=data["Service"],
        certificate_chain=data["CertPEM"],
        private_key=data["PrivateKeyPEM"],
        serial_number=data.get("SerialNumber", ""),
    )


def agent_default_allow(data: Any) -> bool:
    """``/v1/agent/self``: what holds where no intention matches.

    Raises:
        KeyError: the answer doesn't say.
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

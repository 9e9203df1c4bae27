"""The port that the kernel's redirection and Envoy's outbound listener must agree on."""

from __future__ import annotations

OUTBOUND_LISTENER_PORT = 15001
"""Port of the outbound listener, unless a registration says otherwise (Consul: ``OutboundListenerPort``)."""

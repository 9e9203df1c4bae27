"""Connects the xDS server, which handles streams, with the control plane, which handles proxies."""

from __future__ import annotations

import asyncio
import logging
import uuid

from xds.ads.codec import Node
from xds.ads.messages import Received, Response
from xds.control.plane import ControlPlane
from xds.control.proxy import Client, Proxy

log = logging.getLogger(__name__)

LINGER_S = 60.0
"""Seconds for which what is read and made for a proxy outlives its stream: a proxy that lost its server reconnects
soon."""


class AdsAdapter:
    """Adapter between streams and the control plane (`xds.ads.server.Registry`)."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane

    def connected(self, node: Node, token: str, address: str, spiffe_ids: frozenset[str], *, delta: bool) -> Proxy:
        """Add the proxy that introduced itself as ``node``."""
        log.info("sidecar %r of service %r connected from %s, Envoy %r", node.id, node.cluster, address, node.version)
        return self._plane.attach(Client(node, token, address, delta, uuid.uuid4().hex, spiffe_ids))

    def disconnected(self, peer: Proxy) -> None:
        """Remove a proxy whose stream ended, and forget it after a while."""
        log.info("sidecar %r disconnected", peer.client.node.id)
        self._plane.detach(peer)
        asyncio.get_running_loop().call_later(LINGER_S, self._plane.let_go, peer)

    def received(self, peer: Proxy, received: Received, seconds: float | None) -> None:
        """Log and count what a proxy answered."""
        self._plane.note(peer, received)
        if seconds is not None and received.acknowledged is not None:
            self._plane.metrics.acknowledgement_seconds[received.acknowledged].observe(seconds)

    def sent(self, peer: Proxy, response: Response, size: int) -> None:  # noqa: ARG002 - the protocol's signature
        """Count a response that is being sent to a proxy."""
        self._plane.metrics.sent[response.type_url].inc()
        self._plane.metrics.sent_bytes[response.type_url].inc(size)

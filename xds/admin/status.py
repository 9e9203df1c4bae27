"""Describes what each connected sidecar was sent, acknowledged and rejected, as plain data."""

from __future__ import annotations

from typing import Any

from xds.control.plane import ControlPlane
from xds.control.proxy import SERVED_TYPES, Proxy
from xds.envoy.resource import TYPE_NAMES


def readiness(
    missing: tuple[str, ...], troubles: dict[str, str], *, stopping: bool = False
) -> tuple[bool, dict[str, Any]]:
    """Return whether sidecars can be served, and what is missing or can't be read at the moment.

    A failure to read does not make it unready, since it serves what was read before.
    """
    ready = not missing and not stopping
    about = {"ready": ready, "not_read_yet": list(missing), "troubles": troubles}
    return ready, about | ({"stopping": True} if stopping else {})


def sidecars(plane: ControlPlane) -> list[dict[str, Any]]:
    """Return every connected sidecar, and those that were refused a moment ago."""
    refused = [{**sidecar(proxy), "connected": False} for proxy in plane.refused()]
    return [sidecar(proxy) for proxy in plane.proxies()] + refused


def sidecar(proxy: Proxy) -> dict[str, Any]:
    """Return one connected sidecar as plain data."""
    node = proxy.client.node
    return {
        "id": node.id,
        "service": node.cluster,
        "node": node.node_name or (proxy.sidecar.node if proxy.sidecar else ""),
        "address": proxy.client.peer,
        "connected": True,
        "envoy_version": node.version,
        "protocol": "delta" if proxy.client.delta else "state-of-the-world",
        "registered": proxy.registered,
        "transparent": proxy.transparent,
        "served": proxy.ready,
        "waits_for": _waits_for(proxy),
        "set_aside": proxy.problems(),
        "resources": {TYPE_NAMES[type_url]: _type(proxy, type_url) for type_url in SERVED_TYPES},
    }


def _waits_for(proxy: Proxy) -> str | None:
    if proxy.blocker is not None:
        return proxy.blocker
    unread = proxy.unread()
    return f"upstreams not read yet: {', '.join(unread)}" if unread else None


def _type(proxy: Proxy, type_url: str) -> dict[str, Any]:
    state = proxy.session.state(type_url)
    outstanding = {r.name for r in state.in_flight.resources} if state.in_flight else set()
    sent = {name: version for name, version in sorted(state.has.items()) if version}
    return {
        "subscribed": sorted(state.named) + ["*"] * state.wildcard,
        "responses": state.sent,
        "acknowledgements": state.acknowledged,
        "sent": sent,
        "acknowledged": {
            name: version for name, version in sent.items() if name not in outstanding and name not in state.rejected
        },
        "rejected": {
            name: {"version": rejection.version, "reason": rejection.reason}
            for name, rejection in sorted(state.rejected.items())
        },
    }

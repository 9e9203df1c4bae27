"""The proxies that are connected, those that may reconnect, and those that were refused a moment ago.

Proxies of one service share what they may call, so they are kept by service. A proxy that left is kept for a while:
most of them lost their server and reconnect, and what was made for them is used again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from collections.abc import Set as AbstractSet

from xds.control.proxy import Proxy

REFUSED_KEPT = 256
"""Refused proxies that `/v1/sidecars` shows."""


class ConnectedProxies:
    """Owner of the connected proxies."""

    def __init__(self) -> None:
        self._by_service: dict[str, set[Proxy]] = {}
        self._left: dict[str, dict[str, Proxy]] = {}
        """Proxies that may reconnect, by service and service ID."""
        self._refused: dict[str, Proxy] = {}
        """Proxies that were refused a moment ago, by service ID, the latest last."""

    # -- connected ----------------------------------------------------------------------------------------------------

    def add(self, proxy: Proxy) -> None:
        """Add a proxy that connected."""
        self._by_service.setdefault(proxy.service, set()).add(proxy)

    def remove(self, proxy: Proxy) -> None:
        """Remove a proxy whose stream ended; its service is known until `forget_service`."""
        self._by_service[proxy.service].discard(proxy)

    def __contains__(self, proxy: Proxy) -> bool:
        """Return whether a proxy is connected."""
        return proxy in self._by_service.get(proxy.service, ())

    def __iter__(self) -> Iterator[Proxy]:
        """Yield the connected proxies."""
        for siblings in self._by_service.values():
            yield from siblings

    def of_service(self, service: str) -> Collection[Proxy]:
        """Return the connected proxies of a service."""
        return self._by_service.get(service, ())

    def of_services(self, services: Iterable[str]) -> set[Proxy]:
        """Return the connected proxies of these services."""
        return {proxy for service in services for proxy in self._by_service.get(service, ())}

    def services(self) -> AbstractSet[str]:
        """Return the services of which a proxy is connected or may reconnect."""
        return self._by_service.keys()

    # -- left ---------------------------------------------------------------------------------------------------------

    def keep(self, proxy: Proxy) -> Proxy | None:
        """Keep a proxy that left. Return the one that was kept under its ID until now."""
        left = self._left.setdefault(proxy.service, {})
        older = left.get(proxy.client.node.id)
        left[proxy.client.node.id] = proxy
        return older

    def take_back(self, proxy: Proxy) -> Proxy | None:
        """Return what was kept of a proxy that reconnected as ``proxy``, which is not kept any longer."""
        return self._left.get(proxy.service, {}).pop(proxy.client.node.id, None)

    def forget(self, proxy: Proxy) -> bool:
        """Keep a proxy no longer. Return whether it was kept; not if it reconnected, or left once more."""
        left = self._left.get(proxy.service, {})
        if left.get(proxy.client.node.id) is not proxy:
            return False
        del left[proxy.client.node.id]
        return True

    def forget_service(self, service: str) -> bool:
        """Forget a service, unless one of its proxies is connected or may reconnect. Return whether it is forgotten."""
        if self._left.get(service) or self._by_service[service]:
            return False
        self._left.pop(service, None)
        del self._by_service[service]
        return True

    # -- refused ------------------------------------------------------------------------------------------------------

    def refuse(self, proxy: Proxy) -> None:
        """Remember a proxy that may not act for its service."""
        self._refused.pop(proxy.client.node.id, None)
        self._refused[proxy.client.node.id] = proxy
        if len(self._refused) > REFUSED_KEPT:
            del self._refused[next(iter(self._refused))]

    def admit(self, proxy: Proxy) -> None:
        """Forget that the proxy with this ID was refused, because it may act for its service now."""
        self._refused.pop(proxy.client.node.id, None)

    def forget_refusal(self, proxy: Proxy) -> None:
        """Forget a refused proxy, unless another one with its ID was refused since."""
        if self._refused.get(proxy.client.node.id) is proxy:
            del self._refused[proxy.client.node.id]

    def refused(self) -> Collection[Proxy]:
        """Return the proxies that were refused a moment ago."""
        return self._refused.values()

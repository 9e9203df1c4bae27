"""Keeps track of what has to be read on behalf of the connected proxies, and reports it to the source.

Only what some admitted proxy serves, may call or names is read, once, however many proxies share it. Two parts of the
demand become stale separately: the streams whose tokens are to be checked change with every stream that comes or goes,
and cost a copy of a set; the services change rarely, and finding them costs a walk over the intentions of all live
services.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from xds.control.proxy import Proxy
from xds.control.service_view import ServiceView
from xds.control.upstreams import UpstreamCatalog
from xds.mesh.chains import Elsewhere, InstancesOf
from xds.mesh.facts import LeafKey, StreamKey
from xds.mesh.mesh import Demand

Readable = str | Elsewhere
"""A service of this datacenter, by name, or instances elsewhere."""


class DemandTracker:
    """Owner of the demand, and of the proxies that each part of it is for.

    Args:
        catalog: finds what the chain of an upstream leads to.
        views: by service, what it may call.
        chains_elsewhere: returns the discovery chains that other datacenters compile for a proxy.
        report: called with the demand whenever it changes.
        schedule: runs a function when the work in progress is done.
    """

    def __init__(
        self,
        catalog: UpstreamCatalog,
        views: Mapping[str, ServiceView],
        chains_elsewhere: Callable[[Proxy], set[InstancesOf]],
        report: Callable[[Demand], None],
        schedule: Callable[[Callable[[], None]], None],
    ) -> None:
        self._catalog = catalog
        self._views = views
        self._chains_elsewhere = chains_elsewhere
        self._report = report
        self._schedule = schedule
        self._demand = Demand()
        self._stale = self._streams_stale = self._scheduled = False
        self._live: set[str] = set()
        """Services of which a proxy was given its certificate; nothing is read on behalf of the others."""
        self._by_leaf: dict[LeafKey, set[Proxy]] = {}
        self._by_stream: dict[StreamKey, Proxy] = {}
        """Proxies that present a token, by stream."""
        self._reading: dict[Proxy, frozenset[Readable]] = {}
        """Proxies whose registration names upstreams, and what is read for these."""
        self._readers: dict[Readable, set[Proxy]] = {}

    @property
    def services(self) -> frozenset[str]:
        """The services of this datacenter whose instances and chains are read."""
        return self._demand.services

    # -- streams ------------------------------------------------------------------------------------------------------

    def add_stream(self, proxy: Proxy) -> None:
        """Have the token of a proxy's stream checked."""
        self._by_stream[proxy.stream_key] = proxy
        self._streams_stale = True

    def remove_stream(self, proxy: Proxy) -> None:
        """Stop checking the token of a proxy's stream."""
        if self._by_stream.pop(proxy.stream_key, None) is not None:
            self._streams_stale = True

    def of_stream(self, key: StreamKey) -> Proxy | None:
        """Return the proxy of a stream whose token is checked."""
        return self._by_stream.get(key)

    # -- certificates -------------------------------------------------------------------------------------------------

    def add_leaf(self, proxy: Proxy) -> None:
        """Read the leaf certificate of a proxy."""
        if proxy.leaf_key not in self._by_leaf:  # it is known if the same proxy left a moment ago
            self._by_leaf[proxy.leaf_key] = set()
            self._stale = True
        self._by_leaf[proxy.leaf_key].add(proxy)

    def _remove_leaf(self, proxy: Proxy) -> None:
        proxies = self._by_leaf.get(proxy.leaf_key, set())
        proxies.discard(proxy)
        if not proxies and self._by_leaf.pop(proxy.leaf_key, None) is not None:
            self._stale = True

    def with_leaf(self, key: LeafKey) -> set[Proxy]:
        """Return the proxies whose certificate ``key`` is."""
        return self._by_leaf.get(key, set())

    # -- services -----------------------------------------------------------------------------------------------------

    def add_service(self, service: str) -> None:
        """Read ``service`` and what it may call, because a proxy of it was given its certificate."""
        if service not in self._live:
            self._live.add(service)
            self._stale = True

    def remove_service(self, service: str) -> None:
        """Stop reading on behalf of ``service``, which has no proxies any more."""
        if service in self._live:
            self._live.remove(service)
            self._stale = True

    def read_for(self, proxy: Proxy, found: frozenset[Readable]) -> None:
        """Set what is read on behalf of one proxy alone, because its registration names upstreams."""
        before = self._reading.get(proxy, frozenset())
        if before == found:
            return
        for key in before - found:
            self._readers[key].discard(proxy)
            if not self._readers[key]:
                del self._readers[key]
        for key in found - before:
            self._readers.setdefault(key, set()).add(proxy)
        if found:
            self._reading[proxy] = found
        else:
            del self._reading[proxy]
        self._stale = True

    def readers(self, key: Readable) -> set[Proxy]:
        """Return the proxies for which ``key`` is read because their registration names upstreams."""
        return self._readers.get(key, set())

    def remove(self, proxy: Proxy) -> None:
        """Stop reading on behalf of a proxy that will not reconnect."""
        self.read_for(proxy, frozenset())
        self._remove_leaf(proxy)

    # -- the demand ---------------------------------------------------------------------------------------------------

    def services_changed(self) -> None:
        """Note that who may call whom, or what chains lead to, changed."""
        self._stale = True

    def update_soon(self) -> None:
        """Report the demand when the work in progress is done, if it may have changed."""
        if (self._stale or self._streams_stale) and not self._scheduled:
            self._scheduled = True
            self._schedule(self._update)

    def _update(self) -> None:
        self._scheduled = False
        before = self._demand
        if self._stale:
            self._demand = self._of_services()
        if self._streams_stale:
            self._demand = replace(self._demand, streams=frozenset(self._by_stream))
        self._stale = self._streams_stale = False
        if self._demand != before:
            self._report(self._demand)

    def _of_services(self) -> Demand:
        """Return the demand with its services, certificates and chains brought up to date."""
        implicit = self._catalog.candidates.reached_by_any((each, self._views[each].reach) for each in self._live)
        ends: set[Readable] = {*self._live, *implicit}
        for upstream in self._catalog.leading_elsewhere():
            if upstream in implicit:
                ends |= self._catalog.leads_to(upstream)
        chains: set[InstancesOf] = set()
        for proxy, read in self._reading.items():
            if proxy.leaf is not None:
                ends |= read
                chains |= self._chains_elsewhere(proxy)
        return replace(
            self._demand,
            services=frozenset(end for end in ends if isinstance(end, str)),
            leaves=frozenset(self._by_leaf),
            elsewhere=frozenset(end for end in ends if not isinstance(end, str)),
            chains=frozenset(chains),
        )

"""The control plane: takes batches of facts, and brings every connected proxy up to date.

What is updated for which fact:

======================================== =====================================================================
a fact that changes                      what is updated
======================================== =====================================================================
the instances or the chain of a service  its encoding as an upstream (and that of services that share a virtual
                                         IP with it) for those that may call it; its own sidecars; sidecars that
                                         name it as explicit upstream
intentions                               the upstreams of the sources that they name; the admission of the
                                         destinations that they name
service names                            the names that came or went, for those that may call them
trust domain, datacenter                 every upstream, every sidecar
config entries                           the upstreams and the sidecars that differing entries are about
roots, default                           every sidecar's own resources; for the default, every service's upstreams
a leaf certificate                       the sidecars that use it
an authorization                         the sidecar whose stream it is about
======================================== =====================================================================

A change that is about one service costs that service's callers, whatever the size of the mesh: nothing here walks all
proxies or all services because of it. Everything runs on the event loop and waits for nothing.

A change that is about every service is processed in slices, so that smaller changes are followed meanwhile. A service
that has not been processed yet keeps its earlier view, which changes in one step. Facts that say who may call whom are
taken only when the work on earlier ones is finished.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace

from xds.ads.messages import Received
from xds.ads.session import describe
from xds.control.connected import ConnectedProxies
from xds.control.demand import DemandTracker, Readable
from xds.control.inputs_builder import Blocker, InputsBuilder
from xds.control.proxy import Client, Proxy
from xds.control.service_views import ServiceViews
from xds.control.upstreams import UpstreamCatalog, here
from xds.control.work_queue import Throttle, WorkQueue
from xds.mesh.config_entries import ConfigEntries
from xds.mesh.facts import Authorized, LeafKey, StreamKey, StreamRefused
from xds.mesh.mesh import (
    CONFIG_ENTRIES,
    DATACENTER,
    DEFAULT_ALLOW,
    INTENTIONS,
    ROOTS,
    SERVICE_NAMES,
    Batch,
    Demand,
    Mesh,
)
from xds.mesh.names import WILDCARD, fold
from xds.mesh.spiffe import spiffe_id
from xds.metrics import Metrics
from xds.policy.mesh_wide_settings import MeshWideSettings
from xds.policy.proxies import Differing
from xds.policy.upstreams import Candidates

log = logging.getLogger(__name__)

SHAPING = frozenset((INTENTIONS, DEFAULT_ALLOW, SERVICE_NAMES, CONFIG_ENTRIES))
"""Facts that say who may call whom."""


class ControlPlane:
    """Control plane: facts in, resources out.

    Args:
        mesh_wide: the settings of the whole mesh.
        on_demand: called with what has to be read whenever that changes.
        metrics: the counters to use.
        soon: calls a function once everything that waits to run has run, so that a thousand sidecars that connect at
            once make one demand.
        later: calls a function after a pause, for work that is throttled.
    """

    def __init__(
        self,
        mesh_wide: MeshWideSettings,
        on_demand: Callable[[Demand], None],
        metrics: Metrics,
        soon: Callable[[Callable[[], None]], object],
        later: Callable[[Callable[[], None]], object],
    ) -> None:
        self.mesh = Mesh()
        self.metrics = metrics
        self._connected = ConnectedProxies()
        self._forbidden = mesh_wide.forbidden
        self._soon = soon
        self._catalog = UpstreamCatalog(self.mesh, mesh_wide)
        self._queue = WorkQueue(soon)
        self._relisting = Throttle(self._relist, later)
        self._changes: dict[str, int] = {}
        """Number of changes of its sidecars' inputs, by service."""
        self._rejecting: set[Proxy] = set()
        """Proxies that rejected something that is meant for them."""
        self._views = ServiceViews(self.mesh, self._catalog, mesh_wide, self._connected, self._relisting.is_waiting)
        self._inputs = InputsBuilder(self.mesh, self._catalog, mesh_wide, self._views.index, self._views.by_service)
        self._demand = DemandTracker(
            self._catalog, self._views.by_service, self._inputs.chains_elsewhere, on_demand, self._after_work
        )

    # -- proxies connect and leave ------------------------------------------------------------------------------------

    def attach(self, client: Client) -> Proxy:
        """Add a proxy that connected. It is served as soon as everything about it is known."""
        service = self._catalog.candidates.identity(client.node.cluster)
        if service != client.node.cluster:
            client = replace(client, node=replace(client.node, cluster=service))
        proxy = Proxy(client, self._views.add(service))
        self._connected.add(proxy)
        self.metrics.streams.labels("delta" if client.delta else "sotw").inc()
        self._demand.add_stream(proxy)
        self._update(proxy)
        self._demand.update_soon()
        return proxy

    def _admit(self, proxy: Proxy) -> None:
        """Read for a proxy that may act for its service, and take over what was made for it on an earlier stream."""
        self._demand.add_leaf(proxy)
        self._connected.admit(proxy)
        before = self._connected.take_back(proxy)
        if before is not None:
            if before.leaf is not None and self.mesh.leaf(proxy.leaf_key) == before.leaf:
                proxy.resume(before)
            self._demand.remove(before)

    def _authorize(self, proxy: Proxy) -> None:
        """Find out whether a proxy may act for its service: by its client certificate, otherwise by its token."""
        if proxy.client.spiffe_ids and proxy.admitted is None and (place := here(self.mesh)) is not None:
            own = spiffe_id(proxy.service, place.datacenter, place.trust_domain)
            proxy.certified = own in proxy.client.spiffe_ids
            if proxy.certified:
                self._demand.remove_stream(proxy)  # its token need not be checked
        answer = Authorized() if proxy.certified else self.mesh.authorization(proxy.stream_key)
        if isinstance(answer, StreamRefused) and proxy.client.spiffe_ids:
            certified = " and ".join(sorted(proxy.client.spiffe_ids))
            answer = replace(answer, reason=f"its client certificate is for {certified}, and {answer.reason}")
        match answer:
            case Authorized() if not proxy.admitted:
                self._admit(proxy)
            case StreamRefused() if proxy.admitted is not False:
                proxy.blocked_by(f"it may not act for service {proxy.service!r}: {answer.reason}")
                self.metrics.refused.inc()
                self._connected.refuse(proxy)
                log.warning(
                    "sidecar %r from %s may not act for service %r: %s",
                    proxy.client.node.id, proxy.client.peer, proxy.service, answer.reason,
                )  # fmt: skip
        if isinstance(answer, Authorized | StreamRefused):
            proxy.decide(answer)

    def detach(self, proxy: Proxy) -> None:
        """Remove a proxy whose stream ended; what was made for it is kept until `let_go`, since most reconnect."""
        self._connected.remove(proxy)
        self._demand.remove_stream(proxy)
        self._rejecting.discard(proxy)
        self.metrics.rejecting.set(len(self._rejecting))
        self.metrics.streams.labels("delta" if proxy.client.delta else "sotw").dec()
        if proxy.admitted:
            older = self._connected.keep(proxy)
            if older is not None:
                self._demand.remove(older)
        else:
            self._demand.remove(proxy)
            self._forget_service(proxy.service)
        self._demand.update_soon()

    def let_go(self, proxy: Proxy) -> None:
        """Forget a proxy that left a while ago, unless it reconnected."""
        if not proxy.admitted:
            self._connected.forget_refusal(proxy)
        elif self._connected.forget(proxy):
            self._demand.remove(proxy)
            self._forget_service(proxy.service)
            self._demand.update_soon()

    def _forget_service(self, service: str) -> None:
        """Forget a service of which no proxy is connected or may reconnect."""
        if self._connected.forget_service(service):
            self._views.drop(service)
            self._demand.remove_service(service)
            self._changes.pop(service, None)

    def proxies(self) -> list[Proxy]:
        """Return the connected proxies, ordered by ID."""
        return _by_id(self._connected)

    def refused(self) -> list[Proxy]:
        """Return the proxies that were refused a moment ago, ordered by ID."""
        return _by_id(self._connected.refused())

    def note(self, proxy: Proxy, received: Received) -> None:
        """Log and count what a proxy answered."""
        if received.acknowledged is not None:
            self.metrics.acknowledged[received.acknowledged].inc()
        if received.unexplained is not None:
            log.error(
                "sidecar %r rejected a response without naming a resource: %r (each resource is tried alone)",
                proxy.client.node.id, received.unexplained,
            )  # fmt: skip
        for rejection in received.rejections:
            kind = describe(rejection.type_url)
            self.metrics.rejected.labels(kind).inc()
            log.error(
                "sidecar %r rejected %s %r, version %s: %r (this version is not sent again)",
                proxy.client.node.id, kind, rejection.name, rejection.version, rejection.reason,
            )  # fmt: skip
        if received.rejections:
            proxy.rejected(received.rejections)
            self._rejecting.add(proxy)
        elif received.acknowledged is not None and proxy in self._rejecting and not any(proxy.session.rejections()):
            self._rejecting.discard(proxy)
        self.metrics.rejecting.set(len(self._rejecting))

    # -- facts change -------------------------------------------------------------------------------------------------

    def apply(self, batch: Batch) -> None:
        """Take a batch of facts and bring every proxy that depends on them up to date."""
        if not batch.keys().isdisjoint(SHAPING):
            self._queue.finish()  # the queued work belongs to the facts from before this batch
        views, entries_before = self._views, self.mesh.config_entries
        was_assignable, before = views.is_assignable(), (views.changes, self._catalog.leads_changes)
        changed = self.mesh.apply(self._forbidden.applied(batch))
        if not changed:
            return
        self.metrics.facts_changed.inc(len(changed))
        moved: set[Readable] = {key.of for key in changed if key.of and not isinstance(key.of, LeafKey | StreamKey)}
        authorized = [
            proxy
            for key in changed
            if isinstance(key.of, StreamKey) and (proxy := self._demand.of_stream(key.of)) is not None
        ]
        stale, respelled = set[str](), set[str]()
        """Services whose sidecars' own resources may differ; services that are spelled differently."""
        if changed & {INTENTIONS, SERVICE_NAMES, CONFIG_ENTRIES}:
            names_before = self._catalog.update_candidates()
            stale |= views.rename(names_before)
            respelled, more = views.respelled(names_before)
            stale |= more
            self._end_respelled(names_before)
            moved |= names_before.names ^ self._catalog.candidates.names
        sources, destinations = frozenset[str](), frozenset[str]()
        if INTENTIONS in changed:
            sources, destinations = views.index.replace(self.mesh.intentions or ())
        if views.is_assignable():
            all_services = not was_assignable or changed & {DEFAULT_ALLOW, CONFIG_ENTRIES} or WILDCARD in sources
            if all_services:
                self._queue.run(views.include, views.not_included())
            waiting = views.to_assign(views.by_service if all_services else views.having(sources) | respelled)
            self._queue.run(self._assign, waiting, in_order=True)
        if not was_assignable or changed & {ROOTS, DATACENTER, DEFAULT_ALLOW} or WILDCARD in destinations:
            stale |= self._connected.services()
        stale |= views.having(destinations)
        if changed & {ROOTS, DATACENTER}:
            moved |= self._demand.services
        if CONFIG_ENTRIES in changed:
            about = Differing(entries_before or ConfigEntries(), self.mesh.config_entries or ConfigEntries())
            moved |= {each for each in self._demand.services if about.as_upstream(each)}
            stale |= {each for each in self._connected.services() if about.as_sidecar(each)}
        touched, more = views.refresh(moved, self._demand.services)
        if before != (views.changes, self._catalog.leads_changes):
            self._demand.services_changed()
        moved |= touched
        # A service that still waits for other upstreams will soon have more addresses to list, thousands of them in a
        # cold start. One that waited for this upstream alone is brought up to date before it is served.
        unread = {service for service in more if not views.by_service[service].is_known()}
        stale |= (more - unread) | {each for each in moved if isinstance(each, str)}
        proxies = self._connected.of_services(stale)
        for key in changed:
            if isinstance(key.of, LeafKey):
                proxies |= self._demand.with_leaf(key.of)
        for read in moved:
            proxies |= self._demand.readers(read)
        for service in stale | {proxy.service for proxy in proxies}:
            self._changes[service] = self._changes.get(service, 0) + 1
        for proxy in authorized:
            self._authorize(proxy)
        self._queue.run(self._update, proxies.union(authorized))
        self._relisting.ask(unread - stale)
        self._demand.update_soon()

    def _end_respelled(self, before: Candidates) -> None:
        """End the streams of proxies whose service the catalog spells differently now: they reconnect as that one."""
        now = self._catalog.candidates
        for service in self._views.having(map(fold, before.differing(now))):
            if now.identity(service) != service:
                for proxy in list(self._connected.of_service(service)):
                    proxy.end(f"the catalog spells service {service!r} as {now.identity(service)!r}; connect again")

    def _relist(self, services: set[str]) -> None:
        """Bring the outbound listeners of these services' sidecars up to date."""
        for service in services:
            self._changes[service] = self._changes.get(service, 0) + 1
        self._queue.run(self._update, self._connected.of_services(services))

    def _assign(self, service: str) -> None:
        """Determine again what ``service`` may call, and update its sidecars."""
        if service not in self._views.by_service or not self._views.assign(service):
            return
        self._changes[service] = self._changes.get(service, 0) + 1
        for proxy in list(self._connected.of_service(service)):
            self._update(proxy)
        self._demand.services_changed()
        self._demand.update_soon()

    def _update(self, proxy: Proxy) -> None:
        """Bring one proxy's own resources up to date, or note what keeps it from being served.

        An error in its registration affects no other proxy.
        """
        if proxy not in self._connected:
            return  # it left since this was queued
        if not proxy.admitted:
            self._authorize(proxy)
        if proxy.admitted is False:
            return  # its stream is ending
        self._inputs.look_up(proxy)
        blocker = self._inputs.blocker(proxy)
        changes = self._changes.get(proxy.service, 0)
        if proxy.admitted and proxy.leaf is not None:
            self._demand.add_service(proxy.service)
        if blocker is None and proxy.as_of != changes:  # equal for a proxy that reconnected, if nothing changed since
            try:
                self._demand.read_for(proxy, self._inputs.reads(proxy))
                inputs = self._inputs.of(proxy)
                if inputs is not None:
                    proxy.update(inputs)
                    proxy.as_of = changes
            except Exception as error:
                blocker = Blocker(f"its registration can't be turned into Envoy's configuration: {error!r}")
                if proxy.ready:
                    log.error("sidecar %r keeps what it has: %s", proxy.client.node.id, blocker.reason)  # noqa: TRY400
        differs = proxy.blocked_by(blocker.reason if blocker else None)
        self._views.note_waiting(proxy)
        if differs and blocker and not proxy.ready:
            level = logging.DEBUG if blocker.passing else logging.WARNING
            log.log(level, "sidecar %r waits: %s", proxy.client.node.id, blocker.reason)
        self._demand.update_soon()  # this may run in a slice, long after the change that queued it

    def _after_work(self, do: Callable[[], None]) -> None:
        """Call ``do`` once when all work in progress is done, not for each slice of it."""
        self._soon(lambda: self._queue.run(lambda _: do(), (None,), in_order=True))


def _by_id(proxies: Iterable[Proxy]) -> list[Proxy]:
    return sorted(proxies, key=lambda proxy: (proxy.client.node.id, proxy.client.peer))

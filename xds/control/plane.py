"""The control plane: takes batches of facts, and brings every connected proxy up to date by them.

What depends on what, all of it:

======================================== =====================================================================
a fact that changes                      what is done again
======================================== =====================================================================
the instances or the chain of a service  its encoding as an upstream (and of services that share a virtual IP
                                         with it), told to those that may call it; its own sidecars; sidecars
                                         that name it as explicit upstream
intentions                               whom the sources that they name may call; what the sidecars of the
                                         destinations that they name admit
service names                            the names that came or went, for those that may call them
trust domain, datacenter                 every upstream, every sidecar
config entries                           the upstreams and the sidecars that the entries are about which differ
roots, default                           every sidecar's own resources; for the default, whom everybody may call
a leaf certificate                       the sidecars whose it is
an authorization                         the sidecar whose stream it is about
======================================== =====================================================================

A change that is about one service costs that service's callers, whatever the size of the mesh: nothing here walks all
proxies, or all services, on its account. Everything runs on the event loop and waits for nothing.

A change that is about everybody is worked through in slices, so that what is about few is followed meanwhile. Whoever
has not had its turn is as it was: whom it may call is its view's to say, and that changes in one step. Nothing that
says who may call whom is taken before the work on what did so before is finished.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace

from xds.ads.messages import Received
from xds.ads.session import describe
from xds.control.callers import Callers
from xds.control.demand import DemandTracker
from xds.control.inputs import Blocker, OwnInputs
from xds.control.metrics import Metrics
from xds.control.proxy import Client, Proxy
from xds.control.slices import Rests, Slices
from xds.control.upstreams import UpstreamCatalog, here
from xds.envoy import names
from xds.mesh.chains import Elsewhere
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
from xds.mesh.settings import ConfigEntries
from xds.policy.operator import OperatorSettings
from xds.policy.proxies import Differing
from xds.policy.upstreams import Candidates

log = logging.getLogger(__name__)

REFUSED_KEPT = 256
"""Proxies that were refused which `/v1/sidecars` shows."""
SHAPING = frozenset((INTENTIONS, DEFAULT_ALLOW, SERVICE_NAMES, CONFIG_ENTRIES))
"""The facts that say who may call whom."""


class ControlPlane:
    """Control plane: facts in, resources out.

    Args:
        outbound: what holds for the outbound listeners of the whole mesh.
        on_demand: told whenever what has to be read changes.
        metrics: where to count.
        soon: runs something once all that is waiting to happen has happened, so that a thousand sidecars that come at
            once make one demand.
        later: runs something a moment later, for what is not worth doing each time that it could be.
    """

    def __init__(
        self,
        outbound: OperatorSettings,
        on_demand: Callable[[Demand], None],
        metrics: Metrics,
        soon: Callable[[Callable[[], None]], object],
        later: Callable[[Callable[[], None]], object],
    ) -> None:
        self.mesh = Mesh()
        self.metrics = metrics
        self._forbidden = outbound.forbidden
        self._soon = soon
        self._catalog = UpstreamCatalog(self.mesh, outbound)
        self._slices = Slices(soon)
        self._relisting = Rests(self._relist, later)
        self._proxies: dict[str, set[Proxy]] = {}
        self._left: dict[str, dict[str, Proxy]] = {}
        """Proxies that may reconnect, by service and service ID."""
        self._news: dict[str, int] = {}
        """Number of changes of its sidecars' inputs, by service."""
        self._refused: dict[str, Proxy] = {}
        """Proxies that were refused a moment ago, by service ID."""
        self._rejecting: set[Proxy] = set()
        """The proxies that rejected something that is meant for them."""
        self._callers = Callers(self.mesh, self._catalog, outbound, self._proxies, self._relisting.waiting)
        self._inputs = OwnInputs(self.mesh, self._catalog, outbound, self._callers.index, self._callers.views)
        self._demand = DemandTracker(
            self._catalog, self._callers.views, self._inputs.chains_elsewhere, on_demand, self._after_work
        )

    # -- proxies come and go --------------------------------------------------------------------------------------

    def attach(self, client: Client) -> Proxy:
        """Add a proxy that connected. It is served as soon as everything about it is known."""
        service = self._catalog.candidates.identity(client.node.cluster)
        if service != client.node.cluster:
            client = replace(client, node=replace(client.node, cluster=service))
        proxy = Proxy(client, self._callers.add(service))
        self._proxies.setdefault(service, set()).add(proxy)
        self.metrics.streams.labels("delta" if client.delta else "sotw").inc()
        self._demand.add_stream(proxy)
        self._update(proxy)
        self._demand.update_soon()
        return proxy

    def _admit(self, proxy: Proxy) -> None:
        """Read for a proxy that may act for its service, and take over what was made for it on an earlier stream."""
        self._demand.add_leaf(proxy)
        self._refused.pop(proxy.client.node.id, None)
        before = self._left.get(proxy.service, {}).pop(proxy.client.node.id, None)
        if before is not None:
            if before.leaf is not None and self.mesh.leaf(proxy.leaf_key) == before.leaf:
                proxy.resume(before)
            self._demand.remove(before)

    def _authorize(self, proxy: Proxy) -> None:
        """Find out whether a proxy may act for its service: by its client certificate, otherwise by its token."""
        if proxy.client.spiffe_ids and proxy.admitted is None and (place := here(self.mesh)) is not None:
            own = names.spiffe_id(proxy.service, place.datacenter, place.trust_domain)
            proxy.certified = own in proxy.client.spiffe_ids
            if proxy.certified:
                self._demand.remove_stream(proxy)  # nothing is asked about its token
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
                self._refused.pop(proxy.client.node.id, None)
                self._refused[proxy.client.node.id] = proxy
                if len(self._refused) > REFUSED_KEPT:
                    del self._refused[next(iter(self._refused))]
                log.warning(
                    "sidecar %r from %s may not act for service %r: %s",
                    proxy.client.node.id, proxy.client.peer, proxy.service, answer.reason,
                )  # fmt: skip
        if isinstance(answer, Authorized | StreamRefused):
            proxy.decide(answer)

    def forget_refusal(self, proxy: Proxy) -> None:
        """Show a proxy that was refused no longer."""
        if self._refused.get(proxy.client.node.id) is proxy:
            del self._refused[proxy.client.node.id]

    def detach(self, proxy: Proxy) -> None:
        """Remove a proxy whose stream ended; what was made for it is kept until `let_go`, since most reconnect."""
        self._proxies[proxy.service].discard(proxy)
        self._demand.remove_stream(proxy)
        self._rejecting.discard(proxy)
        self.metrics.rejecting.set(len(self._rejecting))
        self.metrics.streams.labels("delta" if proxy.client.delta else "sotw").dec()
        left = self._left.setdefault(proxy.service, {})
        if proxy.admitted:
            older = left.get(proxy.client.node.id)
            left[proxy.client.node.id] = proxy
            if older is not None:
                self._demand.remove(older)
        else:
            self._demand.remove(proxy)
            self._forget_service(proxy.service)
        self._demand.update_soon()

    def let_go(self, proxy: Proxy) -> None:
        """Forget a proxy that left a while ago and did not reconnect."""
        left = self._left.get(proxy.service, {})
        if left.get(proxy.client.node.id) is not proxy:
            return
        del left[proxy.client.node.id]
        self._demand.remove(proxy)
        self._forget_service(proxy.service)
        self._demand.update_soon()

    def _forget_service(self, service: str) -> None:
        """Forget a service of which no proxy is connected or may come again."""
        if self._left.get(service) or self._proxies[service]:
            return
        self._left.pop(service, None)
        del self._proxies[service]
        self._callers.drop(service)
        self._demand.remove_service(service)
        self._news.pop(service, None)

    def proxies(self) -> list[Proxy]:
        """Return the connected proxies, ordered by ID."""
        return _by_id(proxy for siblings in self._proxies.values() for proxy in siblings)

    def refused(self) -> list[Proxy]:
        """Proxies that were refused a moment ago, by ID."""
        return _by_id(self._refused.values())

    def note(self, proxy: Proxy, received: Received) -> None:
        """Log and count what a proxy answered."""
        if received.acknowledged is not None:
            self.metrics.acknowledged[received.acknowledged].inc()
        if received.unexplained is not None:
            log.error(
                "sidecar %r rejected a response without saying what of it: %r (each resource is tried alone)",
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

    # -- facts change ---------------------------------------------------------------------------------------------

    def apply(self, batch: Batch) -> None:
        """Take a batch of facts and bring every proxy that depends on them up to date."""
        if not batch.keys().isdisjoint(SHAPING):
            self._slices.finish()  # what is left to do is about the mesh as it was until now
        callers, names_before, entries_before = self._callers, self._catalog.candidates, self.mesh.config_entries
        assigned, before = callers.is_assignable(), (callers.changed, self._catalog.led)
        changed = self.mesh.apply(self._forbidden.applied(batch))
        if not changed:
            return
        self.metrics.facts_changed.inc(len(changed))
        moved: set[str | Elsewhere] = {
            key.of for key in changed if key.of and not isinstance(key.of, LeafKey | StreamKey)
        }
        asked = [
            proxy
            for key in changed
            if isinstance(key.of, StreamKey) and (proxy := self._demand.of_stream(key.of)) is not None
        ]
        stale, respelled = set[str](), set[str]()
        """The services whose sidecars' own resources may differ."""
        if changed & {INTENTIONS, SERVICE_NAMES, CONFIG_ENTRIES}:
            self._catalog.candidates = callers.candidates(names_before)
            stale |= callers.rename(names_before)
            respelled, more = callers.respelled(names_before)
            stale |= more
            self._part_with(names_before)
            moved |= names_before.names ^ self._catalog.candidates.names
        sources, destinations = frozenset[str](), frozenset[str]()
        if INTENTIONS in changed:
            sources, destinations = callers.index.replace(self.mesh.intentions or ())
        if callers.is_assignable():
            everybody = not assigned or changed & {DEFAULT_ALLOW, CONFIG_ENTRIES} or WILDCARD in sources
            if everybody:
                self._slices.run(callers.hold, callers.not_held())
            waiting = callers.to_assign(callers.views if everybody else callers.having(sources) | respelled)
            self._slices.run(self._assign, waiting, in_order=True)
        if not assigned or changed & {ROOTS, DATACENTER, DEFAULT_ALLOW} or WILDCARD in destinations:
            stale |= self._proxies.keys()
        stale |= callers.having(destinations)
        if changed & {ROOTS, DATACENTER}:
            moved |= self._demand.services
        if CONFIG_ENTRIES in changed:
            about = Differing(entries_before or ConfigEntries(), self.mesh.config_entries or ConfigEntries())
            moved |= {each for each in self._demand.services if about.as_upstream(each)}
            stale |= {each for each in self._proxies if about.as_sidecar(each)}
        touched, more = callers.refresh(moved, self._demand.services)
        if before != (callers.changed, self._catalog.led):
            self._demand.services_changed()
        moved |= touched
        # Who still waits for other upstreams will soon have more addresses to list, in a cold start thousands; who has
        # waited for this one is brought up to date before it is served.
        unread = {service for service in more if not callers.views[service].is_known()}
        stale |= (more - unread) | {each for each in moved if isinstance(each, str)}
        proxies = {proxy for service in stale for proxy in self._proxies.get(service, ())}
        for key in changed:
            if isinstance(key.of, LeafKey):
                proxies |= self._demand.with_leaf(key.of)
        for read in moved:
            proxies |= self._demand.readers(read)
        for service in stale | {proxy.service for proxy in proxies}:
            self._news[service] = self._news.get(service, 0) + 1
        for proxy in asked:
            self._authorize(proxy)
        self._slices.run(self._update, proxies.union(asked))
        self._relisting.ask(unread - stale)
        self._demand.update_soon()

    def _part_with(self, before: Candidates) -> None:
        """End the streams of proxies whose service the catalog spells otherwise now: they connect again as that one."""
        now = self._catalog.candidates
        for service in self._callers.having(map(fold, before.differing(now))):
            if now.identity(service) != service:
                for proxy in list(self._proxies.get(service, ())):
                    proxy.end(f"the catalog spells service {service!r} as {now.identity(service)!r}; connect again")

    def _relist(self, services: set[str]) -> None:
        """Bring the outbound listeners of these services' sidecars up to date."""
        for service in services:
            self._news[service] = self._news.get(service, 0) + 1
        self._slices.run(self._update, {proxy for each in services for proxy in self._proxies.get(each, ())})

    def _assign(self, service: str) -> None:
        """Work out anew whom ``service`` may call, and what that makes of its sidecars."""
        if service not in self._callers.views or not self._callers.assign(service):
            return
        self._news[service] = self._news.get(service, 0) + 1
        for proxy in self._proxies.get(service, ()):
            self._update(proxy)
        self._demand.services_changed()
        self._demand.update_soon()

    def _update(self, proxy: Proxy) -> None:
        """Bring one proxy's own resources up to date, or note what keeps it from being served.

        Whatever its registration may hold, it is nobody else's problem.
        """
        if proxy not in self._proxies.get(proxy.service, ()):
            return  # it left meanwhile
        if not proxy.admitted:
            self._authorize(proxy)
        if proxy.admitted is False:
            return  # its stream is ending
        blocker = self._inputs.blocker(proxy)
        unchanged = proxy.as_of == self._news.get(proxy.service, 0)  # since it left, where it came back
        if proxy.admitted and proxy.leaf is not None:
            self._demand.add_service(proxy.service)
        if blocker is None and not unchanged:
            try:
                self._demand.read_for(proxy, self._inputs.reads(proxy))
                inputs = self._inputs.of(proxy)
                if inputs is not None:
                    proxy.update(inputs)
                    proxy.as_of = self._news.get(proxy.service, 0)
            except Exception as error:
                blocker = Blocker(f"its registration can't be turned into Envoy's configuration: {error!r}")
                if proxy.ready:
                    log.error("sidecar %r keeps what it has: %s", proxy.client.node.id, blocker.reason)  # noqa: TRY400
        news = proxy.blocked_by(blocker.reason if blocker else None)
        self._callers.note_that_it_waits(proxy)
        if news and blocker and not proxy.ready:
            level = logging.DEBUG if blocker.passing else logging.WARNING
            log.log(level, "sidecar %r waits: %s", proxy.client.node.id, blocker.reason)
        self._demand.update_soon()  # whoever asked for this may have gone on long ago

    def _after_work(self, do: Callable[[], None]) -> None:
        """Call ``do`` once for all that is being worked out, not for each slice of it."""
        self._soon(lambda: self._slices.run(lambda _: do(), (None,), in_order=True))


def _by_id(proxies: Iterable[Proxy]) -> list[Proxy]:
    return sorted(proxies, key=lambda proxy: (proxy.client.node.id, proxy.client.peer))

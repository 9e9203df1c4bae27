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
======================================== =====================================================================

A change that is about one service costs that service's callers, whatever the size of the mesh: nothing here walks all
proxies, or all services, on its account. Everything runs on the event loop and waits for nothing: a batch is applied
whole before anything is sent.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from weakref import WeakValueDictionary

from xds.ads.messages import Received
from xds.ads.session import describe
from xds.control.metrics import Metrics
from xds.control.own import ExplicitTarget, SidecarInputs
from xds.control.proxy import Client, Proxy
from xds.control.tables import Changes, UpstreamTable, merge
from xds.control.upstreams import UpstreamCatalog, here, target_problems
from xds.control.views import ServiceView
from xds.envoy.inbound import Admission
from xds.envoy.outbound import OutboundSettings
from xds.mesh.chains import DiscoveryChain, Elsewhere, InstancesOf, query_chain
from xds.mesh.facts import WILDCARD, ExplicitUpstream, Leaf, LeafKey, LeafRefused
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
from xds.mesh.settings import ClusterMode, ConfigEntries, Extension, UpstreamSettings
from xds.policy.intentions import IntentionIndex, admission_problems, connection_policy, request_policy
from xds.policy.proxies import Differing, effective_settings, explicit_upstreams, extensions_of, implicit_settings
from xds.policy.upstreams import Candidates

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Blocker:
    """What keeps a proxy from being served. A ``passing`` one is a matter of reading on; others want an operator."""

    reason: str
    passing: bool = False


class ControlPlane:
    """Facts in, resources out.

    Args:
        outbound: what holds for the outbound listeners of the whole mesh.
        on_demand: told whenever what has to be read changes.
        metrics: where to count.
        soon: runs something once all that is waiting to happen has happened, so that a thousand sidecars that come at
            once make one demand.
    """

    def __init__(
        self,
        outbound: OutboundSettings,
        on_demand: Callable[[Demand], None],
        metrics: Metrics,
        soon: Callable[[Callable[[], None]], object],
    ) -> None:
        self.mesh = Mesh()
        self.metrics = metrics
        self._outbound = outbound
        self._on_demand = on_demand
        self._soon = soon
        self._demand = Demand()
        self._demand_stale = False
        self._catalog = UpstreamCatalog(self.mesh, strict_ports=outbound.strict_ports)
        self._tables: WeakValueDictionary[object, UpstreamTable] = WeakValueDictionary()
        self._index = IntentionIndex()
        self._views: dict[str, ServiceView] = {}
        self._spelled: dict[str, set[str]] = {}
        """The services with a view, by their name in lower case."""
        self._wide: set[str] = set()
        """The services with a view that may call everybody whom no intention singles out."""
        self._live: set[str] = set()
        """The services of which a proxy was given its certificate: nothing is read on behalf of the others."""
        self._proxies: dict[str, set[Proxy]] = {}
        self._left: dict[str, dict[str, Proxy]] = {}
        """By service and service ID, proxies that may come again."""
        self._news: dict[str, int] = {}
        """By service, how often something about its sidecars changed."""
        self._waiting_for: dict[str, dict[ServiceView, None]] = {}
        """By upstream that has not been read, the views that wait for it (and maybe for others)."""
        self._by_leaf: dict[LeafKey, set[Proxy]] = {}
        self._reading: dict[Proxy, frozenset[str | Elsewhere]] = {}
        """The proxies whose registration names upstreams, and what is read for these."""
        self._readers: dict[str | Elsewhere, set[Proxy]] = {}

    # -- proxies come and go --------------------------------------------------------------------------------------

    def attach(self, client: Client) -> Proxy:
        """A proxy connected. It is served as soon as everything about it is known."""
        service = client.node.cluster
        if service not in self._views:
            self._views[service] = ServiceView(
                service, self._catalog, self._table(UpstreamSettings(), ()), self._outbound
            )
            self._spelled.setdefault(service.lower(), set()).add(service)
            self._assign([service])
        proxy = Proxy(client, self._views[service])
        self._proxies.setdefault(service, set()).add(proxy)
        self._demand_stale |= proxy.leaf_key not in self._by_leaf
        self._by_leaf.setdefault(proxy.leaf_key, set()).add(proxy)
        before = self._left.get(service, {}).pop(client.node.id, None)
        if before is not None:
            if before.leaf is not None and self.mesh.leaf(proxy.leaf_key) == before.leaf:
                proxy.resume(before)
            self._drop(before)
        self.metrics.streams.labels("delta" if client.delta else "sotw").inc()
        if proxy.as_of == self._news.get(service, 0):
            proxy.blocked_by(None)  # nothing has changed since it left
            self._see_what_it_waits_for(self._views[service])
        else:
            self._update(proxy)
        self._want_demand()
        return proxy

    def detach(self, proxy: Proxy) -> None:
        """A proxy's stream ended. What is read and made for it is kept until `let_go`, since most come again."""
        self._proxies[proxy.service].discard(proxy)
        self.metrics.streams.labels("delta" if proxy.client.delta else "sotw").dec()
        left = self._left.setdefault(proxy.service, {})
        older = left.get(proxy.client.node.id)
        left[proxy.client.node.id] = proxy
        if older is not None:
            self._drop(older)

    def let_go(self, proxy: Proxy) -> None:
        """A proxy that left a while ago did not come again."""
        left = self._left.get(proxy.service, {})
        if left.get(proxy.client.node.id) is not proxy:
            return
        del left[proxy.client.node.id]
        self._drop(proxy)
        if not left and not self._proxies[proxy.service]:
            del self._left[proxy.service], self._proxies[proxy.service], self._views[proxy.service]
            self._spelled[proxy.service.lower()].discard(proxy.service)
            self._demand_stale = True
            self._wide.discard(proxy.service)
            self._live.discard(proxy.service)
            self._news.pop(proxy.service, None)
        self._want_demand()

    def _drop(self, proxy: Proxy) -> None:
        self._read_for(proxy, frozenset())
        with_leaf = self._by_leaf[proxy.leaf_key]
        with_leaf.discard(proxy)
        if not with_leaf:
            del self._by_leaf[proxy.leaf_key]
            self._demand_stale = True

    def proxies(self) -> list[Proxy]:
        """The connected proxies, by ID."""
        found = [proxy for siblings in self._proxies.values() for proxy in siblings]
        return sorted(found, key=lambda proxy: (proxy.client.node.id, proxy.client.peer))

    def note(self, proxy: Proxy, received: Received) -> None:
        """Log and count what a proxy answered."""
        if received.acknowledged is not None:
            self.metrics.acknowledged[received.acknowledged].inc()
        if received.unexplained is not None:
            log.error(
                "sidecar %s rejected a response without saying what of it: %s (each resource is tried alone)",
                proxy.client.node.id, received.unexplained,
            )  # fmt: skip
        for rejection in received.rejections:
            kind = describe(rejection.type_url)
            self.metrics.rejected.labels(kind).inc()
            log.error(
                "sidecar %s rejected %s %r, version %s: %s (it keeps what it had; this version is not sent again)",
                proxy.client.node.id, kind, rejection.name, rejection.version, rejection.reason,
            )  # fmt: skip

    # -- facts change ---------------------------------------------------------------------------------------------

    def apply(self, batch: Batch) -> None:
        """Take a batch of facts and bring every proxy that depends on them up to date."""
        names_before, entries_before, assigned = (
            self._catalog.candidates,
            self.mesh.config_entries,
            self._is_assignable(),
        )
        changed = self.mesh.apply(batch)
        if not changed:
            return
        self.metrics.facts_changed.inc(len(changed))
        moved: set[str | Elsewhere] = {key.of for key in changed if key.of and not isinstance(key.of, LeafKey)}
        stale: set[str] = set()
        """The services whose sidecars' own resources may differ."""
        if changed & {INTENTIONS, SERVICE_NAMES, CONFIG_ENTRIES}:
            self._catalog.candidates = self._candidates(names_before)
            stale |= self._rename(names_before)
        sources, destinations = frozenset[str](), frozenset[str]()
        if INTENTIONS in changed:
            sources, destinations = self._index.replace(self.mesh.intentions or ())
        if self._is_assignable():
            everybody = not assigned or changed & {DEFAULT_ALLOW, CONFIG_ENTRIES} or WILDCARD in sources
            stale |= self._assign(self._views if everybody else self._having_views(sources))
        if not assigned or changed & {ROOTS, DATACENTER, DEFAULT_ALLOW} or WILDCARD in destinations:
            stale |= self._proxies.keys()
        stale |= self._having_views(destinations)
        if changed & {ROOTS, DATACENTER}:
            moved |= self._demand.services
        if CONFIG_ENTRIES in changed:
            about = Differing(entries_before or ConfigEntries(), self.mesh.config_entries or ConfigEntries())
            moved |= {each for each in self._demand.services if about.as_upstream(each)}
            stale |= {each for each in self._proxies if about.as_sidecar(each)}
        led = self._catalog.led
        touched, more = self._refresh_upstreams(moved)
        self._demand_stale |= led != self._catalog.led
        moved |= touched
        stale |= more | {each for each in moved if isinstance(each, str)}
        proxies = {proxy for service in stale for proxy in self._proxies.get(service, ())}
        for key in changed:
            if isinstance(key.of, LeafKey):
                proxies |= self._by_leaf.get(key.of, set())
        for read in moved:
            proxies |= self._readers.get(read, set())
        for service in stale | {proxy.service for proxy in proxies}:
            self._news[service] = self._news.get(service, 0) + 1
        for proxy in proxies:
            self._update(proxy)
        self._want_demand()

    def _candidates(self, before: Candidates) -> Candidates:
        """The names that could be upstreams: of the catalog, and those that config entries or intentions speak of.

        In Consul (``agent/consul/state/catalog.go``) these have a virtual IP, with or without instances.
        """
        names, entries = self.mesh.service_names or frozenset(), self.mesh.config_entries
        spoken_of = {intention.destination for intention in self.mesh.intentions or ()} - {WILDCARD}
        found = Candidates(names | spoken_of | (entries.chain_names if entries else frozenset()))
        return before if found.names == before.names else found

    def _rename(self, before: Candidates) -> set[str]:
        """Follow the names that came and went; the services whose outbound listener may have new addresses to list."""
        now = self._catalog.candidates
        relisted: set[str] = set()
        for name in before.names - now.names:
            callers = self._callers(name)
            relisted |= {view.service for view in callers if view.count(view.size - 1)}
            for table in {view.table_of(name) for view in callers}:
                relisted |= self._renew(table, name, forget=True)
        for name in now.names - before.names:
            callers = self._callers(name)
            for view in callers:
                view.hold(frozenset([name]))
                relisted |= {view.service} if view.count(view.size + 1) else set()
                relisted |= self._tell_of(view, name)
        self._demand_stale |= before.names != now.names
        return relisted

    def _is_assignable(self) -> bool:
        """Whether it is known whom anybody may call."""
        mesh = self.mesh
        known = (mesh.service_names, mesh.default_allow, mesh.intentions, mesh.config_entries)
        return all(each is not None for each in known)

    def _assign(self, services: Iterable[str]) -> set[str]:
        """Work out anew whom these may call; those whose outbound listener may have new addresses to list."""
        default_allow, entries = self.mesh.default_allow, self.mesh.config_entries
        relisted: set[str] = set()
        if default_allow is None or entries is None or not self._is_assignable():
            return relisted
        for service in services:
            view = self._views[service]
            reach = self._index.reach(service, default_allow=default_allow)
            general, overridden = implicit_settings(service, entries)
            extensions = extensions_of(service, entries)
            table = self._table(general, extensions)
            special = {name: self._table(settings, extensions) for name, settings in overridden.items()}
            if (reach, table, special) == (view.reach, view.table, view.special):
                continue
            (self._wide.add if reach.others else self._wide.discard)(service)
            changes = view.assign(reach, table, special)
            self._demand_stale = True
            self._tell(view, changes)
            self._see_what_it_waits_for(view)
            relisted.add(service)
        return relisted

    def _table(self, settings: UpstreamSettings, extensions: tuple[Extension, ...]) -> UpstreamTable:
        key = settings, extensions
        found = self._tables.get(key)
        if found is None:
            found = self._tables[key] = UpstreamTable(self._catalog, self._outbound, settings, extensions)
        return found

    def _having_views(self, keys: Iterable[str]) -> set[str]:
        """The services with a view, by names in lower case."""
        return {service for key in keys for service in self._spelled.get(key, ())}

    def _callers(self, upstream: str) -> list[ServiceView]:
        """The views of the services that may call ``upstream``, or might if there were one of that name."""
        shared = self._index.shared.get(upstream.lower())
        services = set(self._wide) if shared is None else set(self._views) if shared else set()
        for service in self._having_views(self._index.sources_named_by(upstream)):
            (services.add if self._views[service].reach.includes(upstream) else services.discard)(service)
        services.discard(upstream)
        return [self._views[service] for service in services]

    def _refresh_upstreams(self, moved: Iterable[str | Elsewhere]) -> tuple[set[str], set[str]]:
        """Take notice of what moved.

        Returns:
            The upstreams that may differ, and the services whose outbound listener may have new addresses to list.
        """
        touched: set[str] = set()
        for key in moved:
            touched |= self._catalog.refresh(key)
        relisted: set[str] = set()
        for upstream in touched & self._catalog.candidates.names:
            forget = upstream not in self._demand.services and not self._callers(upstream)
            for table in [table for table in self._tables.values() if upstream in table.encoded]:
                relisted |= self._renew(table, upstream, forget=forget)
        return touched, relisted

    def _renew(self, table: UpstreamTable, upstream: str, *, forget: bool) -> set[str]:
        """Bring what stands of an upstream in a table up to date, and tell its callers; who has addresses to list."""
        listing, addresses = table.listing, table.addresses
        changes = table.forget(upstream) if forget else table.refresh(upstream)
        if upstream not in table.unknown:
            for view in self._waiting_for.pop(upstream, ()):
                self._see_what_it_waits_for(view)
        relisted: set[str] = set()
        if not changes and (listing, addresses) == (table.listing, table.addresses):
            return relisted
        for view in self._callers(upstream):
            if view.table_of(upstream) is not table:
                continue
            if table.listing != listing:
                merge(changes, view.refresh_hosts())
            if table.listing != listing or (table.addresses != addresses and self._answers_names(view)):
                relisted.add(view.service)
            self._tell(view, changes)
        return relisted

    def _tell_of(self, view: ServiceView, upstream: str) -> set[str]:
        """Tell a view of an upstream that is a new one to it; whether its listener may have addresses to list."""
        table = view.table_of(upstream)
        changes, encoded = table.names_of([upstream]), table.encoded[upstream]
        merge(changes, view.refresh_hosts() if encoded.hosts else {})
        self._tell(view, changes)
        is_told = encoded.hosts or any(self._outbound.lists(at, protocol) for at, protocol in encoded.dialed.items())
        return {view.service} if is_told or self._answers_names(view) else set()

    def _answers_names(self, view: ServiceView) -> bool:
        return any(proxy.client.node.dns_port for proxy in self._proxies.get(view.service, ()))

    def _tell(self, view: ServiceView, changes: Changes) -> None:
        for proxy in self._proxies.get(view.service, ()) if changes else ():
            if proxy.transparent:
                proxy.changed(changes)

    def _see_what_it_waits_for(self, view: ServiceView) -> None:
        """Note one upstream that a view waits for; once it waits for none, its proxies need not either.

        One is enough: whoever waits for a thousand is looked at again when that one has been read, not a thousand
        times.
        """
        proxies = self._proxies.get(view.service, set())
        waits_for = view.first_unknown()
        if waits_for is None:
            for proxy in proxies:
                proxy.settle()
        elif any(proxy.waits_for_upstreams for proxy in proxies):
            self._waiting_for.setdefault(waits_for, {})[view] = None

    def _update(self, proxy: Proxy) -> None:
        """Bring one proxy's own resources up to date, or note what keeps it from being served.

        Whatever its registration may hold, it is nobody else's problem.
        """
        blocker = self._blocker(proxy)
        if blocker is None:
            try:
                self._read_for(proxy, self._reads(proxy))
                inputs = self._inputs(proxy)
                if inputs is not None:
                    proxy.update(inputs)
                    proxy.as_of = self._news.get(proxy.service, 0)
            except Exception as error:
                blocker = Blocker(f"its registration can't be turned into Envoy's configuration: {error!r}")
                if proxy.ready:
                    log.error("sidecar %s keeps what it has: %s", proxy.client.node.id, blocker.reason)  # noqa: TRY400
        news = proxy.blocked_by(blocker.reason if blocker else None)
        if proxy.waits_for_upstreams:
            self._see_what_it_waits_for(self._views[proxy.service])
        if news and blocker and not proxy.ready:
            level = logging.DEBUG if blocker.passing else logging.WARNING
            log.log(level, "sidecar %s waits: %s", proxy.client.node.id, blocker.reason)

    def _blocker(self, proxy: Proxy) -> Blocker | None:
        node = proxy.client.node
        missing = self.mesh.missing()
        if missing:
            return Blocker(f"not read yet: {', '.join(missing)}", passing=True)
        # First whether it may have its key at all: nothing else is read on behalf of someone who may not.
        match self.mesh.leaf(proxy.leaf_key):
            case Leaf() as leaf:
                proxy.leaf = leaf
                if proxy.service not in self._live:
                    self._live.add(proxy.service)
                    self._demand_stale = True
            case LeafRefused(reason=reason) if proxy.leaf is None:
                return Blocker(f"no leaf certificate for service {node.cluster!r}: {reason}")
            case None if proxy.leaf is None:
                return Blocker(f"the leaf certificate of service {node.cluster!r} has not been read yet", passing=True)
        self._find_registration(proxy)
        if proxy.sidecar is None:
            if self.mesh.instances(node.cluster) is None:
                return Blocker(f"the instances of service {node.cluster!r} have not been read yet", passing=True)
            where = f" on node {node.node_name!r}" if node.node_name else ""
            return Blocker(
                f"no sidecar with service ID {node.id!r}{where} is registered for service {node.cluster!r};"
                " it is served the moment it is registered"
            )
        return None

    def _find_registration(self, proxy: Proxy) -> None:
        """Look up the registration. One that disappears goes on being followed as it last was."""
        node = proxy.client.node
        found = self.mesh.instances(node.cluster)
        registered = None
        for instance in found.instances if found else ():
            sidecar = instance.sidecar
            if (
                sidecar
                and sidecar.service == node.cluster
                and sidecar.service_id == node.id
                and node.node_name in ("", sidecar.node)
            ):
                registered = sidecar
                break
        if proxy.registered and registered is None:
            log.warning("sidecar %s is no longer registered; it keeps its last registration", node.id)
        if registered is not None and proxy.sidecar is not None and not proxy.registered:
            log.info("sidecar %s is registered again", node.id)
        proxy.registered = registered is not None
        if registered is not None:
            proxy.sidecar = registered

    def _inputs(self, proxy: Proxy) -> SidecarInputs | None:
        mesh, sidecar, leaf, place = self.mesh, proxy.sidecar, proxy.leaf, here(self.mesh)
        entries, roots, default_allow = mesh.config_entries, mesh.roots, mesh.default_allow
        if (
            sidecar is None
            or leaf is None
            or entries is None
            or roots is None
            or place is None
            or default_allow is None
        ):
            return None
        decisions = self._index.to_destination(sidecar.service)
        settings = effective_settings(sidecar, entries)
        mode = settings.clusters or self._outbound.clusters
        admission = Admission(
            connection_policy(decisions, default_allow=default_allow),
            request_policy(decisions, default_allow=default_allow),
            entries.token_providers,
        )
        return SidecarInputs(
            sidecar=sidecar,
            settings=settings,
            mesh=entries.mesh,
            admission=admission,
            problems=(
                *(str(problem) for problem in entries.problems if problem.concerns(sidecar.service)),
                *admission_problems(decisions, settings.protocol or "tcp", admission.missing_providers()),
            ),
            roots=roots,
            leaf=leaf,
            here=place,
            outbound=self._destinations_only(entries.mesh.destinations_only),
            listed=self._views[proxy.service].listed(),
            explicit=tuple(self._explicit_target(upstream) for upstream in explicit_upstreams(sidecar, entries)),
            hosts=self._views[proxy.service].hosts,
            dual_stack=proxy.client.node.dual_stack,
            clusters=mode,
            on_demand=self._is_on_demand(proxy, mode),
            dns_port=proxy.client.node.dns_port,
            named=self._views[proxy.service].named() if proxy.client.node.dns_port else (),
        )

    def _is_on_demand(self, proxy: Proxy, mode: ClusterMode) -> bool:
        """Whether its clusters are sent on demand; state of the world has no words for that."""
        large = mode is ClusterMode.AUTO and self._views[proxy.service].is_large
        return proxy.client.delta and (large or mode is ClusterMode.ON_DEMAND)

    def _served_upstreams(self, proxy: Proxy) -> list[ExplicitUpstream]:
        """The upstreams that its registration names and that can be served."""
        sidecar, entries = proxy.sidecar, self.mesh.config_entries
        if sidecar is None or entries is None:
            return []
        return [each for each in explicit_upstreams(sidecar, entries) if each.refusal is None]

    def _chain_of(self, upstream: ExplicitUpstream) -> DiscoveryChain | None:
        """The discovery chain of an explicit upstream, ``None`` while it has not been read."""
        if upstream.prepared_query:
            return query_chain(upstream.name, upstream.settings.protocol or "tcp")
        chain = self.mesh.chain(self._chain_key(upstream))
        return chain.speaking(upstream.settings.protocol) if chain is not None else None

    def _chain_key(self, upstream: ExplicitUpstream) -> str | InstancesOf:
        elsewhere = upstream.datacenter not in ("", self.mesh.datacenter)
        return InstancesOf(upstream.name, upstream.datacenter) if elsewhere else upstream.name

    def _explicit_target(self, upstream: ExplicitUpstream) -> ExplicitTarget:
        chain = self._chain_of(upstream)
        if upstream.refusal is not None or chain is None or chain.refusal is not None:
            return ExplicitTarget(upstream, chain, unread=chain is None)
        mode = upstream.settings.mesh_gateway
        unread = any(isinstance(each, str) and self.mesh.instances(each) is None for each in chain.reads(mode))
        found = tuple(
            (target, self._catalog.instances_of(target, upstream.settings)) for target in chain.targets.values()
        )
        problems = tuple(target_problems(self.mesh, upstream.name, chain, mode))
        return ExplicitTarget(upstream, chain, found, unread, problems)

    def _reads(self, proxy: Proxy) -> frozenset[str | Elsewhere]:
        """What is read because its registration names upstreams, their chains apart."""
        found: set[str | Elsewhere] = set()
        for upstream in self._served_upstreams(proxy):
            if not upstream.prepared_query:
                found.add(self._chain_key(upstream))
            chain = self._chain_of(upstream)
            if chain is not None:
                found |= chain.reads(upstream.settings.mesh_gateway)
        return frozenset(found)

    def _read_for(self, proxy: Proxy, found: frozenset[str | Elsewhere]) -> None:
        """Note what is read on behalf of one proxy alone."""
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
        self._demand_stale = True

    def _destinations_only(self, by_entry: bool) -> OutboundSettings:
        if not by_entry or self._outbound.destinations_only:
            return self._outbound
        return replace(self._outbound, destinations_only=True)

    # -- what has to be read --------------------------------------------------------------------------------------

    def _want_demand(self) -> None:
        if self._demand_stale:
            self._soon(self._update_demand)

    def _update_demand(self) -> None:
        if not self._demand_stale:
            return
        self._demand_stale = False
        implicit = self._catalog.candidates.reached_by_any((each, self._views[each].reach) for each in self._live)
        ends: set[str | Elsewhere] = {*self._live, *implicit}
        for upstream in self._catalog.leading_elsewhere():
            if upstream in implicit:
                ends |= self._catalog.leads_to(upstream)
        chains: set[InstancesOf] = set()
        for proxy, read in self._reading.items():
            if proxy.leaf is not None:
                ends |= read
                keys = {self._chain_key(each) for each in self._served_upstreams(proxy) if not each.prepared_query}
                chains |= {key for key in keys if isinstance(key, InstancesOf)}
        services = frozenset(end for end in ends if isinstance(end, str))
        elsewhere = frozenset(end for end in ends if not isinstance(end, str))
        demand = Demand(services, frozenset(self._by_leaf), elsewhere, frozenset(chains))
        if demand != self._demand:
            self._demand = demand
            self._on_demand(demand)

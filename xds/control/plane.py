"""The control plane: takes batches of facts, and brings every connected proxy up to date by them.

What depends on what, all of it:

======================================== =====================================================================
a fact that changes                      what is done again
======================================== =====================================================================
the instances or the chain of a service  its encoding as an upstream (and of services that share a virtual IP
                                         with it); its own sidecars; sidecars that name it as explicit upstream
intentions, default, service names       the set of upstreams of each service with a connected sidecar
trust domain, datacenter, config entries every upstream
roots, config entries, intentions, ...   each sidecar's own resources, where their inputs really differ
a leaf certificate                       the sidecars whose it is
======================================== =====================================================================

Everything here runs on the event loop and waits for nothing: a batch is applied whole before anything is sent.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, replace

from xds.ads.messages import Received
from xds.ads.session import describe
from xds.control.metrics import Metrics
from xds.control.proxy import Client, Proxy
from xds.control.upstreams import UpstreamCatalog, here, target_problems
from xds.control.views import Changes, ExplicitTarget, ServiceView, SidecarInputs, merge
from xds.envoy.inbound import Admission
from xds.envoy.outbound import OutboundSettings
from xds.mesh.chains import DiscoveryChain, Elsewhere, InstancesOf, query_chain
from xds.mesh.facts import WILDCARD, ExplicitUpstream, Leaf, LeafKey, LeafRefused
from xds.mesh.mesh import (
    BASE_FACTS,
    CONFIG_ENTRIES,
    DATACENTER,
    DEFAULT_ALLOW,
    INTENTIONS,
    ROOTS,
    SERVICE_NAMES,
    Batch,
    Demand,
    Key,
    Kind,
    Mesh,
)
from xds.policy.intentions import IntentionIndex, admission_problems, connection_policy, request_policy
from xds.policy.proxies import effective_settings, explicit_upstreams, extensions_of, upstream_settings
from xds.policy.upstreams import implicit_upstreams

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
    """

    def __init__(self, outbound: OutboundSettings, on_demand: Callable[[Demand], None], metrics: Metrics) -> None:
        self.mesh = Mesh()
        self.metrics = metrics
        self._outbound = outbound
        self._on_demand = on_demand
        self._demand = Demand()
        self._demand_stale = False
        self._catalog = UpstreamCatalog(self.mesh, strict_ports=outbound.strict_ports)
        self._index = IntentionIndex(())
        self._names: frozenset[str] = frozenset()
        """Who could be an upstream."""
        self._views: dict[str, ServiceView] = {}
        self._proxies: dict[str, set[Proxy]] = {}

    # -- proxies come and go --------------------------------------------------------------------------------------

    def attach(self, client: Client) -> Proxy:
        """A proxy connected. It is served as soon as everything about it is known."""
        service = client.node.cluster
        if service not in self._views:
            self._views[service] = ServiceView(self._catalog, self._outbound)
            self._assign([service])
        proxy = Proxy(client, self._views[service])
        self._proxies.setdefault(service, set()).add(proxy)
        self.metrics.streams.labels("delta" if client.delta else "sotw").inc()
        self._update(proxy)
        self._demand_stale = True
        self._update_demand()
        return proxy

    def detach(self, proxy: Proxy) -> None:
        """A proxy's stream ended."""
        siblings = self._proxies[proxy.service]
        siblings.discard(proxy)
        if not siblings:
            del self._proxies[proxy.service]
            del self._views[proxy.service]
        self.metrics.streams.labels("delta" if proxy.client.delta else "sotw").dec()
        self._demand_stale = True
        self._update_demand()

    def proxies(self) -> list[Proxy]:
        """The connected proxies, by ID."""
        found = [proxy for siblings in self._proxies.values() for proxy in siblings]
        return sorted(found, key=lambda proxy: (proxy.client.node.id, proxy.client.peer))

    def note(self, proxy: Proxy, received: Received) -> None:
        """Log and count what a proxy answered."""
        if received.acknowledged is not None:
            self.metrics.acknowledged.labels(describe(received.acknowledged)).inc()
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
        changed = self.mesh.apply(batch)
        if not changed:
            return
        self.metrics.facts_changed.inc(len(changed))
        if INTENTIONS in changed:
            self._index = IntentionIndex(self.mesh.intentions or ())
        relisted: set[str] = set()
        if changed & {INTENTIONS, DEFAULT_ALLOW, SERVICE_NAMES, CONFIG_ENTRIES}:
            self._names = self._candidates()
            relisted |= self._assign(self._views)
        moved: set[str | Elsewhere] = {key.of for key in changed if key.of and not isinstance(key.of, LeafKey)}
        self._demand_stale |= any(key.kind in (Kind.CHAIN, Kind.CONFIG_ENTRIES) for key in changed)
        if changed & {ROOTS, DATACENTER, CONFIG_ENTRIES}:
            moved |= self._demand.services
        touched, more = self._refresh_upstreams(moved)
        self._update_proxies(changed, moved | touched, relisted | more)
        self._update_demand()

    def _candidates(self) -> frozenset[str]:
        """The names that could be upstreams: of the catalog, and those that config entries or intentions speak of.

        In Consul (``agent/consul/state/catalog.go``) these have a virtual IP, with or without instances.
        """
        names, entries = self.mesh.service_names or frozenset(), self.mesh.config_entries
        spoken_of = {intention.destination for intention in self.mesh.intentions or ()} - {WILDCARD}
        return names | spoken_of | (entries.chain_names if entries else frozenset())

    def _assign(self, services: Iterable[str]) -> set[str]:
        """Work out anew which services these may call; those whose outbound listener has new addresses to list."""
        default_allow, entries = self.mesh.default_allow, self.mesh.config_entries
        relisted: set[str] = set()
        if self.mesh.service_names is None or default_allow is None or self.mesh.intentions is None or entries is None:
            return relisted
        for service in services:
            view = self._views[service]
            told = view.told()
            decisions = self._index.from_source(service)
            upstreams = {
                name: upstream_settings(service, name, entries)
                for name in implicit_upstreams(service, decisions, self._names, default_allow=default_allow)
            }
            extensions = extensions_of(service, entries)
            if (upstreams, extensions) != (view.upstreams, view.extensions):
                self._tell(service, view.assign(upstreams, extensions))
                self._demand_stale = True
            if view.told() != told:
                relisted.add(service)
        return relisted

    def _refresh_upstreams(self, moved: Iterable[str | Elsewhere]) -> tuple[set[str], set[str]]:
        """Take notice of what moved.

        Returns:
            The upstreams that may differ, and the services whose outbound listener has new addresses to list.
        """
        touched: set[str] = set()
        for key in moved:
            touched |= self._catalog.refresh(key)
        relisted: set[str] = set()
        for service, view in self._views.items() if touched else ():
            told = view.told()
            changes: Changes = {}
            affected = touched & view.upstreams.keys()
            for upstream in affected:
                merge(changes, view.refresh(upstream))
            self._tell(service, changes)
            if view.told() != told:
                relisted.add(service)
            if affected and not view.unknown:
                # What was held back until everything had been read need not wait any more.
                for proxy in self._proxies.get(service, ()):
                    proxy.wake.set()
        return touched, relisted

    def _tell(self, service: str, changes: Changes) -> None:
        if changes:
            for proxy in self._proxies.get(service, ()):
                if proxy.transparent:
                    proxy.changed(changes)

    def _update_proxies(self, changed: frozenset[Key], moved: Set[object], relisted: set[str]) -> None:
        """Update the proxies whose own resources may differ now, and those that are not served yet."""
        everyone = bool(changed & set(BASE_FACTS))
        leaves = {key.of for key in changed if key.kind is Kind.LEAF}
        for service, siblings in self._proxies.items():
            all_of_them = everyone or service in moved or service in relisted
            for proxy in siblings:
                if (
                    all_of_them
                    or not proxy.ready
                    or proxy.leaf_key in leaves
                    or not moved.isdisjoint(self._read_for(proxy))
                ):
                    self._update(proxy)

    def _update(self, proxy: Proxy) -> None:
        """Bring one proxy's own resources up to date, or note what keeps it from being served.

        Whatever its registration may hold, it is nobody else's problem.
        """
        blocker = self._blocker(proxy)
        if blocker is None:
            try:
                inputs = self._inputs(proxy)
                if inputs is not None:
                    proxy.update(inputs)
            except Exception as error:
                blocker = Blocker(f"its registration can't be turned into Envoy's configuration: {error!r}")
                if proxy.ready:
                    log.error("sidecar %s keeps what it has: %s", proxy.client.node.id, blocker.reason)  # noqa: TRY400
        news = proxy.blocked_by(blocker.reason if blocker else None)
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
                self._demand_stale |= proxy.leaf is None
                proxy.leaf = leaf
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
        if registered is not None and registered != proxy.sidecar:
            proxy.sidecar = registered
            self._demand_stale = True

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
            listed=tuple(sorted(self._views[proxy.service].listed.items())),
            explicit=tuple(self._explicit_target(upstream) for upstream in explicit_upstreams(sidecar, entries)),
            hosts=self._views[proxy.service].hosts,
            dual_stack=proxy.client.node.dual_stack,
            dns_port=proxy.client.node.dns_port,
            named=tuple(sorted(self._views[proxy.service].named.items())) if proxy.client.node.dns_port else (),
        )

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

    def _read_for(self, proxy: Proxy) -> set[str | Elsewhere]:
        """What is read because its registration names upstreams, chains apart."""
        found: set[str | Elsewhere] = set()
        for upstream in self._served_upstreams(proxy):
            if not upstream.prepared_query:
                found.add(self._chain_key(upstream))
            chain = self._chain_of(upstream)
            if chain is not None:
                found |= chain.reads(upstream.settings.mesh_gateway)
        return found

    def _destinations_only(self, by_entry: bool) -> OutboundSettings:
        if not by_entry or self._outbound.destinations_only:
            return self._outbound
        return replace(self._outbound, destinations_only=True)

    # -- what has to be read --------------------------------------------------------------------------------------

    def _update_demand(self) -> None:
        if not self._demand_stale:
            return
        self._demand_stale = False
        services: set[str] = set()
        leaves: set[LeafKey] = set()
        chains: set[InstancesOf] = set()
        ends: set[str | Elsewhere] = set()
        for service, siblings in self._proxies.items():
            for proxy in siblings:
                leaves.add(proxy.leaf_key)
                if proxy.leaf is not None:
                    services.add(service)
                    ends |= self._read_for(proxy)
                    keys = {self._chain_key(each) for each in self._served_upstreams(proxy) if not each.prepared_query}
                    services |= {key for key in keys if isinstance(key, str)}
                    chains |= {key for key in keys if isinstance(key, InstancesOf)}
            if any(proxy.leaf is not None for proxy in siblings):
                services |= self._views[service].upstreams.keys()
                for name, settings in self._views[service].upstreams.items():
                    chain = self.mesh.chain(name)
                    ends |= chain.reads(settings.mesh_gateway) if chain is not None else frozenset()
        services |= {end for end in ends if isinstance(end, str)}
        elsewhere = frozenset(end for end in ends if not isinstance(end, str))
        demand = Demand(frozenset(services), frozenset(leaves), elsewhere, frozenset(chains))
        if demand != self._demand:
            self._demand = demand
            self._on_demand(demand)

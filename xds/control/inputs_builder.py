"""Builds the inputs of one sidecar's own resources from the facts: its registration, its certificate, the settings."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

from xds.control.closed import NOBODY
from xds.control.proxy import Proxy
from xds.control.service_view import ServiceView
from xds.control.sidecar_inputs import ExplicitTarget, SidecarInputs
from xds.control.upstreams import UpstreamCatalog, here, target_problems
from xds.envoy.inbound import Admission
from xds.mesh.chains import DiscoveryChain, Elsewhere, InstancesOf, query_chain
from xds.mesh.config_entries import ClusterMode
from xds.mesh.facts import ExplicitUpstream, Leaf, LeafRefused, StreamUndecided
from xds.mesh.intentions import Action, TokenProvider
from xds.mesh.mesh import Mesh
from xds.mesh.names import fold
from xds.policy.intentions import Decisions, IntentionIndex, admission_problems, connection_policy, request_policy
from xds.policy.mesh_wide_settings import MeshWideSettings
from xds.policy.proxies import effective_settings, explicit_upstreams

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Blocker:
    """Reason why a proxy is not served. A ``passing`` one ends when more has been read; others need an operator."""

    reason: str
    passing: bool = False


class InputsBuilder:
    """Builder of `SidecarInputs` for any proxy."""

    def __init__(
        self,
        mesh: Mesh,
        catalog: UpstreamCatalog,
        mesh_wide: MeshWideSettings,
        index: IntentionIndex,
        views: Mapping[str, ServiceView],
    ) -> None:
        self._mesh = mesh
        self._catalog = catalog
        self._mesh_wide = mesh_wide
        self._index = index
        self._views = views

    def look_up(self, proxy: Proxy) -> None:
        """Give a proxy its certificate and its registration, once it may act for its service."""
        if self._mesh.missing() or not proxy.admitted:
            return
        leaf = self._mesh.leaf(proxy.leaf_key)
        if isinstance(leaf, Leaf):
            proxy.leaf = leaf
        if proxy.leaf is not None:
            self._find_registration(proxy)

    def blocker(self, proxy: Proxy) -> Blocker | None:
        """Return the reason why a proxy can't be served, ``None`` where it can."""
        node = proxy.client.node
        missing = self._mesh.missing()
        if missing:
            return Blocker(f"not read yet: {', '.join(missing)}", passing=True)
        # Authorization is first: nothing else is read on behalf of a proxy that may not act for its service.
        if not proxy.admitted:
            answer = self._mesh.authorization(proxy.stream_key)
            why = f": {answer.reason}" if isinstance(answer, StreamUndecided) else ""
            return Blocker(f"whether its token may act for {node.cluster!r} is not known yet{why}", passing=not why)
        if proxy.leaf is None:
            leaf = self._mesh.leaf(proxy.leaf_key)
            if isinstance(leaf, LeafRefused):
                return Blocker(f"no leaf certificate for service {node.cluster!r}: {leaf.reason}")
            return Blocker(f"the leaf certificate of service {node.cluster!r} has not been read yet", passing=True)
        if proxy.sidecar is None:
            if self._mesh.instances(node.cluster) is None:
                return Blocker(f"the instances of service {node.cluster!r} have not been read yet", passing=True)
            where = f" on node {node.node_name!r}" if node.node_name else ""
            return Blocker(
                f"no sidecar with service ID {node.id!r}{where} is registered for service {node.cluster!r};"
                " it is served the moment it is registered"
            )
        return None

    def _find_registration(self, proxy: Proxy) -> None:
        """Look up the registration. If it disappears, the proxy keeps its last one."""
        node = proxy.client.node
        found = self._mesh.instances(node.cluster)
        registered = None
        instances = found.instances if found is not None else ()
        for instance in instances:
            sidecar = instance.sidecar
            if (
                sidecar
                and fold(sidecar.service) == fold(node.cluster)
                and sidecar.service_id == node.id
                and node.node_name in ("", sidecar.node)
            ):
                registered = sidecar
                break
        if proxy.registered and registered is None:
            log.warning("sidecar %r is no longer registered; it keeps its last registration", node.id)
        if registered is not None and proxy.sidecar is not None and not proxy.registered:
            log.info("sidecar %r is registered again", node.id)
        proxy.registered = registered is not None
        if registered is not None:
            proxy.sidecar = registered

    def of(self, proxy: Proxy) -> SidecarInputs | None:
        """Return the inputs of a proxy's own resources, ``None`` while some fact is missing."""
        mesh, sidecar, leaf, place = self._mesh, proxy.sidecar, proxy.leaf, here(self._mesh)
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
        decisions = self._index.to_destination(sidecar.service, self._catalog.candidates.identity)
        settings = effective_settings(sidecar, entries)
        mode = settings.clusters or self._mesh_wide.clusters
        admission, excess = self._admission(decisions, entries.token_providers, default_allow=default_allow)
        return SidecarInputs(
            sidecar=sidecar,
            settings=settings,
            mesh=entries.mesh,
            admission=admission,
            problems=(
                *(str(problem) for problem in entries.problems if problem.concerns(sidecar.service)),
                *excess,
                *admission_problems(decisions, settings.protocol or "tcp", admission.missing_providers()),
            ),
            roots=roots,
            leaf=leaf,
            here=place,
            mesh_wide=self._destinations_only(entries.mesh.destinations_only),
            listed=self._views[proxy.service].listed(),
            explicit=tuple(self._explicit_target(upstream) for upstream in explicit_upstreams(sidecar, entries)),
            hosts=self._views[proxy.service].hosts,
            dual_stack=proxy.client.node.dual_stack,
            clusters=mode,
            on_demand=self._is_on_demand(proxy, mode),
            dns_port=proxy.client.node.dns_port,
            named=self._views[proxy.service].named() if proxy.client.node.dns_port else (),
        )

    def _admission(
        self, decisions: Decisions, providers: Mapping[str, TokenProvider], *, default_allow: bool
    ) -> tuple[Admission, tuple[str, ...]]:
        """Return who is admitted, and the reason if a quota closes the service."""
        denied = sum(each.action is Action.DENY for each in decisions.exact.values())
        for amount, what, quota in ((len(decisions.exact), "name", "sources"), (denied, "deny", "denied")):
            limit = getattr(self._mesh_wide.quotas, quota)
            if amount > limit:
                return NOBODY, (
                    f"its intentions {what} {amount} sources, and the quota {quota} is {limit} (gossamer serve --quota"
                    f" {quota}={amount}); no caller is admitted",
                )
        return Admission(
            connection_policy(decisions, default_allow=default_allow),
            request_policy(decisions, default_allow=default_allow),
            providers,
        ), ()

    def _is_on_demand(self, proxy: Proxy, mode: ClusterMode) -> bool:
        """Return whether its clusters are sent on demand, which the state-of-the-world protocol can't express."""
        large = mode is ClusterMode.AUTO and self._views[proxy.service].is_large
        return proxy.client.delta and (large or mode is ClusterMode.ON_DEMAND)

    def _served_upstreams(self, proxy: Proxy) -> list[ExplicitUpstream]:
        """Return the upstreams that a proxy's registration names and that can be served."""
        sidecar, entries = proxy.sidecar, self._mesh.config_entries
        if sidecar is None or entries is None:
            return []
        return [each for each in explicit_upstreams(sidecar, entries) if each.refusal is None]

    def _chain_of(self, upstream: ExplicitUpstream) -> DiscoveryChain | None:
        """Return the discovery chain of an explicit upstream, ``None`` while it has not been read."""
        if upstream.prepared_query:
            return query_chain(upstream.name, upstream.settings.protocol or "tcp")
        chain = self._catalog.chain(self._chain_key(upstream))
        return chain.speaking(upstream.settings.protocol) if chain is not None else None

    def _chain_key(self, upstream: ExplicitUpstream) -> str | InstancesOf:
        elsewhere = upstream.datacenter not in ("", self._mesh.datacenter)
        return InstancesOf(upstream.name, upstream.datacenter) if elsewhere else self._spelled(upstream.name)

    def _spelled(self, service: str) -> str:
        return self._catalog.candidates.spelled(service)

    def _explicit_target(self, upstream: ExplicitUpstream) -> ExplicitTarget:
        chain = self._chain_of(upstream)
        if upstream.refusal is not None or chain is None or chain.refusal is not None:
            return ExplicitTarget(upstream, chain, unread=chain is None)
        too_much = self._catalog.excess(chain)
        if too_much is not None:
            return ExplicitTarget(upstream, replace(chain, refusal=too_much))
        mode = upstream.settings.mesh_gateway
        unread = any(isinstance(each, str) and self._mesh.instances(each) is None for each in chain.reads(mode))
        found = tuple(
            (target, self._catalog.instances_of(target, upstream.settings)) for target in chain.targets.values()
        )
        problems = tuple(target_problems(self._mesh, upstream.name, chain, mode))
        return ExplicitTarget(upstream, chain, found, unread, problems)

    def reads(self, proxy: Proxy) -> frozenset[str | Elsewhere]:
        """Return what is read because a proxy's registration names upstreams, except their chains."""
        found: set[str | Elsewhere] = set()
        for upstream in self._served_upstreams(proxy):
            if not upstream.prepared_query:
                found.add(self._chain_key(upstream))
            chain = self._chain_of(upstream)
            if chain is not None:
                found |= chain.reads(upstream.settings.mesh_gateway)
        return frozenset(found)

    def _destinations_only(self, by_entry: bool) -> MeshWideSettings:
        if not by_entry or self._mesh_wide.destinations_only:
            return self._mesh_wide
        return replace(self._mesh_wide, destinations_only=True)

    def chains_elsewhere(self, proxy: Proxy) -> set[InstancesOf]:
        """Return the discovery chains of a proxy's explicit upstreams that other datacenters compile."""
        keys = [self._chain_key(each) for each in self._served_upstreams(proxy) if not each.prepared_query]
        return {key for key in keys if isinstance(key, InstancesOf)}

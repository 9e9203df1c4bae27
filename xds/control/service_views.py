"""The views of all services that have sidecars: what each may call, and the updates when upstreams change."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from weakref import WeakValueDictionary

from xds.control.changes import Changes, merge
from xds.control.connected import ConnectedProxies
from xds.control.proxy import Proxy
from xds.control.service_view import ServiceView
from xds.control.upstream_table import UpstreamTable
from xds.control.upstreams import UpstreamCatalog
from xds.mesh.chains import Elsewhere
from xds.mesh.config_entries import Extension, UpstreamSettings
from xds.mesh.mesh import Mesh
from xds.mesh.names import WILDCARD, fold
from xds.policy.intentions import IntentionIndex, Reach
from xds.policy.mesh_wide_settings import MeshWideSettings
from xds.policy.proxies import extensions_of, implicit_settings
from xds.policy.upstreams import Candidates


class ServiceViews:
    """Views of the services that have sidecars, by service.

    Each method that follows a change informs the proxies, and returns the services whose sidecars' own resources may
    differ because of it: their outbound listeners list addresses of upstreams.

    Args:
        mesh: the facts.
        catalog: the encoded upstreams.
        mesh_wide: the settings of the whole mesh.
        connected: the connected proxies.
        is_behind: returns whether the listeners of a service's sidecars lack addresses that have been read.
    """

    def __init__(
        self,
        mesh: Mesh,
        catalog: UpstreamCatalog,
        mesh_wide: MeshWideSettings,
        connected: ConnectedProxies,
        is_behind: Callable[[str], bool],
    ) -> None:
        self.by_service: dict[str, ServiceView] = {}
        self.index = IntentionIndex()
        self.changes = 0
        """Number of times that the upstreams of any service changed."""
        self._mesh = mesh
        self._catalog = catalog
        self._mesh_wide = mesh_wide
        self._connected = connected
        self._is_behind = is_behind
        self._tables: WeakValueDictionary[object, UpstreamTable] = WeakValueDictionary()
        self._spelled: dict[str, set[str]] = {}
        """The services with a view, by their folded name."""
        self._wide: set[str] = set()
        """Views that may call every service that no intention singles out."""
        self._overriding: set[str] = set()
        """Views that call some upstreams differently from the rest."""
        self._unassigned: set[str] = set()
        """Views whose intentions are out of date until they are assigned again."""
        self._waiting_for: dict[str, dict[ServiceView, None]] = {}
        """Views that wait for an upstream that has not been read (and perhaps for others), by that upstream."""

    def add(self, service: str) -> ServiceView:
        """Return the view of ``service``; make one if it has none."""
        if service not in self.by_service:
            table = self._table(UpstreamSettings(), ())
            self.by_service[service] = ServiceView(service, self._catalog, table, self._mesh_wide)
            self._spelled.setdefault(fold(service), set()).add(service)
            self.assign(service)
        return self.by_service[service]

    def drop(self, service: str) -> None:
        """Remove the view of ``service``, which has no sidecars any more."""
        del self.by_service[service]
        alike = self._spelled[fold(service)]
        alike.discard(service)
        if not alike:
            del self._spelled[fold(service)]
        self._wide.discard(service)
        self._overriding.discard(service)
        self._unassigned.discard(service)

    def rename(self, before: Candidates) -> set[str]:
        """Follow the names that came and went.

        Returns:
            The services whose outbound listener may have new addresses to list.
        """
        now = self._catalog.candidates
        relisted: set[str] = set()
        for name in before.names - now.names:
            relisted |= {view.service for view in self._callers(name) if view.count(view.size - 1)}
            # In all tables: services that could call it may have been denied since.
            for table in [table for table in self._tables.values() if name in table.encoded]:
                relisted |= self._renew(table, name, forget=True)
        for name in now.names - before.names:
            callers = self._callers(name)
            for view in callers:
                view.include(frozenset([name]))
                relisted |= {view.service} if view.count(view.size + 1) else set()
                relisted |= self._inform_of(view, name)
        self.changes += before.names != now.names
        return relisted

    def respelled(self, before: Candidates) -> tuple[set[str], set[str]]:
        """Follow the names that are spelled differently from ``before``.

        Returns:
            The services to assign again, and those whose intentions name another spelling.
        """
        now = self._catalog.candidates
        to_assign, destinations = set[str](), set[str]()
        for name in before.differing(now):
            to_assign |= {each for each in self._overriding if fold(name) in map(fold, self.by_service[each].special)}
            for intention in self.index.destinations_of(name):
                if before.identity(intention.source) != now.identity(intention.source):
                    if intention.destination == WILDCARD:
                        destinations |= self.by_service.keys()
                    else:
                        destinations |= self.having([fold(intention.destination)])
        return to_assign, destinations

    def is_assignable(self) -> bool:
        """Return whether everything is known that decides who may call whom."""
        mesh = self._mesh
        known = (mesh.service_names, mesh.default_allow, mesh.intentions, mesh.config_entries)
        return all(each is not None for each in known)

    def assign(self, service: str) -> bool:
        """Determine again what ``service`` may call, and how. Return whether that differs."""
        default_allow, entries = self._mesh.default_allow, self._mesh.config_entries
        self._unassigned.discard(service)
        if default_allow is None or entries is None or not self.is_assignable():
            return False
        view = self.by_service[service]
        reach = self.index.reach(service, default_allow=default_allow)
        general, overridden = implicit_settings(service, entries)
        extensions = extensions_of(service, entries)
        table = self._table(general, extensions)
        special = {
            self._catalog.candidates.spelled(name): self._table(settings, extensions)
            for name, settings in overridden.items()
        }
        if (reach, table, special) == (view.reach, view.table, view.special):
            return False
        _set_member(self._wide, service, member=reach.others)
        _set_member(self._overriding, service, member=bool(special))
        changes = view.assign(reach, table, special)
        self.changes += 1
        self._inform(view, changes)
        self.update_waiting(view)
        return True

    def to_assign(self, services: Iterable[str]) -> list[str]:
        """Note that these services are to be assigned, some of them later. Return them."""
        found = list(services)
        self._unassigned.update(found)
        return found

    def not_included(self) -> list[tuple[UpstreamTable, str]]:
        """Return newly reachable upstreams and the tables that must contain them."""
        default_allow = self._mesh.default_allow
        if default_allow is None:
            return []
        by_table: dict[UpstreamTable, list[tuple[str, Reach]]] = {}
        for service, view in self.by_service.items():
            reach = self.index.reach(service, default_allow=default_allow)
            by_table.setdefault(view.table, []).append((service, reach))
        candidates = self._catalog.candidates
        return [
            (table, name)
            for table, callers in by_table.items()
            for name in sorted(candidates.reached_by_any(callers) - table.encoded.keys())
        ]

    @staticmethod
    def include(where: tuple[UpstreamTable, str]) -> None:
        """Include an upstream in a table before it is looked up there."""
        table, upstream = where
        table.include(frozenset([upstream]))

    def having(self, keys: Iterable[str]) -> set[str]:
        """Return the services that have a view, by folded names."""
        return {service for key in keys for service in self._spelled.get(key, ())}

    def _callers(self, upstream: str) -> list[ServiceView]:
        """Return the views of the services that may call ``upstream``, or could if it existed."""
        shared = self.index.shared.get(fold(upstream))
        services = set(self._wide) if shared is None else set(self.by_service) if shared else set()
        for service in self.having(self.index.sources_named_by(upstream)):
            _set_member(services, service, member=self.by_service[service].reach.includes(upstream))
        # The index has the current intentions. When these views are assigned, their proxies are informed only of what
        # differs from before.
        services |= {each for each in self._unassigned if self.by_service[each].reach.includes(upstream)}
        services.discard(upstream)
        return [self.by_service[service] for service in services]

    def refresh(self, moved: Iterable[str | Elsewhere], wanted: frozenset[str]) -> tuple[set[str], set[str]]:
        """Follow changed instances and chains.

        Args:
            moved: the services and instances elsewhere that changed.
            wanted: the services to keep; of others, those without callers are removed.

        Returns:
            The upstreams that may differ, and the services whose sidecars' own resources may.
        """
        touched: set[str] = set()
        for key in moved:
            touched |= self._catalog.refresh(key)
        relisted: set[str] = set()
        for upstream in touched & self._catalog.candidates.names:
            forget = upstream not in wanted and not self._callers(upstream)
            for table in [table for table in self._tables.values() if upstream in table.encoded]:
                relisted |= self._renew(table, upstream, forget=forget)
        return touched, relisted

    def _renew(self, table: UpstreamTable, upstream: str, *, forget: bool) -> set[str]:
        """Bring an upstream in a table up to date, and inform its callers.

        Returns:
            The services whose outbound listener may have other addresses to list.
        """
        listing, addresses = table.listing, table.addresses
        changes = table.forget(upstream) if forget else table.refresh(upstream)
        relisted: set[str] = set()
        waiting = {} if upstream in table.unknown else self._waiting_for.pop(upstream, {})
        for view in waiting:
            if view.is_known() and self._is_behind(view.service):
                relisted.add(view.service)  # once brought up to date, they are served
            else:
                self.update_waiting(view)
        if not changes and (listing, addresses) == (table.listing, table.addresses):
            return relisted
        for view in self._callers(upstream):
            if view.table_of(upstream) is not table:
                continue
            if table.listing != listing:
                merge(changes, view.refresh_hosts())
            if table.listing != listing or (table.addresses != addresses and self._answers_names(view)):
                relisted.add(view.service)
            self._inform(view, changes)
        return relisted

    def _inform_of(self, view: ServiceView, upstream: str) -> set[str]:
        """Inform the proxies of a view of an upstream that is new to it.

        Returns:
            The view's service if its outbound listener may have addresses to list, otherwise none.
        """
        table = view.table_of(upstream)
        changes, encoded = table.names_of([upstream]), table.encoded[upstream]
        merge(changes, view.refresh_hosts() if encoded.hosts else {})
        self._inform(view, changes)
        is_listed = encoded.hosts or any(self._mesh_wide.lists(at, protocol) for at, protocol in encoded.dialed.items())
        return {view.service} if is_listed or self._answers_names(view) else set()

    def _answers_names(self, view: ServiceView) -> bool:
        return any(proxy.client.node.dns_port for proxy in self._connected.of_service(view.service))

    def _inform(self, view: ServiceView, changes: Changes) -> None:
        if changes:
            for proxy in self._connected.of_service(view.service):
                if proxy.transparent:
                    proxy.changed(changes)

    def update_waiting(self, view: ServiceView) -> None:
        """Note one upstream that a view waits for; once it waits for none, its proxies need not wait either.

        One upstream is enough: a view that waits for a thousand is checked again when that one has been read, not a
        thousand times.
        """
        proxies = self._connected.of_service(view.service)
        waits_for = view.first_unknown()
        if waits_for is None:
            for proxy in proxies:
                proxy.settle()
        elif any(proxy.waits_for_upstreams for proxy in proxies):
            self._waiting_for.setdefault(waits_for, {})[view] = None

    def note_waiting(self, proxy: Proxy) -> None:
        """Note the same for one proxy, so that its siblings need not be checked whenever one of many connects."""
        view = self.by_service[proxy.service]
        waits_for = view.first_unknown() if proxy.waits_for_upstreams else None
        if waits_for is not None:
            self._waiting_for.setdefault(waits_for, {})[view] = None

    def _table(self, settings: UpstreamSettings, extensions: tuple[Extension, ...]) -> UpstreamTable:
        key = settings, extensions
        found = self._tables.get(key)
        if found is None:
            found = self._tables[key] = UpstreamTable(self._catalog, self._mesh_wide, settings, extensions)
        return found


def _set_member(services: set[str], service: str, *, member: bool) -> None:
    """Add a service to a set, or remove it."""
    if member:
        services.add(service)
    else:
        services.discard(service)

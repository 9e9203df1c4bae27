"""Who calls whom: the views of the services that have sidecars, and what they are told when upstreams change."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from weakref import WeakValueDictionary

from xds.control.proxy import Proxy
from xds.control.tables import Changes, UpstreamTable, merge
from xds.control.upstreams import UpstreamCatalog
from xds.control.views import ServiceView
from xds.mesh.chains import Elsewhere
from xds.mesh.mesh import Mesh
from xds.mesh.names import WILDCARD, fold
from xds.mesh.settings import Extension, UpstreamSettings
from xds.policy.intentions import IntentionIndex, Reach
from xds.policy.operator import OperatorSettings
from xds.policy.proxies import extensions_of, implicit_settings
from xds.policy.upstreams import Candidates


class Callers:
    """Services that have sidecars, and the upstreams that each may call.

    Args:
        mesh: the facts.
        catalog: what upstreams contribute.
        outbound: what holds for the outbound listeners of the whole mesh.
        proxies: by service, the connected ones; whoever owns it changes it.
        behind: the services whose sidecars' listeners lack addresses that have been read; likewise.

    Each method that follows a change tells the proxies, and answers with the services whose sidecars' own resources may
    differ by it: their outbound listeners list addresses of upstreams.
    """

    def __init__(
        self,
        mesh: Mesh,
        catalog: UpstreamCatalog,
        outbound: OperatorSettings,
        proxies: Mapping[str, set[Proxy]],
        behind: Collection[str],
    ) -> None:
        self.views: dict[str, ServiceView] = {}
        self.index = IntentionIndex()
        self.changed = 0
        """Moves whenever somebody may call others than before."""
        self._mesh = mesh
        self._catalog = catalog
        self._outbound = outbound
        self._proxies = proxies
        self._behind = behind
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
        if service not in self.views:
            table = self._table(UpstreamSettings(), ())
            self.views[service] = ServiceView(service, self._catalog, table, self._outbound)
            self._spelled.setdefault(fold(service), set()).add(service)
            self.assign(service)
        return self.views[service]

    def drop(self, service: str) -> None:
        """``service`` has no sidecars any more."""
        del self.views[service]
        alike = self._spelled[fold(service)]
        alike.discard(service)
        if not alike:
            del self._spelled[fold(service)]
        self._wide.discard(service)
        self._overriding.discard(service)
        self._unassigned.discard(service)

    def candidates(self, before: Candidates) -> Candidates:
        """Return the names that can be upstreams: those of the catalog, and those that config entries or intentions
        name.

        In Consul (``agent/consul/state/catalog.go``) these have a virtual IP, with or without instances.
        """
        names, entries = self._mesh.service_names or frozenset(), self._mesh.config_entries
        spoken_of = {intention.destination for intention in self._mesh.intentions or ()} - {WILDCARD}
        found = Candidates(names, entries.chain_names if entries else (), spoken_of)
        return found if found.differing(before) else before

    def rename(self, before: Candidates) -> set[str]:
        """Follow the names that came and went; the services whose outbound listener may have new addresses to list."""
        now = self._catalog.candidates
        relisted: set[str] = set()
        for name in before.names - now.names:
            relisted |= {view.service for view in self._callers(name) if view.count(view.size - 1)}
            # Wherever it stands: those who could call it may have been denied since.
            for table in [table for table in self._tables.values() if name in table.encoded]:
                relisted |= self._renew(table, name, forget=True)
        for name in now.names - before.names:
            callers = self._callers(name)
            for view in callers:
                view.hold(frozenset([name]))
                relisted |= {view.service} if view.count(view.size + 1) else set()
                relisted |= self._tell_of(view, name)
        self.changed += before.names != now.names
        return relisted

    def respelled(self, before: Candidates) -> tuple[set[str], set[str]]:
        """Follow the names that are spelled otherwise than ``before``.

        Returns:
            The services that are to be assigned anew, and those whose intentions speak of another spelling.
        """
        now = self._catalog.candidates
        to_assign, destinations = set[str](), set[str]()
        for name in before.differing(now):
            to_assign |= {each for each in self._overriding if fold(name) in map(fold, self.views[each].special)}
            for intention in self.index.destinations_of(name):
                if before.identity(intention.source) != now.identity(intention.source):
                    everybody = intention.destination == WILDCARD
                    destinations |= set(self.views) if everybody else self.having([fold(intention.destination)])
        return to_assign, destinations

    def is_assignable(self) -> bool:
        """Whether it is known whom anybody may call."""
        mesh = self._mesh
        known = (mesh.service_names, mesh.default_allow, mesh.intentions, mesh.config_entries)
        return all(each is not None for each in known)

    def assign(self, service: str) -> bool:
        """Work out anew whom ``service`` may call, and how; whether that differs."""
        default_allow, entries = self._mesh.default_allow, self._mesh.config_entries
        self._unassigned.discard(service)
        if default_allow is None or entries is None or not self.is_assignable():
            return False
        view = self.views[service]
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
        (self._wide.add if reach.others else self._wide.discard)(service)
        (self._overriding.add if special else self._overriding.discard)(service)
        changes = view.assign(reach, table, special)
        self.changed += 1
        self._tell(view, changes)
        self.see_what_it_waits_for(view)
        return True

    def to_assign(self, services: Iterable[str]) -> list[str]:
        """Note that these are to be assigned, for which some may have to wait; the same."""
        found = list(services)
        self._unassigned.update(found)
        return found

    def not_held(self) -> list[tuple[UpstreamTable, str]]:
        """Return newly reachable upstreams and the tables that must contain them."""
        default_allow = self._mesh.default_allow
        if default_allow is None:
            return []
        by_table: dict[UpstreamTable, list[tuple[str, Reach]]] = {}
        for service, view in self.views.items():
            reach = self.index.reach(service, default_allow=default_allow)
            by_table.setdefault(view.table, []).append((service, reach))
        candidates = self._catalog.candidates
        return [
            (table, name)
            for table, callers in by_table.items()
            for name in sorted(candidates.reached_by_any(callers) - table.encoded.keys())
        ]

    @staticmethod
    def hold(where: tuple[UpstreamTable, str]) -> None:
        """See that an upstream stands in a table before anybody looks for it there."""
        table, upstream = where
        table.hold(frozenset([upstream]))

    def having(self, keys: Iterable[str]) -> set[str]:
        """Return the services that have a view, by folded names."""
        return {service for key in keys for service in self._spelled.get(key, ())}

    def _callers(self, upstream: str) -> list[ServiceView]:
        """Return the views of the services that may call ``upstream``, or could if it existed."""
        shared = self.index.shared.get(fold(upstream))
        services = set(self._wide) if shared is None else set(self.views) if shared else set()
        for service in self.having(self.index.sources_named_by(upstream)):
            (services.add if self.views[service].reach.includes(upstream) else services.discard)(service)
        # The index knows the intentions of now. When these are assigned, only what differs from what they had is told.
        services |= {each for each in self._unassigned if self.views[each].reach.includes(upstream)}
        services.discard(upstream)
        return [self.views[service] for service in services]

    def refresh(self, moved: Iterable[str | Elsewhere], wanted: frozenset[str]) -> tuple[set[str], set[str]]:
        """Take notice of what moved; of what is not ``wanted`` and called by nobody nothing is kept.

        Returns:
            The upstreams that may differ, and what every method answers with.
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
        """Bring what stands of an upstream in a table up to date, and tell its callers; who has addresses to list."""
        listing, addresses = table.listing, table.addresses
        changes = table.forget(upstream) if forget else table.refresh(upstream)
        relisted: set[str] = set()
        for view in self._waiting_for.pop(upstream, ()) if upstream not in table.unknown else ():
            if view.is_known() and view.service in self._behind:
                relisted.add(view.service)  # brought up to date, they are served
            else:
                self.see_what_it_waits_for(view)
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

    def see_what_it_waits_for(self, view: ServiceView) -> None:
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

    def note_that_it_waits(self, proxy: Proxy) -> None:
        """Note the same for one proxy of its service: of many that come at once, the others need no look for each."""
        view = self.views[proxy.service]
        waits_for = view.first_unknown() if proxy.waits_for_upstreams else None
        if waits_for is not None:
            self._waiting_for.setdefault(waits_for, {})[view] = None

    def _table(self, settings: UpstreamSettings, extensions: tuple[Extension, ...]) -> UpstreamTable:
        key = settings, extensions
        found = self._tables.get(key)
        if found is None:
            found = self._tables[key] = UpstreamTable(self._catalog, self._outbound, settings, extensions)
        return found

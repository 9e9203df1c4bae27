"""The implicit upstreams of one service, which all of its transparent sidecars are sent.

A view is small: it knows what its service may call, and which `UpstreamTable` has the resources.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from xds.control.changes import Changes, differences, merge
from xds.control.upstream_table import UpstreamTable
from xds.control.upstreams import EncodedUpstream, UpstreamCatalog
from xds.envoy.egress import EgressHost, scopes
from xds.envoy.resource import SCOPED_ROUTE, Resource
from xds.mesh.facts import VirtualAddress
from xds.policy.intentions import Reach
from xds.policy.mesh_wide_settings import MeshWideSettings
from xds.policy.upstreams import Candidates

NOTHING = Reach({}, {}, others=False)
LARGE = 500
"""Number of upstreams above which a view is large, until it has half as many (docs/performance.md: cost for Envoy)."""
LOOKED_UP = 16
"""Number of names up to which each is looked up by itself."""


class ServiceView:
    """Upstreams that the intentions let one service call. ``special`` holds the tables of those that it calls
    differently from other services.

    """

    def __init__(
        self, service: str, catalog: UpstreamCatalog, table: UpstreamTable, mesh_wide: MeshWideSettings
    ) -> None:
        self.service = service
        self.reach = NOTHING
        self.table = table
        self.special: Mapping[str, UpstreamTable] = {}
        self.egress: dict[str, dict[str, Resource]] = {}
        """Resources that lead to hosts outside the mesh. Several upstreams can stand for one host, so they are made for
        each view."""
        self.hosts: frozenset[EgressHost] = frozenset()
        self.size = 0
        """Number of upstreams."""
        self.is_large = False
        """Whether the upstreams are so many that their clusters are better sent on demand."""
        self._catalog = catalog
        self._mesh_wide = mesh_wide
        self._hidden: tuple[object, Mapping[str, set[str]]] = (None, {})
        self._shown: tuple[object, Mapping[str, set[str]]] = (None, {})
        self._listed: tuple[object, tuple[tuple[VirtualAddress, str], ...]] = (None, ())

    # -- upstreams -------------------------------------------------------------------------------------------------

    @property
    def candidates(self) -> Candidates:
        """Names that can be upstreams at all."""
        return self._catalog.candidates

    def reaches(self, upstream: str) -> bool:
        """Return whether the service may call ``upstream``."""
        return upstream in self.candidates.names and self.reach.includes(upstream) and upstream != self.service

    def upstreams(self) -> frozenset[str]:
        """Return every upstream."""
        return self.candidates.upstreams(self.service, self.reach)

    def table_of(self, upstream: str) -> UpstreamTable:
        """Return the table that has ``upstream``."""
        return self.special.get(upstream, self.table)

    def encoded(self) -> Iterator[tuple[str, EncodedUpstream]]:
        """Yield every upstream with its encoding, ordered by name."""
        for upstream in sorted(self.upstreams()):
            found = self.table_of(upstream).encoded.get(upstream)
            if found is not None:
                yield upstream, found

    def assign(self, reach: Reach, table: UpstreamTable, special: Mapping[str, UpstreamTable]) -> Changes:
        """Set what the service may call and how. Return the names of the resources that differ."""
        before, as_before = self.upstreams(), (table, special) == (self.table, self.special)
        changes: Changes = {} if as_before else self._names_of(before)
        self.reach, self.table, self.special = reach, table, special
        after = self.upstreams()
        self.count(len(after))
        self.include(after)
        merge(changes, self._names_of(before ^ after if as_before else after))
        merge(changes, self.refresh_hosts())
        return changes

    def count(self, size: int) -> bool:
        """Set the number of upstreams. Return whether the view became large, or is so no longer."""
        before, self.size = self.is_large, size
        self.is_large = size > (LARGE // 2 if self.is_large else LARGE)
        return before != self.is_large

    def include(self, upstreams: frozenset[str]) -> None:
        """Include these upstreams in its tables."""
        self.table.include(upstreams - self.special.keys())
        for upstream in upstreams & self.special.keys():
            self.special[upstream].include(frozenset([upstream]))

    def _names_of(self, upstreams: frozenset[str]) -> Changes:
        """Return the names of the resources of these upstreams."""
        others = self.table.encoded.keys() - upstreams if len(upstreams) > len(self.table.encoded) // 2 else None
        if others is not None and len(others) < len(upstreams):
            changes = self.table.names_of_all_but(others)
        else:
            changes = self.table.names_of(upstreams)
        for upstream in upstreams & self.special.keys():
            merge(changes, self.special[upstream].names_of([upstream]))
        return changes

    # -- their resources --- -----------------------------------------------------------------------------------------

    def get(self, type_url: str, name: str) -> Resource | None:
        """Return the resource of that name, ``None`` where there is none."""
        for upstream, table in self.special.items():
            if table.owners.get(type_url, {}).get(name) == upstream:
                return table.resources[type_url][name] if self.reaches(upstream) else None
        owner = self.table.owners.get(type_url, {}).get(name)
        if owner is not None and owner not in self.special and self.reaches(owner):
            return self.table.resources[type_url][name]
        return self.egress.get(type_url, {}).get(name)

    def owner(self, type_url: str, name: str) -> str | None:
        """Return the upstream that a resource belongs to, ``None`` where it belongs to none of this view."""
        for table in (*self.special.values(), self.table):
            found = table.owners.get(type_url, {}).get(name)
            if found is not None:
                return found
        return None

    def select(self, type_url: str, names: Collection[str]) -> list[Resource]:
        """Return those of these resources that exist."""
        table = self.table.resources.get(type_url)
        if table is None:
            return []
        if len(names) <= LOOKED_UP or self.special or self.egress:
            return [found for name in names if (found := self.get(type_url, name)) is not None]
        if not self.reach.others and len(self.reach.own) + len(self.reach.shared) < len(names):
            return [table[name] for name in self._shown_names().get(type_url, set()).intersection(names)]
        if not self._reaches_most():
            return [found for name in names if (found := self.get(type_url, name)) is not None]
        hidden = self._hidden_names().get(type_url, ())
        if not hidden:
            return [table[name] for name in names if name in table]
        return [table[name] for name in names if name in table and name not in hidden]

    def names(self, type_url: str) -> list[str]:
        """Return the names of every resource of a type."""
        found = [*self.egress.get(type_url, ())]
        if not self.special and self._reaches_most():
            return [*found, *(self.table.resources.get(type_url, {}).keys() - self._hidden_names().get(type_url, ()))]
        return [*found, *self._names_of(self.upstreams()).get(type_url, ())]

    def _reaches_most(self) -> bool:
        return self.reach.others and 2 * (len(self.reach.own) + len(self.reach.shared)) < len(self.table.encoded)

    def _hidden_names(self) -> Mapping[str, set[str]]:
        """Return the resource names of upstreams that the service may not call; used where these are few."""
        key = self.reach, self.candidates, self.table, self.table.revision
        if self._hidden[0] != key:
            self._hidden = key, self.table.names_of(self.candidates.denied(self.service, self.reach))
        return self._hidden[1]

    def _shown_names(self) -> Mapping[str, set[str]]:
        """Return the resource names of upstreams that the service may call; used where these are few."""
        key = self.reach, self.candidates, self.table, self.table.revision
        if self._shown[0] != key:
            self._shown = key, self.table.names_of(self.upstreams())
        return self._shown[1]

    def unknown(self) -> list[str]:
        """Return the upstreams that have not been read yet."""
        return sorted(self._unknown())

    def is_known(self) -> bool:
        """Return whether every upstream has been read."""
        return self.first_unknown() is None

    def first_unknown(self) -> str | None:
        """Return an upstream that has not been read yet, ``None`` where there is none."""
        return next(self._unknown(), None)

    def _unknown(self) -> Iterator[str]:
        unknown = self.table.unknown
        if unknown and len(self.reach.own) + len(self.reach.shared) < len(unknown) and not self.reach.others:
            among = self.upstreams()
            yield from (each for each in among if each in unknown and each not in self.special)
        else:
            yield from (each for each in unknown if each not in self.special and self.reaches(each))
        for upstream, table in self.special.items():
            if upstream in table.unknown and self.reaches(upstream):
                yield upstream

    def listed(self) -> tuple[tuple[VirtualAddress, str], ...]:
        """Return the upstreams' addresses that the outbound listener has to list, each with its protocol; sorted."""
        tables = dict.fromkeys((self.table, *self.special.values()))
        key = self.reach, self.candidates, tuple((table, table.listing) for table in tables)
        if self._listed[0] != key:
            found = {
                at: protocol
                for table in tables
                for at, (protocol, upstream) in table.listed.items()
                if self.table_of(upstream) is table and self.reaches(upstream)
            }
            self._listed = key, tuple(sorted(found.items()))
        return self._listed[1]

    def named(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Return the virtual IPs of each upstream, for DNS."""
        found = []
        for upstream, encoded in self.encoded():
            addresses = dict.fromkeys(at.ip for at in encoded.dialed if not at.own)
            if addresses:
                found.append((upstream, tuple(addresses)))
        return tuple(found)

    def refresh_hosts(self) -> Changes:
        """Make the resources for hosts outside the mesh again. Several services share routes, one for each port.

        Returns:
            The names of the resources that differ.
        """
        before, self.egress = self.egress, {}
        hosts: list[EgressHost] = []
        for table in dict.fromkeys((self.table, *self.special.values())):
            for upstream in sorted(table.with_hosts):
                if self.table_of(upstream) is table and self.reaches(upstream):
                    hosts += table.encoded[upstream].hosts
                    for type_url, by_name in table.encoded[upstream].egress.items():
                        self.egress.setdefault(type_url, {}).update(by_name)
        self.hosts = frozenset(hosts)
        if self.hosts:
            routes = scopes(self.hosts, destinations_only=self._mesh_wide.destinations_only)
            self.egress.setdefault(SCOPED_ROUTE, {}).update(routes)
        return differences(before, self.egress) if before or self.egress else {}

    def problems(self) -> dict[str, list[str]]:
        """Return what was set aside, by upstream."""
        return {upstream: list(encoded.problems) for upstream, encoded in self.encoded() if encoded.problems}

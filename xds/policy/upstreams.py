"""Determines which services a sidecar may call: the implicit upstreams.

Consul's rule (its intention topology): every service of the catalog that the intentions let the source call, where an
intention with HTTP permissions always counts as allow, minus the service itself and ``consul``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from xds.mesh.names import Spellings, fold
from xds.policy.intentions import Reach

CONSUL = "consul"
"""The servers' own service: in every catalog, in no mesh."""

GENERAL_KEPT = 4
"""There is one for a default of allow and one for deny; those of intentions that no longer hold are of no use."""


class Candidates:
    """Names that can be upstreams; immutable. Intentions match them regardless of case.

    Args:
        catalog: the names in the catalog.
        others: further names, of config entries and of intentions, the most authoritative first.
    """

    def __init__(self, catalog: Iterable[str] = (), *others: Iterable[str]) -> None:
        self.catalog = frozenset(catalog)
        self.identity = Spellings(self.catalog).of
        """Returns the spelling of a service that its certificate carries: the catalog's."""
        spellings = Spellings(self.catalog, *others)
        self.spelled = spellings.of
        """Returns how an upstream is spelled that the catalog may not know."""
        self.names = frozenset(name for name in spellings.names if fold(name) != CONSUL)
        self._general: dict[tuple[int, bool], tuple[Reach, frozenset[str]]] = {}

    def differing(self, other: Candidates) -> frozenset[str]:
        """Return the names that only one of the two knows, in the catalog or at all."""
        return (self.names ^ other.names) | (self.catalog ^ other.catalog)

    def upstreams(self, service: str, reach: Reach) -> frozenset[str]:
        """Return the upstreams that ``service`` may call. The part that all sources have in common is cached."""
        found = self._pick(reach.own, self._in_general(reach))
        return found - {service} if service in found else found

    def _in_general(self, reach: Reach) -> frozenset[str]:
        # By identity: ``shared`` is one object for all sources, and hashing its content for each of a thousand services
        # would take longer than the rest (benchmarks ``flip`` and ``appears``). The cache keeps the object alive.
        key = id(reach.shared), reach.others
        if key not in self._general:
            if len(self._general) >= GENERAL_KEPT:
                self._general.clear()
            self._general[key] = reach, self._pick(reach.shared, self.names if reach.others else frozenset())
        return self._general[key][1]

    def reached_by_any(self, sources: Iterable[tuple[str, Reach]]) -> frozenset[str]:
        """Return the union of `upstreams` of these sources, at the cost of what distinguishes them."""
        found: set[str] = set()
        not_by: dict[tuple[int, bool], Counter[str]] = {}
        count: Counter[tuple[int, bool]] = Counter()
        general: dict[tuple[int, bool], frozenset[str]] = {}
        for service, reach in sources:
            key = id(reach.shared), reach.others  # by identity, as in `_in_general`
            if key not in general:
                general[key], not_by[key] = self._in_general(reach), Counter()
            count[key] += 1
            mine = {name: allowed for own, allowed in reach.own.items() for name in self._spelled(own)} | {
                service: False
            }
            found.update(name for name, allowed in mine.items() if allowed)
            not_by[key].update(mine.keys())
        for key, names in general.items():
            found |= names - {name for name, times in not_by[key].items() if times == count[key]}
        return frozenset(found)

    def denied(self, service: str, reach: Reach) -> set[str]:
        """Return the upstreams that a specific intention denies to ``service``, and ``service`` itself."""
        singled_out = (
            name for verdicts in (reach.own, reach.shared) for key in verdicts for name in self._spelled(key)
        )
        return {service, *(name for name in singled_out if not reach.includes(name))}

    def _pick(self, verdicts: Mapping[str, bool], among: frozenset[str]) -> frozenset[str]:
        if not verdicts:
            return among
        denied = {name for key, allowed in verdicts.items() if not allowed for name in self._spelled(key)}
        allowed = {name for key, allowed in verdicts.items() if allowed for name in self._spelled(key)}
        return among - denied | allowed

    def _spelled(self, key: str) -> Iterable[str]:
        name = self.spelled(key)
        return (name,) if name in self.names else ()

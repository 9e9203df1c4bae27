"""Decides by Service Intentions, in their order of precedence.

Consul's order (Community Edition, "Intentions: precedence and match order"): an exact destination beats a wildcard
one, then an exact source beats a wildcard one; the first intention that matches decides, and where none matches the
default does. Permissions on HTTP requests and JSON Web Tokens can't be judged on a TCP connection: there they deny.

Consul ignores letter case where it matches intentions, but a certificate carries one spelling. So an intention that
allows applies to the catalog's spelling only, and one that denies to every spelling. A source with another spelling
gets no more than all other sources.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from xds.mesh.http import HTTP_PROTOCOLS
from xds.mesh.intentions import Action, Intention, Permission, TokenCheck
from xds.mesh.names import WILDCARD, fold


def precedence(intention: Intention) -> int:
    """Return Consul's number for how specific an intention is; the higher one wins (9, 8, 6 and 5)."""
    if intention.destination != WILDCARD:
        return 9 if intention.source != WILDCARD else 8
    return 6 if intention.source != WILDCARD else 5


@dataclass(frozen=True, slots=True)
class Decisions:
    """Decisions about every source of one destination.

    ``exact`` holds the sources that some intention singles out, as the catalog spells them, with that intention;
    ``otherwise`` is for all other sources, ``None`` when no intention is about them and the default decides.
    """

    exact: dict[str, Intention]
    otherwise: Intention | None

    def action(self, name: str, *, default_allow: bool) -> Action:
        """Return what holds for the source whose certificate carries ``name``, in just this spelling."""
        others = (Action.ALLOW if default_allow else Action.DENY) if self.otherwise is None else self.otherwise.action
        spelled = {fold(each): each for each in self.exact}.get(fold(name))
        if spelled is None:
            return others
        found = self.exact[spelled]
        if spelled == name:
            return found.action
        return others if grants_everything(found) else Action.DENY

    def all(self) -> list[Intention]:
        """Return every intention that decides about some name."""
        return [*self.exact.values(), *([self.otherwise] if self.otherwise else [])]


def grants_everything(intention: Intention) -> bool:
    """Return whether its sources may do whatever they like."""
    return intention.action is Action.ALLOW and not intention.needs_requests


@dataclass(frozen=True, slots=True)
class Reach:
    """Destinations that a source may call. Rules for every source exist once, however many sources there are.

    Names are folded. ``own`` holds the destinations that intentions of this very source name; ``shared`` those that
    intentions of every source name, and is one object for all; ``others`` is the verdict for every other one.
    """

    own: Mapping[str, bool]
    shared: Mapping[str, bool]
    others: bool

    def includes(self, name: str) -> bool:
        """Return whether the source may call ``name``."""
        key = fold(name)
        found = self.own.get(key)
        if found is None:
            found = self.shared.get(key)
        return self.others if found is None else found


class IntentionIndex:
    """Index of all intentions of a mesh by source and by destination. A change costs only what it is about."""

    def __init__(self, intentions: Iterable[Intention] = ()) -> None:
        self._all: frozenset[Intention] = frozenset()
        self._by_source: dict[str, dict[str, Intention]] = {}
        self._by_destination: dict[str, dict[str, Intention]] = {}
        self.shared: Mapping[str, bool] = {}
        """Verdicts for every source, by the destinations that its intentions name."""
        self.replace(intentions)

    def replace(self, intentions: Iterable[Intention]) -> tuple[frozenset[str], frozenset[str]]:
        """Hold these instead.

        Returns:
            The sources and the destinations, folded, of intentions that were added, removed or changed.
        """
        before, self._all = self._all, frozenset(intentions)
        changed = before ^ self._all
        for intention in before - self._all:
            source, destination = fold(intention.source), fold(intention.destination)
            _take(self._by_source, source, destination)
            _take(self._by_destination, destination, source)
        self._add(self._all - before)
        if sum(map(len, self._by_source.values())) != len(self._all):
            # With names that differ only in case, the removed ones do not determine which remain.
            self._by_source, self._by_destination = {}, {}
            self._add(self._all)
        sources = frozenset(fold(intention.source) for intention in changed)
        if WILDCARD in sources:
            self.shared = _verdicts(self._by_source.get(WILDCARD, {}))
        return sources, frozenset(fold(intention.destination) for intention in changed)

    def _add(self, intentions: Iterable[Intention]) -> None:
        # If two intentions name one pair of services in different spellings, the stricter one counts; it is last.
        for intention in sorted(intentions, key=_strictness, reverse=True):
            source, destination = fold(intention.source), fold(intention.destination)
            self._by_source.setdefault(source, {})[destination] = intention
            self._by_destination.setdefault(destination, {})[source] = intention

    def reach(self, source: str, *, default_allow: bool) -> Reach:
        """Return what ``source`` may call; an intention with HTTP permissions counts as allow, as in Consul."""
        mine = self._by_source.get(fold(source), {})
        general = mine.get(WILDCARD) or self._by_source.get(WILDCARD, {}).get(WILDCARD)
        others = default_allow if general is None else general.action is not Action.DENY
        return Reach(_verdicts(mine), self.shared, others)

    def sources_named_by(self, destination: str) -> Iterable[str]:
        """Return the sources, folded, that an intention to ``destination`` itself names."""
        return self._by_destination.get(fold(destination), {}).keys() - {WILDCARD}

    def destinations_of(self, source: str) -> Iterable[Intention]:
        """Return the intentions that name ``source`` itself as the source."""
        return self._by_source.get(fold(source), {}).values()

    def to_destination(self, destination: str, spelled: Callable[[str], str]) -> Decisions:
        """Return what the intentions decide about each source that calls ``destination``.

        Args:
            destination: a service.
            spelled: how the catalog spells a service.
        """
        found = [*self._by_destination.get(fold(destination), {}).values()]
        if destination != WILDCARD:
            found += self._by_destination.get(WILDCARD, {}).values()
        exact: dict[str, Intention] = {}
        for intention in sorted(found, key=lambda i: (-precedence(i), i.source)):
            if intention.source == WILDCARD:
                # Later ones have less precedence than an intention that matches every source.
                return Decisions(exact, intention)
            exact.setdefault(spelled(intention.source), intention)
        return Decisions(exact, None)


def _strictness(intention: Intention) -> tuple[int, str, str]:
    return _STRICTEST_FIRST.index(intention.action), intention.source, intention.destination


_STRICTEST_FIRST = (Action.DENY, Action.PERMISSIONS, Action.ALLOW)


def _take(index: dict[str, dict[str, Intention]], key: str, other: str) -> None:
    found = index.get(key, {})
    found.pop(other, None)
    if not found:
        index.pop(key, None)


def _verdicts(by_destination: Mapping[str, Intention]) -> dict[str, bool]:
    return {name: i.action is not Action.DENY for name, i in by_destination.items() if name != WILDCARD}


@dataclass(frozen=True, slots=True)
class ConnectionPolicy:
    """Policy that decides who may open a TCP connection to a service.

    One answer holds for most sources and the opposite one for ``exceptions``. As in Consul, the RBAC filter that is
    made of it lists what differs from the default: ``allow`` is that filter's action. It matches the exceptions only
    or, with ``every``, all sources except them.
    """

    allow: bool
    every: bool = False
    exceptions: tuple[str, ...] = ()
    """Exceptions as the catalog spells them. Permitted ones are permitted in this spelling only, denied ones in every
    one."""

    @property
    def others_permitted(self) -> bool:
        """Whether a source that is no exception may connect."""
        return self.every == self.allow


def connection_policy(decisions: Decisions, *, default_allow: bool) -> ConnectionPolicy:
    """Return the policy of a destination from what its intentions decide about each source.

    What needs the request denies a connection (Consul, ``agent/xds/rbac.go``).
    """
    admitted = {name: grants_everything(intention) for name, intention in decisions.exact.items()}
    otherwise = default_allow if decisions.otherwise is None else grants_everything(decisions.otherwise)
    exceptions = tuple(sorted(name for name, allowed in admitted.items() if allowed != otherwise))
    return ConnectionPolicy(allow=not default_allow, every=otherwise != default_allow, exceptions=exceptions)


def admission_problems(decisions: Decisions, protocol: str, missing_providers: Iterable[str]) -> Iterator[str]:
    """Return the problems of the intentions to a service of this protocol, because of which they deny.

    Args:
        decisions: what the intentions decide about its callers.
        protocol: that its sidecar speaks.
        missing_providers: JWT providers that they name and that do not exist or can't be used.
    """
    for intention in decisions.all():
        yield from intention.problems
        if intention.needs_requests and protocol not in HTTP_PROTOCOLS:
            yield (
                f"service-intentions/{intention.destination}: source {intention.source!r} is denied: what its intention"
                f" asks of requests can't be seen with protocol {protocol!r}; its service-defaults may set http"
            )
    if protocol in HTTP_PROTOCOLS:
        for provider in missing_providers:
            yield f"jwt-provider/{provider}: there is none that can be used; what needs a token of it is denied"


@dataclass(frozen=True, slots=True)
class Rule:
    """Rule for the requests of some sources.

    Without one of ``tokens``, where any are named, a request is denied. Then the first permission whose criteria the
    request meets decides: a request that lacks the token which that permission requires is denied, whatever later
    permissions and the default say (Consul, ``agent/xds/rbac.go``, ``removePermissionPrecedence``; where the default
    allows, Consul lets it through). Where no permission matches, ``otherwise`` applies.
    """

    otherwise: bool
    permissions: tuple[Permission, ...] = ()
    tokens: tuple[TokenCheck, ...] = ()


ALLOWED, DENIED = Rule(True), Rule(False)


@dataclass(frozen=True, slots=True)
class RequestPolicy:
    """Policy that decides who may send which requests to a service that speaks HTTP."""

    default_allow: bool
    """Default where no intention matches; an RBAC filter lists what differs from it."""
    exact: tuple[tuple[str, Rule], ...]
    """Rules by source, for the sources that some intention singles out, as the catalog spells them; sorted."""
    otherwise: Rule
    """Rule for every other source."""

    def other_spellings(self, rule: Rule) -> Rule:
        """Return the rule for other spellings of a source for which ``rule`` holds."""
        return self.otherwise if rule == ALLOWED else DENIED


def request_policy(decisions: Decisions, *, default_allow: bool) -> RequestPolicy:
    """Return the policy of a destination from what its intentions decide about each source."""
    exact = tuple((name, _rule(intention, default_allow)) for name, intention in sorted(decisions.exact.items()))
    otherwise = Rule(default_allow) if decisions.otherwise is None else _rule(decisions.otherwise, default_allow)
    return RequestPolicy(default_allow, exact, otherwise)


def _rule(intention: Intention, default_allow: bool) -> Rule:
    match intention.action:
        case Action.ALLOW:
            return Rule(True, tokens=intention.tokens)
        case Action.PERMISSIONS:
            return Rule(default_allow, intention.permissions, intention.tokens)
        case Action.DENY:
            return Rule(False)


def token_checks(policy: RequestPolicy) -> Iterator[TokenCheck]:
    """Yield every JSON Web Token that some rule of ``policy`` requires."""
    for rule in (*(rule for _, rule in policy.exact), policy.otherwise):
        yield from rule.tokens
        for permission in rule.permissions:
            yield from permission.tokens

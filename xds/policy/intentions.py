"""Service Intentions: precedence, and what they decide.

Consul's order (Community Edition, "Intentions: precedence and match order"): an exact destination beats a wildcard
one, then an exact source beats a wildcard one; the first intention that matches decides, and where none matches the
default does. Permissions on HTTP requests and JSON Web Tokens can't be judged on a TCP connection: there they deny.

Names are compared without regard to case, as Consul does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from xds.mesh.facts import WILDCARD
from xds.mesh.http import HTTP_PROTOCOLS
from xds.mesh.intentions import Action, Intention, Permission, TokenCheck


def precedence(intention: Intention) -> int:
    """Consul's number for how precise an intention is; the higher one wins (9, 8, 6 and 5)."""
    if intention.destination != WILDCARD:
        return 9 if intention.source != WILDCARD else 8
    return 6 if intention.source != WILDCARD else 5


@dataclass(frozen=True, slots=True)
class Decisions:
    """What holds for every source of one destination.

    ``exact`` holds the names that some intention singles out, in lower case, with that intention; ``otherwise`` is for
    all other names, ``None`` when no intention speaks for them and the default decides.
    """

    exact: dict[str, Intention]
    otherwise: Intention | None

    def action(self, name: str, *, default_allow: bool) -> Action:
        """What holds for the source ``name``."""
        found = self.exact.get(name.lower(), self.otherwise)
        if found is None:
            return Action.ALLOW if default_allow else Action.DENY
        return found.action

    def all(self) -> list[Intention]:
        """Every intention that decides about some name."""
        return [*self.exact.values(), *([self.otherwise] if self.otherwise else [])]


@dataclass(frozen=True, slots=True)
class Reach:
    """Whom a source may call, so that a thousand sources with one rule for everybody share that rule.

    Names are in lower case. ``own`` speaks of the destinations that intentions of this very source name; ``shared`` of
    those that intentions of every source do, and is one object for all; ``others`` of every other one.
    """

    own: Mapping[str, bool]
    shared: Mapping[str, bool]
    others: bool

    def includes(self, name: str) -> bool:
        """Whether it may call ``name``."""
        key = name.lower()
        found = self.own.get(key)
        if found is None:
            found = self.shared.get(key)
        return self.others if found is None else found


class IntentionIndex:
    """All intentions of a mesh, ready to answer for one source or one destination. A change costs what changed."""

    def __init__(self, intentions: Iterable[Intention] = ()) -> None:
        self._all: frozenset[Intention] = frozenset()
        self._by_source: dict[str, dict[str, Intention]] = {}
        self._by_destination: dict[str, dict[str, Intention]] = {}
        self.shared: Mapping[str, bool] = {}
        """What holds for every source, by the destinations that its intentions name."""
        self.replace(intentions)

    def replace(self, intentions: Iterable[Intention]) -> tuple[frozenset[str], frozenset[str]]:
        """Hold these instead.

        Returns:
            The sources and the destinations, in lower case, that an intention speaks of that came, went or changed.
        """
        before, self._all = self._all, frozenset(intentions)
        changed = before ^ self._all
        for intention in before - self._all:
            source, destination = intention.source.lower(), intention.destination.lower()
            _take(self._by_source, source, destination)
            _take(self._by_destination, destination, source)
        self._add(self._all - before)
        if sum(map(len, self._by_source.values())) != len(self._all):
            # Names that differ in case alone: which of them is left can't be told from what went.
            self._by_source, self._by_destination = {}, {}
            self._add(self._all)
        sources = frozenset(intention.source.lower() for intention in changed)
        if WILDCARD in sources:
            self.shared = _verdicts(self._by_source.get(WILDCARD, {}))
        return sources, frozenset(intention.destination.lower() for intention in changed)

    def _add(self, intentions: Iterable[Intention]) -> None:
        for intention in sorted(intentions, key=lambda i: (i.source, i.destination), reverse=True):
            source, destination = intention.source.lower(), intention.destination.lower()
            self._by_source.setdefault(source, {})[destination] = intention
            self._by_destination.setdefault(destination, {})[source] = intention

    def reach(self, source: str, *, default_allow: bool) -> Reach:
        """Whom ``source`` may call; an intention with HTTP permissions counts as allow, as in Consul."""
        mine = self._by_source.get(source.lower(), {})
        general = mine.get(WILDCARD) or self._by_source.get(WILDCARD, {}).get(WILDCARD)
        others = default_allow if general is None else general.action is not Action.DENY
        return Reach(_verdicts(mine), self.shared, others)

    def sources_named_by(self, destination: str) -> Iterable[str]:
        """The sources, in lower case, that an intention to ``destination`` itself names."""
        return self._by_destination.get(destination.lower(), {}).keys() - {WILDCARD}

    def to_destination(self, destination: str) -> Decisions:
        """What the intentions say of each source calling ``destination``."""
        found = [*self._by_destination.get(destination.lower(), {}).values()]
        if destination != WILDCARD:
            found += self._by_destination.get(WILDCARD, {}).values()
        exact: dict[str, Intention] = {}
        for intention in sorted(found, key=lambda i: (-precedence(i), i.source)):
            source = intention.source.lower()
            if source == WILDCARD:
                # Whatever comes later has less precedence than an intention that already matches every source.
                return Decisions(exact, intention)
            exact.setdefault(source, intention)
        return Decisions(exact, None)


def _take(index: dict[str, dict[str, Intention]], key: str, other: str) -> None:
    found = index.get(key, {})
    found.pop(other, None)
    if not found:
        index.pop(key, None)


def _verdicts(by_destination: Mapping[str, Intention]) -> dict[str, bool]:
    return {name: i.action is not Action.DENY for name, i in by_destination.items() if name != WILDCARD}


@dataclass(frozen=True, slots=True)
class ConnectionPolicy:
    """Who may open a TCP connection to a service.

    One answer holds for most sources and the opposite one for ``exceptions``. As in Consul, the RBAC filter that is
    made of it lists what departs from the default: ``allow`` is that filter's action, and it matches either just the
    exceptions or ``every`` source but them.
    """

    allow: bool
    every: bool = False
    exceptions: tuple[str, ...] = ()
    """In lower case."""

    @property
    def others_permitted(self) -> bool:
        """Whether a source that is no exception may connect."""
        return self.every == self.allow

    def permits(self, source: str) -> bool:
        """Whether ``source`` may connect."""
        return self.others_permitted != (source.lower() in self.exceptions)


def connection_policy(decisions: Decisions, *, default_allow: bool) -> ConnectionPolicy:
    """The policy of a destination from what its intentions decide about each source."""
    admitted = {name: _admits(intention) for name, intention in decisions.exact.items()}
    otherwise = default_allow if decisions.otherwise is None else _admits(decisions.otherwise)
    exceptions = tuple(sorted(name for name, allowed in admitted.items() if allowed != otherwise))
    return ConnectionPolicy(allow=not default_allow, every=otherwise != default_allow, exceptions=exceptions)


def _admits(intention: Intention) -> bool:
    """Whether a TCP connection is let in: what needs the request denies (Consul, agent/xds/rbac.go)."""
    return intention.action is Action.ALLOW and not intention.needs_requests


def admission_problems(decisions: Decisions, protocol: str, missing_providers: Iterable[str]) -> Iterator[str]:
    """What of the intentions to a service of this protocol can't be followed, so that they deny.

    Args:
        decisions: what the intentions say of its callers.
        protocol: that its sidecar speaks.
        missing_providers: the JWT providers that they name and that there aren't, or that can't be used.
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
    """What holds for the requests of some sources.

    Without one of ``tokens``, where any are named, a request is denied. Then the first permission that matches decides.
    Where none does it is ``otherwise``, but for a request that some permission would allow if it brought a token: that
    is denied.
    """

    otherwise: bool
    permissions: tuple[Permission, ...] = ()
    tokens: tuple[TokenCheck, ...] = ()


@dataclass(frozen=True, slots=True)
class RequestPolicy:
    """Who may send which requests to a service that speaks HTTP."""

    default_allow: bool
    """What holds where no intention matches; an RBAC filter lists what departs from it."""
    exact: tuple[tuple[str, Rule], ...]
    """By the sources that some intention singles out, in lower case and sorted."""
    otherwise: Rule
    """For every other source."""


def request_policy(decisions: Decisions, *, default_allow: bool) -> RequestPolicy:
    """The policy of a destination from what its intentions decide about each source."""
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
    """Every JSON Web Token that some rule of ``policy`` asks for."""
    for rule in (*(rule for _, rule in policy.exact), policy.otherwise):
        yield from rule.tokens
        for permission in rule.permissions:
            yield from permission.tokens

"""Service Intentions: precedence, and what they decide.

Consul's order (Community Edition, "Intentions: precedence and match order"): an exact destination beats a wildcard
one, then an exact source beats a wildcard one; the first intention that matches decides, and where none matches the
default does. Permissions on HTTP requests can't be judged on a TCP connection: there they deny.

Names are compared without regard to case, as Consul does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from xds.mesh.facts import WILDCARD, Action, Intention


def precedence(intention: Intention) -> int:
    """Consul's number for how precise an intention is; the higher one wins (9, 8, 6 and 5)."""
    if intention.destination != WILDCARD:
        return 9 if intention.source != WILDCARD else 8
    return 6 if intention.source != WILDCARD else 5


@dataclass(frozen=True, slots=True)
class Decisions:
    """What a fixed source says of every destination, or a fixed destination of every source.

    ``exact`` holds the names that some intention singles out, in lower case, with its action; ``otherwise`` is for all
    other names, ``None`` when no intention speaks for them and the default decides.
    """

    exact: dict[str, Action]
    otherwise: Action | None

    def action(self, name: str, *, default_allow: bool) -> Action:
        """What holds for ``name``."""
        found = self.exact.get(name.lower(), self.otherwise)
        if found is None:
            return Action.ALLOW if default_allow else Action.DENY
        return found


class IntentionIndex:
    """All intentions of a mesh, ready to answer for one source or one destination."""

    def __init__(self, intentions: Iterable[Intention]) -> None:
        self._by_source: dict[str, list[Intention]] = {}
        self._by_destination: dict[str, list[Intention]] = {}
        for intention in sorted(intentions, key=lambda i: (-precedence(i), i.source, i.destination)):
            self._by_source.setdefault(intention.source.lower(), []).append(intention)
            self._by_destination.setdefault(intention.destination.lower(), []).append(intention)

    def from_source(self, source: str) -> Decisions:
        """What the intentions say of ``source`` calling each destination."""
        return _decide(self._matching(self._by_source, source), lambda intention: intention.destination)

    def to_destination(self, destination: str) -> Decisions:
        """What the intentions say of each source calling ``destination``."""
        return _decide(self._matching(self._by_destination, destination), lambda intention: intention.source)

    @staticmethod
    def _matching(index: dict[str, list[Intention]], name: str) -> list[Intention]:
        found = [*index.get(name.lower(), ()), *(index.get(WILDCARD, ()) if name != WILDCARD else ())]
        return sorted(found, key=precedence, reverse=True)


def _decide(in_order: list[Intention], other_side: Callable[[Intention], str]) -> Decisions:
    exact: dict[str, Action] = {}
    for intention in in_order:
        name = other_side(intention).lower()
        if name == WILDCARD:
            # Whatever comes later has less precedence than an intention that already matches every name.
            return Decisions(exact, intention.action)
        exact.setdefault(name, intention.action)
    return Decisions(exact, None)


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
    # HTTP permissions on a TCP service deny (Consul, agent/xds/rbac.go: an L7 intention on a tcp service).
    admitted = {name: action is Action.ALLOW for name, action in decisions.exact.items()}
    otherwise = default_allow if decisions.otherwise is None else decisions.otherwise is Action.ALLOW
    exceptions = tuple(sorted(name for name, allowed in admitted.items() if allowed != otherwise))
    return ConnectionPolicy(allow=not default_allow, every=otherwise != default_allow, exceptions=exceptions)

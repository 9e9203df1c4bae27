"""State of a session for one type of resources: what the proxy asked for, what it has, what has to be checked."""

from __future__ import annotations

from dataclasses import dataclass, field

from xds.ads.messages import Rejection, Response
from xds.envoy.resource import Resource


@dataclass(slots=True)
class TypeState:
    """Subscription and state of one type: what a proxy asked for and what it has."""

    wildcard: bool = False
    named: set[str] = field(default_factory=set)
    has: dict[str, str] = field(default_factory=dict)
    """Versions by name that the proxy has once it acknowledged ``in_flight``. Empty: it knows that there is none."""
    good: dict[str, Resource] = field(default_factory=dict)
    """State of the world only: the last resource under each name that was not rejected, to be listed again."""
    rejected: dict[str, Rejection] = field(default_factory=dict)
    """The last rejection under each name, unless something newer was accepted."""
    refused: dict[str, list[str]] = field(default_factory=dict)
    """The versions that were rejected under each name, the last few."""
    closed: set[str] = field(default_factory=set)
    """Names whose newest version was rejected and that are therefore to be removed."""
    inherited: set[str] = field(default_factory=set)
    """Names that the proxy brought along and that this server has not sent or changed yet."""
    owed: set[str] = field(default_factory=set)
    """Names to send when this type is first asked for, even if the proxy has them."""
    ahead: set[str] = field(default_factory=set)
    """Names that are sent before the proxy asks for them. It asks as soon as it has their cluster."""
    dirty: set[str] = field(default_factory=set)
    suspects: list[str] = field(default_factory=list)
    """Names from a rejected response whose culprit is unknown, to be tried one by one."""
    in_flight: Response | None = None
    flying: tuple[Response, frozenset[str]] | None = None
    """Cached names of what is in flight."""
    clusters: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Clusters that the last accepted version names, by name."""
    last_nonce: str = ""
    asked: bool = False
    answered: bool = False
    acknowledged: int = 0
    sent: int = 0

"""Determines what one proxy wants: the resources that are meant for it, as far as it asked for them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Protocol

from xds.ads.state import TypeState
from xds.envoy.resource import CLUSTER, ENDPOINT, EXTENSION, LISTENER, ROUTE, SCOPED_ROUTE, SECRET, Resource

MAKE_ORDER = (SECRET, CLUSTER, ENDPOINT, EXTENSION, ROUTE, SCOPED_ROUTE, LISTENER)
"""Order in which resources are added and changed."""


class ResourceView(Protocol):
    """The resources meant for one proxy, always current."""

    def get(self, type_url: str, name: str) -> Resource | None:
        """Return the resource of that name, ``None`` where there is none."""

    def select(self, type_url: str, names: Collection[str]) -> list[Resource]:
        """Return those of these resources that exist, in any order; as `get` for each, but quick for a thousand of
        them."""

    def names(self, type_url: str) -> Iterable[str]:
        """Return every name of that type that a wildcard includes."""

    @property
    def on_demand(self) -> bool:
        """Whether clusters are sent to who asks for them by name, those of the proxy itself apart."""

    def asked_as(self, name: str) -> str | None:
        """Return the name by which a cluster has to be requested on demand; ``None`` where the wildcard includes it."""

    def complete(self) -> bool:
        """Return whether everything that is meant for the proxy has been read."""


class States(dict[str, TypeState]):
    """State by type; types that a proxy never mentions cost nothing."""

    def __missing__(self, type_url: str) -> TypeState:
        found = self[type_url] = TypeState()
        return found


class Wanted:
    """State that the two halves of a session share: where the resources are, and what is remembered of each type."""

    def __init__(self, view: ResourceView) -> None:
        self.view = view
        self.types = States()
        self.unsettled: set[str] = set()
        """Types with requests or changes since there was last nothing to send: only these are checked."""

    def is_on_demand(self, type_url: str) -> bool:
        """Return whether resources of a type are sent only to proxies that ask for them by name."""
        return type_url == CLUSTER and self.view.on_demand

    def wants(self, state: TypeState, type_url: str, name: str) -> bool:
        """Return whether the proxy asked for this resource, by its name or otherwise."""
        if name in state.named:
            return True
        asked_as = self.view.asked_as(name) if self.is_on_demand(type_url) else None
        return state.wildcard if asked_as is None else asked_as in state.named

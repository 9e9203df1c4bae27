"""The current facts, which change in batches and nowhere else.

A source delivers a `Batch`; `Mesh.apply` stores its facts and returns the keys whose value differs. An answer that is
the same as before therefore costs one comparison.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar, cast

from xds.mesh.chains import DiscoveryChain, Elsewhere, InstancesOf
from xds.mesh.config_entries import ConfigEntries
from xds.mesh.facts import (
    Authorized,
    Leaf,
    LeafKey,
    LeafRefused,
    Roots,
    ServiceInstances,
    StreamKey,
    StreamRefused,
    StreamUndecided,
)
from xds.mesh.intentions import Intention

Fact = TypeVar("Fact")


class Kind(enum.StrEnum):
    """Subject of a key."""

    ROOTS = "roots"
    INTENTIONS = "intentions"
    DEFAULT_ALLOW = "default intention policy"
    DATACENTER = "datacenter"
    SERVICE_NAMES = "service names"
    CONFIG_ENTRIES = "config entries"
    INSTANCES = "instances"
    CHAIN = "discovery chain"
    LEAF = "leaf certificate"
    STREAM = "authorization"


class Key(NamedTuple):
    """Key of one fact: its kind, and its service (or leaf) where there is one fact for each.

    A tuple, since facts are looked up dozens of times for each that changes.
    """

    kind: Kind
    of: str | Elsewhere | LeafKey | StreamKey = ""


Batch = Mapping[Key, object]
"""Facts by key; ``None`` takes a fact back."""

ROOTS = Key(Kind.ROOTS)
INTENTIONS = Key(Kind.INTENTIONS)
DEFAULT_ALLOW = Key(Kind.DEFAULT_ALLOW)
DATACENTER = Key(Kind.DATACENTER)
SERVICE_NAMES = Key(Kind.SERVICE_NAMES)
CONFIG_ENTRIES = Key(Kind.CONFIG_ENTRIES)

BASE_FACTS = (ROOTS, INTENTIONS, DEFAULT_ALLOW, DATACENTER, SERVICE_NAMES, CONFIG_ENTRIES)
"""Facts that must be known before any sidecar can be served."""


@dataclass(frozen=True, slots=True)
class Demand:
    """Facts that a source has to read besides the base facts: those that some connected proxy needs."""

    services: frozenset[str] = frozenset()
    """Their instances here and their discovery chains."""
    leaves: frozenset[LeafKey] = frozenset()
    elsewhere: frozenset[Elsewhere] = frozenset()
    """Instances in other datacenters, mesh gateways, results of prepared queries."""
    chains: frozenset[InstancesOf] = frozenset()
    """Discovery chains as other datacenters compile them."""
    streams: frozenset[StreamKey] = frozenset()
    """Streams whose tokens are checked for the right to act for their services."""

    def includes(self, key: Key) -> bool:
        """Return whether the fact ``key`` is part of it."""
        match key.kind:
            case Kind.INSTANCES:
                return key.of in self.services or key.of in self.elsewhere
            case Kind.CHAIN:
                return key.of in self.services or key.of in self.chains
            case Kind.LEAF:
                return key.of in self.leaves
            case Kind.STREAM:
                return key.of in self.streams
        return False

    def keys_beside(self, other: Demand) -> Iterator[Key]:
        """Return the facts that this demand names and ``other`` does not."""
        services = self.services - other.services
        yield from (Key(Kind.INSTANCES, each) for each in services | (self.elsewhere - other.elsewhere))
        yield from (Key(Kind.CHAIN, each) for each in services | (self.chains - other.chains))
        yield from (Key(Kind.LEAF, each) for each in self.leaves - other.leaves)
        yield from (Key(Kind.STREAM, each) for each in self.streams - other.streams)

    @classmethod
    def union(cls, demands: Iterable[Demand]) -> Demand:
        """Return the union of all these demands."""
        many = list(demands)
        return cls(
            frozenset().union(*(each.services for each in many)),
            frozenset().union(*(each.leaves for each in many)),
            frozenset().union(*(each.elsewhere for each in many)),
            frozenset().union(*(each.chains for each in many)),
            frozenset().union(*(each.streams for each in many)),
        )


class Mesh:
    """Holds the current facts. A fact that was never read is ``None``, which is not the same as an empty one."""

    def __init__(self) -> None:
        self._facts: dict[Key, object] = {}

    def apply(self, batch: Batch) -> frozenset[Key]:
        """Store the facts of ``batch``. Return the keys whose value differs from before."""
        changed = frozenset(key for key, fact in batch.items() if self._facts.get(key) != fact)
        for key in changed:
            if batch[key] is None:
                del self._facts[key]
            else:
                self._facts[key] = batch[key]
        return changed

    def missing(self) -> tuple[str, ...]:
        """Return the names of the base facts that have not been read yet."""
        return tuple(key.kind.value for key in BASE_FACTS if key not in self._facts)

    def fact(self, key: Key) -> object | None:
        """Return the fact under ``key``, ``None`` while it is unknown."""
        return self._facts.get(key)

    def _get(self, key: Key, _type: type[Fact]) -> Fact | None:
        return cast("Fact | None", self._facts.get(key))

    @property
    def roots(self) -> Roots | None:
        """The trusted certificate authorities."""
        return self._get(ROOTS, Roots)

    @property
    def intentions(self) -> tuple[Intention, ...] | None:
        """Every intention, in no particular order."""
        return cast("tuple[Intention, ...] | None", self._facts.get(INTENTIONS))

    @property
    def default_allow(self) -> bool | None:
        """Default where no intention matches."""
        return self._get(DEFAULT_ALLOW, bool)

    @property
    def datacenter(self) -> str | None:
        """Datacenter whose sidecars are served."""
        return self._get(DATACENTER, str)

    @property
    def service_names(self) -> frozenset[str] | None:
        """The names in the catalog, those of proxies among them."""
        return cast("frozenset[str] | None", self._facts.get(SERVICE_NAMES))

    @property
    def config_entries(self) -> ConfigEntries | None:
        """The config entries that shape sidecars."""
        return self._get(CONFIG_ENTRIES, ConfigEntries)

    def instances(self, service: str | Elsewhere) -> ServiceInstances | None:
        """Return the instances of ``service``, here or elsewhere; ``None`` while they have not been read."""
        return self._get(Key(Kind.INSTANCES, service), ServiceInstances)

    def chain(self, service: str | InstancesOf) -> DiscoveryChain | None:
        """Return the discovery chain of ``service``, here or elsewhere; ``None`` while it has not been read."""
        return self._get(Key(Kind.CHAIN, service), DiscoveryChain)

    def authorization(self, key: StreamKey) -> Authorized | StreamRefused | StreamUndecided | None:
        """Return whether a stream may be served, ``None`` while there is no answer."""
        return cast("Authorized | StreamRefused | StreamUndecided | None", self._facts.get(Key(Kind.STREAM, key)))

    def leaf(self, key: LeafKey) -> Leaf | LeafRefused | None:
        """Return the leaf certificate for ``key``, why it was refused, or ``None`` while there is no answer."""
        return cast("Leaf | LeafRefused | None", self._facts.get(Key(Kind.LEAF, key)))

"""Discovery requests and responses without their encoding: one form for both variants of the protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from xds.envoy.resource import Resource


@dataclass(slots=True)
class Request:
    """Discovery request of either variant, decoded. Immutable, since it may be shared.

    Not frozen: there are many, and freezing costs more than the rest of it.
    """

    type_url: str
    nonce: str = ""
    error: str | None = None
    """Envoy's words when it rejects the response ``nonce``."""
    subscribe: tuple[str, ...] = ()
    unsubscribe: tuple[str, ...] = ()
    initial_versions: Mapping[str, str] = field(default_factory=dict)
    names: tuple[str, ...] | None = None
    """State of the world only: all names that are wanted now."""


@dataclass(slots=True)
class Response:
    """Response to send next; immutable. ``version`` is the state-of-the-world version of the whole type."""

    type_url: str
    nonce: str
    version: str
    resources: tuple[Resource, ...]
    removed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rejection:
    """A resource that Envoy refused, with its reason."""

    type_url: str
    name: str
    version: str
    reason: str


@dataclass(slots=True)
class Received:
    """Result of a request about an earlier response; immutable."""

    acknowledged: str | None = None
    """The type whose outstanding response is now acknowledged."""
    rejections: tuple[Rejection, ...] = ()
    unexplained: str | None = None
    """Envoy's words where it rejected a response without naming a resource."""

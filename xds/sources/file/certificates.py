"""Certificates and authorizations of a mesh file: its authority issues them, its tokens decide who may have them."""

from __future__ import annotations

import hmac
import random
from collections.abc import Callable
from datetime import datetime

from xds.mesh.facts import CONTROL_PLANE_LEAF, Authorized, Leaf, LeafKey, LeafRefused, StreamKey, StreamRefused
from xds.mesh.mesh import Key, Kind
from xds.sources.authority import IssuedLeaf, issue
from xds.sources.file.loading import LoadedMesh


class Certificates:
    """Leaf certificates that are in use, and the verdicts about streams.

    Args:
        clock: returns the time, in UTC.
    """

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._chance = random.Random()  # noqa: S311 - jitter
        self._issued: dict[LeafKey, IssuedLeaf] = {}

    def authorizations(self, mesh: LoadedMesh, streams: frozenset[StreamKey]) -> dict[Key, object]:
        """Return whether each of these streams may be served."""
        return {Key(Kind.STREAM, each): _refusal(mesh, each.leaf) or Authorized() for each in streams}

    def leaves(self, mesh: LoadedMesh, keys: frozenset[LeafKey], *, anew: bool = False) -> dict[Key, object]:
        """Return the leaf of each key, or the reason why there is none; existing ones are kept unless ``anew``."""
        return {Key(Kind.LEAF, key): self._leaf(mesh, key, anew=anew) for key in keys}

    def _leaf(self, mesh: LoadedMesh, key: LeafKey, *, anew: bool) -> Leaf | LeafRefused:
        refusal, now = _refusal(mesh, key), self._clock()
        if mesh.authority.expires_at <= now:
            refusal = StreamRefused("the root certificate has expired: run gossamer ca rotate --distrust-old")
        if refusal is not None:
            self._issued.pop(key, None)
            return LeafRefused(refusal.reason)
        if anew or key not in self._issued:
            self._issued[key] = issue(mesh.authority, key.service, mesh.facts.datacenter, now, self._chance.random())
        return self._issued[key].leaf

    def forget(self, key: LeafKey) -> None:
        """Forget a leaf that is not needed any more."""
        self._issued.pop(key, None)

    def due(self) -> frozenset[LeafKey]:
        """Return the keys of the leaves that have to be renewed now."""
        now = self._clock()
        return frozenset(key for key, issued in self._issued.items() if issued.renew_at <= now)


def _refusal(mesh: LoadedMesh, key: LeafKey) -> StreamRefused | None:
    """Return the reason why a token may not act for a service, ``None`` where it may."""
    if key == CONTROL_PLANE_LEAF:
        return None
    tokens = mesh.facts.tokens.get(key.service)
    if tokens is None:
        return StreamRefused(f"the mesh file has no sidecar of a service {key.service!r}: add one")
    if key.certified or not tokens or any(_same(token, key.token) for token in tokens):
        return None
    what = "another token than" if key.token else "no token, not"
    return StreamRefused(
        f"the sidecar presents {what} the one that the mesh file names for {key.service!r}: start it with that one,"
        " in CONSUL_HTTP_TOKEN or with --token-file",
        unauthenticated=True,
    )


def _same(token: str, presented: str) -> bool:
    """Return whether tokens are equal, in a time that does not depend on what they have in common."""
    return hmac.compare_digest(token.encode(), presented.encode())

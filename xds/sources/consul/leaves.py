"""Reads leaf certificates from Consul, with one blocking query for each and the token that the sidecars presented."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from xds.mesh.facts import CONTROL_PLANE_LEAF, CONTROL_PLANE_SERVICE, LeafKey, LeafRefused
from xds.mesh.mesh import Batch, Key, Kind
from xds.sources import decode
from xds.sources.consul.blocking import Watch
from xds.sources.consul.client import ANONYMOUS, Consul, ConsulError, Reply
from xds.sources.consul.services import MakeWatch

FIRST_LEAVES_AT_ONCE = 16
"""Leaves that are requested for the first time at once: Consul signs 50 a second and queues no more than about 20
(``csr_max_per_second``)."""
PACE_S = 0.1
"""Seconds between two reads of one leaf."""

_OWN_REMEDY = (
    f'; xDS is served over TLS with the certificate of that service: add \'service "{CONTROL_PLANE_SERVICE}" {{ policy'
    ' = "write" }\' to the policy of the token, or give certificate files with --tls-cert and --tls-key'
)


class LeafWatches:
    """Watches of the leaf certificates that are needed.

    Args:
        client: the Consul to read.
        make: makes a watch.
        deliver: called with the facts.
        counted: called when the number of watches changed.
    """

    def __init__(
        self, client: Consul, make: MakeWatch, deliver: Callable[[Batch], None], counted: Callable[[], None]
    ) -> None:
        self._client = client
        self._make = make
        self._deliver = deliver
        self._counted = counted
        self._watches: dict[LeafKey, Watch] = {}
        self._wanted: frozenset[LeafKey] = frozenset()
        self._signing = asyncio.Semaphore(FIRST_LEAVES_AT_ONCE)

    def watches(self) -> Collection[Watch]:
        """Return the watches."""
        return self._watches.values()

    def error_of(self, key: LeafKey) -> str | None:
        """Return why a leaf can't be read, ``None`` where it can or is not needed."""
        return self._watches[key].state.error if key in self._watches else None

    def follow(self, keys: frozenset[LeafKey], tasks: asyncio.TaskGroup) -> None:
        """Keep these leaves current, and no others."""
        self._wanted = keys
        for key, watch in self._watches.items():
            watch.wanted = key in keys
        for key in sorted(keys - self._watches.keys()):
            self._watches[key] = self._watch(key)
            tasks.create_task(self._keep(key, self._watches[key], tasks))

    def _watch(self, key: LeafKey) -> Watch:
        path = f"/v1/agent/connect/ca/leaf/{key.service}"

        async def read(index: int | None, wait_s: float) -> Reply:
            # Gossamer's own token, which may change at any time, fetches its own certificate, and the next one of a
            # service that is proved by a client certificate.
            token = self._client.token if key.certified else key.token or ANONYMOUS
            # Agents of Consul (1.9 to 2.0) return a cached leaf to any client, regardless of the token.
            try:
                await self._client.check_may_write_service(key.service, token)
            except ConsulError as error:
                if key == CONTROL_PLANE_LEAF and error.forbidden:
                    raise ConsulError(f"{error}{_OWN_REMEDY}", error.status) from None
                raise
            if index is not None:
                return await self._client.read(path, index=index, wait_s=wait_s, token=token)
            async with self._signing:
                return await self._client.read(path, token=token)

        held = False

        def receive(reply: Reply) -> None:
            nonlocal held
            leaf = decode.leaf(reply.data)
            if leaf.service != key.service:
                raise ConsulError(f"Consul gave the certificate of {leaf.service!r} for {key.service!r}", 403)
            self._deliver({Key(Kind.LEAF, key): leaf})
            held = True

        def failed(error: ConsulError) -> None:
            # If Consul can't answer, the current certificate stays in use. If it refuses, new streams with that token
            # are refused.
            if error.forbidden or not held:
                self._deliver({Key(Kind.LEAF, key): LeafRefused(str(error))})

        return self._make(f"leaf certificate of {key.service}", read, receive, PACE_S, failed)

    async def _keep(self, key: LeafKey, watch: Watch, tasks: asyncio.TaskGroup) -> None:
        """Keep a leaf current until no proxy needs it."""
        while watch.wanted:
            await watch.turn()
        del self._watches[key]
        self._deliver({Key(Kind.LEAF, key): None})
        self._counted()
        if key in self._wanted:  # it was requested again since
            self.follow(self._wanted, tasks)

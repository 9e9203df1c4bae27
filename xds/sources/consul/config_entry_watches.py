"""Reads config entries, with one watch for each kind.

Consul has a list of all kinds (``/v1/config/``), for which one watch would suffice. But an agent that is no server
can't decode it (Consul 1.8 to 1.16: ``IndexedConfigEntries`` has one kind for all of its entries) and returns an error
as soon as there is an entry.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from xds.mesh.config_entries import EntryProblem
from xds.mesh.mesh import CONFIG_ENTRIES, Batch
from xds.sources import decode
from xds.sources.consul.client import Consul, ConsulError, Read, Reply
from xds.sources.consul.decoding import Remembered, off_loop
from xds.sources.decode import EntryFacts

log = logging.getLogger(__name__)

FOLLOWED = (
    "proxy-defaults", "service-defaults", "mesh", "service-router", "service-splitter", "service-resolver",
    "jwt-provider",
)  # fmt: skip
"""The kinds that shape sidecars or discovery chains."""
ALL = (
    *FOLLOWED, "service-intentions", "ingress-gateway", "terminating-gateway", "exported-services", "api-gateway",
    "bound-api-gateway", "http-route", "tcp-route", "inline-certificate", "sameness-group",
    "control-plane-request-limit",
)  # fmt: skip
"""Every kind of Consul's."""

READ_AT_ONCE = 8


async def read_kind(
    client: Consul, kind: str, index: int | None = None, wait_s: float = 0.0, *, known: bool = False
) -> Reply:
    """Read the entries of one kind; none where this Consul does not know that kind yet.

    Args:
        client: where to read.
        kind: of what kind.
        index: the index to wait for a change of.
        wait_s: how long to wait for that, in seconds.
        known: whether there were entries of that kind, so that it can't be unknown.

    Raises:
        ConsulError: Consul can't be read.
    """
    try:
        return await client.read(f"/v1/config/{kind}", index=index, wait_s=wait_s)
    except ConsulError as error:
        if known or "invalid config entry kind" not in str(error):
            raise
        if index is not None:
            await asyncio.sleep(wait_s)  # it will know the kind after an upgrade; until then there are no changes
        return Reply([], 1)


async def read_all(client: Consul, kinds: Iterable[str], *, whole: bool = False) -> list[Any]:
    """Return every entry of these kinds that the token may read; ``whole`` requires that it may read all of them.

    Raises:
        ConsulError: Consul can't be read.
    """
    reading = asyncio.Semaphore(READ_AT_ONCE)

    async def entries(kind: str) -> list[Any]:
        async with reading:
            reply = await read_kind(client, kind)
            if whole and reply.filtered:
                raise ConsulError(f"the token may not see every {kind} entry", 403)
            return list(reply.data or ())

    return [entry for found in await asyncio.gather(*map(entries, kinds)) for entry in found]


class ConfigEntryReader:
    """Collector of the entries of each kind, which delivers them once every kind has been read.

    Args:
        client: where to read.
        deliver: takes the facts.
        on_changed: called when an entry that shapes discovery chains may have changed, with the services that such
            entries speak.
    """

    def __init__(
        self, client: Consul, deliver: Callable[[Batch], None], on_changed: Callable[[frozenset[str]], None]
    ) -> None:
        self._client = client
        self._deliver = deliver
        self._on_changed = on_changed
        self._entries: dict[str, list[Any]] = {}
        self._facts: dict[str, list[EntryFacts]] = {}
        self._told = frozenset[EntryProblem]()
        self._decode = {kind: Remembered(_name, decode.entry_facts) for kind in FOLLOWED}

    def reader(self, kind: str) -> Read:
        """Return what reads and decodes the entries of one kind."""

        async def read(index: int | None, wait_s: float) -> Reply:
            reply = await read_kind(self._client, kind, index, wait_s, known=bool(self._entries.get(kind)))
            if index is not None and reply.index == index:
                return reply
            entries = list(reply.data or ())
            return replace(reply, facts=await off_loop(reply.size, self._decode[kind], entries))

        return read

    def receiver(self, kind: str) -> Callable[[Reply], None]:
        """Return what takes the entries of one kind."""

        def receive(reply: Reply) -> None:
            if reply.filtered:
                raise ConsulError(
                    f"the token may not read every {kind} entry: it needs service:read on all services, mesh:read", 403
                )
            before, entries = self._entries.get(kind), list(reply.data or ())
            self._entries[kind], self._facts[kind] = entries, reply.facts
            if len(self._entries) < len(FOLLOWED):
                return
            found = decode.combined(each for kind in FOLLOWED for each in self._facts[kind])
            for problem in found.problems:
                if problem not in self._told:
                    log.warning("config entry %s", problem)
            self._told = frozenset(found.problems)
            if before is None or _indices(before) != _indices(entries):
                self._on_changed(found.chain_names)
            self._deliver({CONFIG_ENTRIES: found})

        return receive


def _name(entry: Any) -> object:
    return entry.get("Name") if isinstance(entry, dict) and isinstance(entry.get("Name"), str) else None


def _indices(entries: list[Any]) -> set[tuple[Any, Any]]:
    return {(_name(entry), entry.get("ModifyIndex") if isinstance(entry, dict) else None) for entry in entries}

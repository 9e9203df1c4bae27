"""The config entries, one watch a kind.

There is a list of all kinds (``/v1/config/``), and one watch would do. But an agent that is no server can't decode it
(Consul 1.8 to 1.16: ``IndexedConfigEntries`` carries one kind for all of its entries) and answers with an error as soon
as there is an entry.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any

from xds.mesh.mesh import CONFIG_ENTRIES, Batch
from xds.sources import decode
from xds.sources.consul.client import Consul, ConsulError, Read, Reply

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
    """The entries of one kind; none where this Consul does not know that kind yet.

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
            await asyncio.sleep(wait_s)  # an upgrade will teach it; until then there is nothing to wake for
        return Reply([], 1)


async def read_all(client: Consul, kinds: Iterable[str], *, whole: bool = False) -> list[Any]:
    """Every entry of these kinds that the token may see, once; ``whole`` where it has to see all of them.

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
    """Takes the entries of each kind as they come, and hands them over once every kind has been read.

    Args:
        client: where to read.
        deliver: takes the facts.
        on_changed: told when an entry that shapes discovery chains may have changed, and of which services such
            entries speak.
    """

    def __init__(
        self, client: Consul, deliver: Callable[[Batch], None], on_changed: Callable[[frozenset[str]], None]
    ) -> None:
        self._client = client
        self._deliver = deliver
        self._on_changed = on_changed
        self._entries: dict[str, list[Any]] = {}

    def reader(self, kind: str) -> Read:
        """Reads the entries of one kind."""

        async def read(index: int | None, wait_s: float) -> Reply:
            return await read_kind(self._client, kind, index, wait_s, known=bool(self._entries.get(kind)))

        return read

    def taker(self, kind: str) -> Callable[[Reply], None]:
        """Takes the entries of one kind."""

        def take(reply: Reply) -> None:
            if reply.filtered:
                raise ConsulError(
                    f"the token may not read every {kind} entry: it needs service:read on all services, mesh:read", 403
                )
            before, entries = self._entries.get(kind), list(reply.data or ())
            decode.config_entries(entries)  # what makes no sense is refused before it is kept
            self._entries[kind] = entries
            if len(self._entries) < len(FOLLOWED):
                return
            found = decode.config_entries([entry for each in FOLLOWED for entry in self._entries[each]])
            for problem in found.problems:
                log.warning("config entry %s", problem)
            if before is None or _indices(before) != _indices(entries):
                self._on_changed(found.chain_names)
            self._deliver({CONFIG_ENTRIES: found})

        return take


def _indices(entries: list[Any]) -> set[tuple[Any, Any]]:
    return {(entry.get("Name"), entry.get("ModifyIndex")) for entry in entries}

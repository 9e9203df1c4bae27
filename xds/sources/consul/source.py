"""Reads a mesh from Consul: fixed watches, and one for each service and each leaf certificate.

Only what some connected proxy serves or may call is watched (`demand`), once, however many proxies share it. Every
answer is decoded into facts and delivered at once; an error changes nothing that was read before.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from xds.mesh.facts import CONTROL_PLANE_CERTIFICATE, CONTROL_PLANE_LEAF
from xds.mesh.mesh import (
    INTENTIONS,
    ROOTS,
    SERVICE_NAMES,
    Batch,
    Demand,
)
from xds.mesh.names import fold, usable_name
from xds.policy.quotas import DEFAULT_QUOTAS, Quotas
from xds.sources import decode
from xds.sources.consul.agent import AgentReader
from xds.sources.consul.authorization import StreamAuthorizer
from xds.sources.consul.blocking import Watch
from xds.sources.consul.client import Consul, ConsulError, Read, Reply, understanding
from xds.sources.consul.config_entry_watches import FOLLOWED, ConfigEntryReader
from xds.sources.consul.decoding import Remembered, off_loop
from xds.sources.consul.elsewhere import ElsewhereReader
from xds.sources.consul.leaves import LeafWatches
from xds.sources.consul.services import ServiceWatches

log = logging.getLogger(__name__)

SHARED_PACE_S = 0.1
"""Seconds between two reads of one list, at least. Every change of any of its entries ends the blocking query."""
NAMES_PACE_S = 1.0
"""Seconds between two reads of the catalog's names: the query returns on every change of any instance, with the whole
catalog."""
LEAST_WAIT_S = 30.0
MOST_WAIT_S = 600.0
"""Seconds: Consul's own limit for a blocking query."""
QUERIES_A_SECOND = 10.0
"""Blocking queries that return in a second where nothing changes, provided that each waits long enough."""


class FollowingError(Exception):
    """Error of the control plane while it applied facts; not a malformed answer of Consul's."""


class ConsulSource:
    """Source that reads a mesh from one Consul.

    Args:
        client: where to read.
        sink: takes each batch of facts.
        default_allow: what holds where no intention matches; ``None`` asks Consul.
        on_watches: told how many blocking queries there are whenever that changes.
        quotas: what the configuration of one service may come to.
    """

    def __init__(
        self,
        client: Consul,
        sink: Callable[[Batch], None],
        *,
        default_allow: bool | None,
        on_watches: Callable[[int], None],
        quotas: Quotas = DEFAULT_QUOTAS,
    ) -> None:
        self._quotas = quotas
        self._client = client
        self._sink = sink
        self._on_watches = on_watches
        self._chance = random.Random()  # noqa: S311 - jitter
        self._tasks: asyncio.TaskGroup | None = None
        self._demand = Demand()
        self._intentions_seen: set[tuple[str, str]] | None = None
        self._decode_intentions = Remembered(_pair, lambda entry: decode.intention(entry, quotas))
        self._names_seen: frozenset[str] | None = None
        self._names_body = b""
        self._spelled: dict[str, str] = {}
        """The spelling of each service, by its folded name."""
        self._reported: set[str] = set()
        """The failures that were logged since Consul last answered."""
        self._base = {
            "intentions": self.watch("intentions", self._read_intentions, self._deliver_intentions, SHARED_PACE_S),
            "catalog": self.watch("catalog", self._read_names, self._deliver_names, NAMES_PACE_S),
            "CA roots": self.watch(
                "CA roots", self._reader("/v1/connect/ca/roots"), self._deliver_roots, SHARED_PACE_S
            ),
        }
        self._services = ServiceWatches(client, self.watch, self.deliver, self._report, quotas)
        self._elsewhere = ElsewhereReader(client, self.watch, self.deliver, self._report, quotas)
        self._streams = StreamAuthorizer(client, self.deliver, self._chance)
        self._leaves = LeafWatches(client, self.watch, self.deliver, self._count)
        self._agent = AgentReader(client, self.deliver, self._report, default_allow, self._chance)
        entries = ConfigEntryReader(client, self.deliver, self._services.chains.entries_changed)
        for kind in FOLLOWED:
            name = f"{kind} entries"
            self._base[name] = self.watch(name, entries.reader(kind), entries.receiver(kind), SHARED_PACE_S)

    # -- from outside ---------------------------------------------------------------------------------------------

    def demand(self, demand: Demand) -> None:
        """Read what ``demand`` names from now on, and let go what it no longer names."""
        before, self._demand = self._demand, demand
        if self._tasks is None:
            return
        if replace(before, streams=demand.streams) == demand:  # streams change often, the rest rarely
            self._streams.follow(demand.streams, self._tasks)
        else:
            self._follow_demand(self._tasks)

    async def run(self) -> None:
        """Read until cancelled. Everything that is started here ends here."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            tasks.create_task(self._client.follow_token_file())
            tasks.create_task(self._agent.run())
            tasks.create_task(self._services.chains.run())
            tasks.create_task(self._streams.recheck(tasks))
            for watch in self._base.values():
                tasks.create_task(watch.run())
            self._follow_demand(tasks)

    async def asks_for_tokens(self) -> bool:
        """Return whether this Consul has ACLs; true where it does not answer, since each certificate asks again."""
        try:
            return await self._client.has_acls()
        except ConsulError:
            return True

    async def close(self) -> None:
        """Close the connections to Consul."""
        await self._client.close()

    def troubles(self) -> dict[str, str]:
        """Return what can't be read at the moment, with Consul's words."""
        states = {name: watch.state for name, watch in self._base.items()} | {"agent": self._agent.state}
        errors = {name: state.error for name, state in states.items()}
        errors[CONTROL_PLANE_CERTIFICATE] = self._leaves.error_of(CONTROL_PLANE_LEAF)
        return {name: error for name, error in errors.items() if error is not None}

    # -- watches --------------------------------------------------------------------------------------------------

    def watch(
        self,
        name: str,
        read: Read,
        deliver: Callable[[Reply], object],
        pace_s: float,
        on_failed: Callable[[ConsulError], None] | None = None,
    ) -> Watch:
        """Return a watch whose answers go to ``deliver``; an answer that makes no sense counts as a failure."""

        def receive(reply: Reply) -> None:
            with understanding():
                deliver(reply)
            if self._reported:
                log.info("Consul answers again")
                self._reported.clear()

        async def sound(index: int | None, wait_s: float) -> Reply:
            with understanding():
                return await read(index, wait_s)

        return Watch(
            name,
            sound,
            receive,
            on_replaced=self.read_everything_again,
            on_failed=on_failed,
            report=self._report,
            pace_s=pace_s,
            patience=self._patience,
            chance=self._chance,
        )

    def _patience(self) -> float:
        """Return the minimum number of seconds that a query waits: with many queries, each is repeated less often."""
        return min(max(LEAST_WAIT_S, self._count_of_watches() / QUERIES_A_SECOND), MOST_WAIT_S / 2)

    def _report(self, name: str, error: ConsulError) -> None:
        """Log a failure: once an outage where it is not about this one watch."""
        what = str(error) if error.status is not None else "unreachable"
        if what not in self._reported:
            log.warning("reading %s: %s; what was read before stays in use", name, error)
        self._reported.add(what)

    def _reader(self, path: str) -> Read:
        async def read(index: int | None, wait_s: float) -> Reply:
            return await self._client.read(path, index=index, wait_s=wait_s)

        return read

    def read_everything_again(self) -> None:
        """Read everything again, because Consul's state was replaced and no index is valid."""
        for watch in (
            *self._base.values(),
            *self._services.watches(),
            *self._elsewhere.watches(),
            *self._leaves.watches(),
        ):
            watch.read_again()

    def deliver(self, batch: Batch) -> None:
        """Deliver facts to the sink.

        Raises:
            FollowingError: they could not be followed, which is nobody's fault but ours.
        """
        try:
            self._sink(batch)
        except Exception as error:
            raise FollowingError(f"following {', '.join(str(key) for key in batch)} failed") from error

    def _follow_demand(self, tasks: asyncio.TaskGroup) -> None:
        self._services.follow(self._demand.services, tasks)
        self._elsewhere.follow(self._demand, tasks)
        self._streams.follow(self._demand.streams, tasks)
        self._leaves.follow(self._demand.leaves, tasks)
        self._count()

    def _count(self) -> None:
        self._on_watches(self._count_of_watches())

    def _count_of_watches(self) -> int:
        return len(self._base) + self._services.count() + len(self._elsewhere.watches()) + len(self._leaves.watches())

    # -- base facts -----------------------------------------------------------------------------------------------

    async def _read_intentions(self, index: int | None, wait_s: float) -> Reply:
        """Read the list of intentions, and make sure that it is complete.

        A token without the right to read intentions gets an empty list and no error. Under a default of allow that
        would open everything, and so would an incomplete list. Therefore the first list, and every list that lost an
        intention, is believed only if the token may ask which intentions match an arbitrary service; Consul refuses
        that outright without the right.
        """
        reply = await self._client.read("/v1/connect/intentions", index=index, wait_s=wait_s)
        if reply.filtered:
            raise ConsulError("the token may not read every intention: it needs intentions:read on all services", 403)
        if self._intentions_seen is None or not self._intentions_seen <= _pairs(reply.data):
            params = (("by", "destination"), ("name", "gossamer-may-read-intentions"))
            await self._client.read("/v1/connect/intentions/match", params=params)
        if index is not None and reply.index == index:
            return reply
        entries = list(reply.data or ())
        return replace(reply, facts=await off_loop(reply.size, self._decode_intentions, entries))

    def _deliver_intentions(self, reply: Reply) -> None:
        self._intentions_seen = _pairs(reply.data)
        self.deliver({INTENTIONS: decode.ordered(reply.facts)})

    async def _read_names(self, index: int | None, wait_s: float) -> Reply:
        reply = await self._client.read("/v1/catalog/services", index=index, wait_s=wait_s, known=self._names_body)
        if reply.filtered:
            raise ConsulError("the token may not see every service: it needs service:read on all services", 403)
        if reply.same:
            return reply
        lost = sorted((self._names_seen or frozenset()) - frozenset(reply.data))
        await self._client.check_may_read([("service", name) for name in lost])
        self._spelled = await self._one_spelling_each(reply.data)
        return reply

    async def _one_spelling_each(self, names: Iterable[str]) -> dict[str, str]:
        """Return the one spelling of each service in the catalog, by its folded name.

        Consul lists every spelling that some instance is registered with. The one in use stays for as long as any
        instance has it; at the start it is that of the instance that was registered first. So nobody changes a
        service's identity by registering another spelling of it.
        """
        alike: dict[str, list[str]] = {}
        for name in filter(usable_name, names):
            alike.setdefault(fold(name), []).append(name)
        found = {}
        for folded, spellings in alike.items():
            before = self._spelled.get(folded)
            if len(spellings) == 1:
                found[folded] = spellings[0]
            elif before in spellings:
                found[folded] = before
            else:
                reply = await self._client.read(f"/v1/catalog/service/{spellings[0]}")
                instances = sorted((each["CreateIndex"], each["ServiceName"]) for each in reply.data or ())
                found[folded] = next((name for _, name in instances if name in spellings), min(spellings))
            if len(spellings) > 1 and before is None:
                log.warning(
                    "service %r is registered as %s as well: Consul takes these for one service, and so does Gossamer",
                    found[folded], " and ".join(repr(name) for name in sorted(spellings) if name != found[folded]),
                )  # fmt: skip
        return found

    def _deliver_names(self, reply: Reply) -> None:
        if reply.same:
            return  # this query returns on every change of any instance, few of which are about a name
        self._names_body = reply.body
        found = frozenset(reply.data)
        if found == self._names_seen:
            return  # only tags differ
        self._names_seen = found
        unusable = sorted(name for name in found if not usable_name(name))
        if unusable:
            log.warning("services that can't be asked for by name are left out: %s", ", ".join(map(repr, unusable)))
        names = frozenset(self._spelled.values())
        self._services.names_changed(names)
        self.deliver({SERVICE_NAMES: names})

    def _deliver_roots(self, reply: Reply) -> None:
        self.deliver({ROOTS: decode.roots(reply.data)})


def _pair(entry: Any) -> object:
    return tuple(entry.get(name) for name in ("SourceName", "DestinationName", "SourcePeer", "SourceSamenessGroup"))


def _pairs(data: Any) -> set[tuple[str, str]]:
    return {(entry["SourceName"], entry["DestinationName"]) for entry in data or ()}

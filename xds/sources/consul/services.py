"""One watch a service: its instances by blocking query.

A service that the catalog does not know, and a name that turns out to be a proxy's own, is read once and then parked
until the catalog's names change: polling an absent name wakes on every change of the whole catalog (Consul before
1.10), and proxies' names are half of a catalog. Those are read last, since most are known by then from the instances
of their services, and need no reading.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from xds.mesh.chains import default_chain
from xds.mesh.facts import ANY_PORT, ServiceInstances
from xds.mesh.mesh import Batch, Key, Kind
from xds.mesh.names import SIDECAR_SUFFIX
from xds.policy.quotas import Quotas
from xds.sources import decode
from xds.sources.consul.blocking import Pace, Tell, Watch
from xds.sources.consul.chains import ChainReader
from xds.sources.consul.client import Consul, ConsulError, Read, Reply, understanding
from xds.sources.consul.decoding import off_loop

PACE_S = 0.1
READS_AT_ONCE = 12
CHAINS_AT_ONCE = 4
"""Reads that do not block, over all services: a cold start must not be a storm. Chains don't queue behind instances:
the first that is read tells all the others, as their instances come."""
CONNECTIONS_A_SECOND = 1000
"""New connections in a second for blocking queries, each of which has its own; they begin when everything has been read
once."""
PARKED_S = 60.0
"""Seconds after which a parked name is looked up again, at most."""
LOOKS_A_SECOND = 2.0
"""At parked names, all together: where there are many, each is looked at less often."""


class MakeWatch(Protocol):
    """Factory of watches: name, reader, receiver of the answers, pace, and receiver of failures."""

    def __call__(
        self,
        name: str,
        read: Read,
        deliver: Callable[[Reply], object],
        pace_s: float,
        on_failed: Callable[[ConsulError], None] | None = None,
        /,
    ) -> Watch: ...


class ServiceWatches:
    """The watches of every service that is wanted."""

    def __init__(
        self,
        client: Consul,
        make_watch: MakeWatch,
        deliver: Callable[[Batch], None],
        tell: Tell,
        quotas: Quotas,
    ) -> None:
        self._client = client
        self._make_watch = make_watch
        self._deliver = deliver
        self._tell = tell
        self._wanted: frozenset[str] = frozenset()
        self._watches: dict[str, Watch] = {}
        self._parked: dict[str, asyncio.Event] = {}
        self._nodes: dict[str, frozenset[str]] = {}
        self._proxies_of: dict[str, frozenset[str]] = {}
        """Names under which a service's sidecars are registered, by service."""
        self._to_be_read: set[str] = set()
        """The services whose first read is still to come; not those that look like a proxy's own."""
        self._all_read = asyncio.Event()
        self._names: frozenset[str] | None = None
        self._names_known = asyncio.Event()
        self._reading = asyncio.Semaphore(READS_AT_ONCE)
        self._connecting = Pace(1 / CONNECTIONS_A_SECOND)
        self._shapes: dict[str, object] = {}
        self.chains = ChainReader(client, deliver, tell, asyncio.Semaphore(CHAINS_AT_ONCE), quotas)

    def count(self) -> int:
        """How many watches there are."""
        return len(self._watches)

    def watches(self) -> list[Watch]:
        """Return the watches."""
        return list(self._watches.values())

    def follow(self, wanted: frozenset[str], tasks: asyncio.TaskGroup) -> None:
        """Watch the services ``wanted``. Others are let go when their query next returns."""
        self._wanted = wanted
        for service, watch in self._watches.items():
            watch.wanted = service in wanted
            if not watch.wanted and service in self._parked:
                self._parked[service].set()
        fresh = sorted(wanted - self._watches.keys())
        self._to_be_read |= {service for service in fresh if not service.endswith(SIDECAR_SUFFIX)}
        self._see_whether_all_are_read()
        for service in fresh:
            self._watches[service] = self._watch(service)
            tasks.create_task(self._keep(service, self._watches[service], tasks))

    def names_changed(self, names: frozenset[str]) -> None:
        """Take the catalog's names: parked services are looked up again."""
        moved = names ^ (self._names or frozenset())
        self._names = names
        self._names_known.set()
        if not moved:
            return
        for service, event in self._parked.items():
            # A sidecar may be registered for a service that itself is not: then any new name may be that sidecar's.
            if service in moved or service not in names:
                event.set()

    def _is_read(self, service: str) -> None:
        self._to_be_read.discard(service)
        self._see_whether_all_are_read()

    def _see_whether_all_are_read(self) -> None:
        if self._to_be_read:
            self._all_read.clear()
        else:
            self._all_read.set()

    # -- instances ------------------------------------------------------------------------------------------------

    def _watch(self, service: str) -> Watch:
        path = f"/v1/health/connect/{service}"
        blocks = False

        async def read(index: int | None, wait_s: float) -> Reply:
            nonlocal blocks
            if index is not None:
                if not blocks:
                    # Each takes a connection, which costs as much as reading: who waits for all has them sooner so.
                    await self._all_read.wait()
                    await asyncio.sleep(self._connecting.next_wait(asyncio.get_running_loop().time()))
                blocks = True
                reply = await self._client.read(path, index=index, wait_s=wait_s)
            else:
                async with self._reading:
                    try:
                        reply = await self._client.read(path)
                    finally:
                        self._is_read(service)
            if not reply.data and self._nodes.get(service):
                # All gone at once: because they are, or because the token may not see them any more.
                nodes = [("node", node) for node in sorted(self._nodes[service])]
                await self._client.check_may_read([("service", service), *nodes])
            if index is not None and reply.index == index:
                return reply
            # Consul says its default policy from the version on that assigns virtual IPs.
            assigning = decode.BY_CONSUL if reply.default_policy else decode.CLAIMED
            return replace(reply, facts=await off_loop(reply.size, decoded, reply.data, assigning))

        def decoded(data: Any, assigning: frozenset[str]) -> ServiceInstances:
            return decode.service_instances(service, data, assigning=assigning)

        def take(reply: Reply) -> None:
            if reply.filtered:
                raise ConsulError(f"the token may not see every instance of {service!r}: it needs node:read", 403)
            self._take(reply.facts)

        return self._make_watch(f"instances of {service}", read, take, PACE_S)

    def _take(self, instances: ServiceInstances) -> None:
        service = instances.service
        self._nodes[service] = frozenset(i.node for i in instances.instances)
        shape = [(i.node, i.service_id, i.virtual_ips) for i in instances.instances]
        if self._shapes.get(service) != shape:
            self._shapes[service] = shape
            self._proxies_of[service] = frozenset(
                i.name for i in instances.instances if i.sidecar and i.name != service
            )
            tagged = any(at.port == ANY_PORT for i in instances.instances for at in i.virtual_ips)
            chain = self.chains.follow(service, tagged=tagged if shape else None)
            if chain is not None:
                self._deliver({Key(Kind.INSTANCES, service): instances, Key(Kind.CHAIN, service): chain})
                return
        self._deliver({Key(Kind.INSTANCES, service): instances})

    async def _keep(self, service: str, watch: Watch, tasks: asyncio.TaskGroup) -> None:
        """Watch one service until nobody wants it."""
        await self._names_known.wait()
        if service.endswith(SIDECAR_SUFFIX):
            await self._all_read.wait()
            if watch.wanted and self._is_a_proxys(service):
                # Its own reading would say no more than that nobody is reached by this name.
                empty, chain = ServiceInstances(service), default_chain(service)
                async with self._reading:
                    await asyncio.sleep(0)  # a thousand in a row would keep everybody else waiting
                    self._deliver({Key(Kind.INSTANCES, service): empty, Key(Kind.CHAIN, service): chain})
                await self._park(service)
        while watch.wanted:
            names = self._names
            await watch.turn()
            if watch.state.error is None:
                self.chains.look_again(service)
            if watch.state.answered and watch.state.error is None and await self._idle(service):
                if watch.wanted and names is self._names:
                    await self._park(service)
                watch.read_again()
        del self._watches[service]
        self._shapes.pop(service, None)
        self._nodes.pop(service, None)
        self._proxies_of.pop(service, None)
        self._is_read(service)
        self.chains.let_go(service)
        self._deliver({Key(Kind.INSTANCES, service): None, Key(Kind.CHAIN, service): None})
        if service in self._wanted:
            self.follow(self._wanted, tasks)

    def _is_a_proxys(self, name: str) -> bool:
        """Whether the sidecars of the service that it is named after are registered under this name."""
        return name in self._proxies_of.get(name.removesuffix(SIDECAR_SUFFIX), ())

    async def _idle(self, service: str) -> bool:
        """Whether there is nothing to wait for at this name before the catalog changes."""
        if self._shapes.get(service):
            return False
        if service not in (self._names or ()):
            return True
        try:
            async with self._reading:
                with understanding():
                    _, registered = await self._client.awaited(self._client.catalog.service(service))
                    return bool(registered) and all(entry.get("ServiceKind") for entry in registered)
        except ConsulError:
            return False

    async def _park(self, service: str) -> None:
        event = self._parked[service] = asyncio.Event()
        try:
            async with asyncio.timeout(max(PARKED_S, len(self._parked) / LOOKS_A_SECOND)):
                await event.wait()
        except TimeoutError:
            return
        finally:
            del self._parked[service]

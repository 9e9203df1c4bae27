"""Watches the instances of services, with one blocking query for each.

A service that is not in the catalog, and a name that belongs to a proxy, is read once and then parked until the
catalog's names change: a query for an absent name returns on every change of the whole catalog (Consul before 1.10),
and half of a catalog's names are proxies'. These are read last, since most are known by then from the instances of
their services and need no reading.
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
from xds.sources.consul.blocking import Pace, Report, Watch
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
"""Lookups of parked names in a second, together; with many, each is looked up less often."""


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
        report: Report,
        quotas: Quotas,
    ) -> None:
        self._client = client
        self._make_watch = make_watch
        self._deliver = deliver
        self._report = report
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
        self.chains = ChainReader(client, deliver, report, asyncio.Semaphore(CHAINS_AT_ONCE), quotas)

    def count(self) -> int:
        """Return the number of watches."""
        return len(self._watches)

    def watches(self) -> list[Watch]:
        """Return the watches."""
        return list(self._watches.values())

    def follow(self, wanted: frozenset[str], tasks: asyncio.TaskGroup) -> None:
        """Watch the services ``wanted``. Watches of others end when their query next returns."""
        self._wanted = wanted
        for service, watch in self._watches.items():
            watch.wanted = service in wanted
            if not watch.wanted and service in self._parked:
                self._parked[service].set()
        fresh = sorted(wanted - self._watches.keys())
        self._to_be_read |= {service for service in fresh if not service.endswith(SIDECAR_SUFFIX)}
        self._update_all_read()
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
            # A sidecar may be registered for a service that itself is not registered; then any new name may be that
            # sidecar's.
            if service in moved or service not in names:
                event.set()

    def _is_read(self, service: str) -> None:
        self._to_be_read.discard(service)
        self._update_all_read()

    def _update_all_read(self) -> None:
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
                    # Each opens a connection, which costs as much as reading, so that all services are read sooner if
                    # these wait.
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
                # All instances are gone at once: either really, or because the token may not see them any more.
                nodes = [("node", node) for node in sorted(self._nodes[service])]
                await self._client.check_may_read([("service", service), *nodes])
            if index is not None and reply.index == index:
                return reply
            # Consul reports its default policy from the version on that assigns virtual IPs.
            assigning = decode.BY_CONSUL if reply.default_policy else decode.CLAIMED
            return replace(reply, facts=await off_loop(reply.size, decoded, reply.data, assigning))

        def decoded(data: Any, assigning: frozenset[str]) -> ServiceInstances:
            return decode.service_instances(service, data, assigning=assigning)

        def receive(reply: Reply) -> None:
            if reply.filtered:
                raise ConsulError(f"the token may not see every instance of {service!r}: it needs node:read", 403)
            self._deliver_instances(reply.facts)

        return self._make_watch(f"instances of {service}", read, receive, PACE_S)

    def _deliver_instances(self, instances: ServiceInstances) -> None:
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
        """Watch one service until it is not wanted any more."""
        await self._names_known.wait()
        if service.endswith(SIDECAR_SUFFIX):
            await self._all_read.wait()
            if watch.wanted and self._is_a_proxys(service):
                # Reading it would only show that the name has no instances of its own.
                empty, chain = ServiceInstances(service), default_chain(service)
                async with self._reading:
                    await asyncio.sleep(0)  # a thousand in a row would block everything else
                    self._deliver({Key(Kind.INSTANCES, service): empty, Key(Kind.CHAIN, service): chain})
                await self._park(service)
        while watch.wanted:
            names = self._names
            await watch.turn()
            if watch.state.error is None:
                self.chains.check_again(service)
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
        """Return whether the sidecars of the service that a name is derived from are registered under that name."""
        return name in self._proxies_of.get(name.removesuffix(SIDECAR_SUFFIX), ())

    async def _idle(self, service: str) -> bool:
        """Return whether nothing can change at this name before the catalog changes."""
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

"""One watch a service: its instances by blocking query, its discovery chain whenever that may have changed.

A service that the catalog does not know, and a name that turns out to be a proxy's own, is read once and then parked
until the catalog's names change: polling an absent name wakes on every change of the whole catalog (Consul before
1.10), and proxies' names are half of a catalog.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Protocol

from xds.mesh.chains import DiscoveryChain
from xds.mesh.facts import ServiceInstances
from xds.mesh.mesh import Batch, Key, Kind
from xds.sources import decode
from xds.sources.consul.blocking import Tell, Watch
from xds.sources.consul.client import Consul, ConsulError, Read, Reply, understanding

PACE_S = 0.1
READS_AT_ONCE = 16
"""Reads that do not block, over all services: a cold start must not be a storm."""
PARKED_S = 60.0
"""How long a parked name is not looked at, at the most."""
CHAIN_RETRY_S = 5.0
CHAIN_EVERY_S = 30.0
"""Consul wakes no query when the virtual IPs of a chain change, so chains are read now and then."""


class MakeWatch(Protocol):
    """Makes a watch: its name, how it reads, who takes the answers, its pace, and who is told of failures."""

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

    def __init__(self, client: Consul, make_watch: MakeWatch, deliver: Callable[[Batch], None], tell: Tell) -> None:
        self._client = client
        self._make_watch = make_watch
        self._deliver = deliver
        self._tell = tell
        self._wanted: frozenset[str] = frozenset()
        self._watches: dict[str, Watch] = {}
        self._parked: dict[str, asyncio.Event] = {}
        self._nodes: dict[str, frozenset[str]] = {}
        self._chains_being_read: set[str] = set()
        self._chain_read_at: dict[str, float] = {}
        self._chain_errors: dict[str, str] = {}
        self._names: frozenset[str] | None = None
        self._names_known = asyncio.Event()
        self._reading = asyncio.Semaphore(READS_AT_ONCE)
        self._shapes: dict[str, object] = {}
        self._stale_chains: set[str] = set()
        self._chains_stale = asyncio.Event()

    def watches(self) -> list[Watch]:
        """The watches that there are."""
        return list(self._watches.values())

    def follow(self, wanted: frozenset[str], tasks: asyncio.TaskGroup) -> None:
        """Watch the services ``wanted``. Others are let go when their query next returns."""
        self._wanted = wanted
        for service, watch in self._watches.items():
            watch.wanted = service in wanted
            if not watch.wanted and service in self._parked:
                self._parked[service].set()
        for service in sorted(wanted - self._watches.keys()):
            self._watches[service] = self._watch(service)
            tasks.create_task(self._keep(service, self._watches[service], tasks))

    def names_changed(self, names: frozenset[str]) -> None:
        """The catalog's names are these: parked services are looked at again."""
        moved = names ^ (self._names or frozenset())
        self._names = names
        self._names_known.set()
        for service, event in self._parked.items() if moved else ():
            # A sidecar may be registered for a service that itself is not: then any new name may be that sidecar's.
            if service in moved or service not in names:
                event.set()

    def config_changed(self) -> None:
        """Some config entry differs: every discovery chain may."""
        self._refresh_chains(self._watches)

    # -- instances ------------------------------------------------------------------------------------------------

    def _watch(self, service: str) -> Watch:
        path = f"/v1/health/connect/{service}"

        async def read(index: int | None, wait_s: float) -> Reply:
            if index is not None:
                reply = await self._client.read(path, index=index, wait_s=wait_s)
            else:
                async with self._reading:
                    reply = await self._client.read(path)
            if not reply.data and self._nodes.get(service):
                # All gone at once: because they are, or because the token may not see them any more.
                nodes = [("node", node) for node in sorted(self._nodes[service])]
                await self._client.check_may_read([("service", service), *nodes])
            return reply

        def take(reply: Reply) -> None:
            if reply.filtered:
                raise ConsulError(f"the token may not see every instance of {service!r}: it needs node:read", 403)
            self._take(decode.service_instances(service, reply.data))

        return self._make_watch(f"instances of {service}", read, take, PACE_S)

    def _take(self, instances: ServiceInstances) -> None:
        service = instances.service
        self._nodes[service] = frozenset(i.node for i in instances.instances)
        shape = [(i.node, i.service_id, i.virtual_ips) for i in instances.instances]
        if self._shapes.get(service) != shape:
            self._shapes[service] = shape
            self._refresh_chains([service])
        self._deliver({Key(Kind.INSTANCES, service): instances})

    async def _keep(self, service: str, watch: Watch, tasks: asyncio.TaskGroup) -> None:
        """Watch one service until nobody wants it."""
        loop = asyncio.get_running_loop()
        await self._names_known.wait()
        while watch.wanted:
            names = self._names
            await watch.turn()
            if watch.state.error is None and loop.time() - self._chain_read_at.get(service, 0.0) > CHAIN_EVERY_S:
                self._refresh_chains([service])
            if watch.state.answered and watch.state.error is None and await self._idle(service):
                if watch.wanted and names is self._names:
                    await self._park(service)
                watch.read_again()
        del self._watches[service]
        self._shapes.pop(service, None)
        self._nodes.pop(service, None)
        self._chain_read_at.pop(service, None)
        self._chain_errors.pop(service, None)
        self._deliver({Key(Kind.INSTANCES, service): None, Key(Kind.CHAIN, service): None})
        if service in self._wanted:
            self.follow(self._wanted, tasks)

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
            async with asyncio.timeout(PARKED_S):
                await event.wait()
        except TimeoutError:
            return
        finally:
            del self._parked[service]

    # -- discovery chains -----------------------------------------------------------------------------------------

    def _refresh_chains(self, services: Iterable[str]) -> None:
        self._stale_chains.update(services)
        self._chains_stale.set()

    async def keep_chains(self) -> None:
        """Read every chain that may have changed, a bounded number at once, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._chains_stale.wait()
                self._chains_stale.clear()
                stale = self._stale_chains - self._chains_being_read
                self._stale_chains -= stale
                self._chains_being_read |= stale
                for service in sorted(stale):
                    tasks.create_task(self._read_chain_once(service))

    async def _read_chain_once(self, service: str) -> None:
        """One read of a service's chain at a time, so that an older answer can't come after a newer one."""
        self._chain_read_at[service] = asyncio.get_running_loop().time()
        await self._read_chain(service)
        self._chains_being_read.discard(service)
        self._chains_stale.set()

    async def _read_chain(self, service: str) -> None:
        try:
            async with self._reading:
                if service not in self._watches:
                    return
                reply = await self._client.read(f"/v1/discovery-chain/{service}")
        except ConsulError as error:
            if self._chain_errors.get(service) != str(error):
                self._chain_errors[service] = str(error)
                self._tell(f"discovery chain of {service}", error)
            await asyncio.sleep(CHAIN_RETRY_S)
            self._refresh_chains([service])
            return
        self._chain_errors.pop(service, None)
        try:
            with understanding():
                chain = decode.chain(service, reply.data)
        except ConsulError as error:
            chain = DiscoveryChain(service, refusal=f"its discovery chain: {error}")
        if service in self._watches:
            self._deliver({Key(Kind.CHAIN, service): chain})

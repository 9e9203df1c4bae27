"""Reads discovery chains whenever they may have changed; those of plain services are derived.

Most services are plain: no config entry is about them. Consul's answers for these differ only in the name, so one is
read and the others are derived from it; a mesh of ten thousand services has a handful of chains to read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from xds.mesh.chains import DiscoveryChain
from xds.mesh.mesh import Batch, Key, Kind
from xds.mesh.names import fold
from xds.policy.quotas import Quotas
from xds.sources import decode
from xds.sources.consul.blocking import Report
from xds.sources.consul.client import Consul, ConsulError, understanding
from xds.sources.consul.decoding import off_loop

RETRY_S = 5.0
EVERY_S = 30.0
"""Seconds between two reads of a chain: Consul wakes no query when the virtual IPs of a chain change."""
LOOKS_A_SECOND = 2.0
"""Lookups in a second for all services together: with many, each is looked up less often."""


class ChainReader:
    """Reader of the chains of the services that are watched.

    Args:
        client: where to read.
        deliver: takes the facts.
        report: called with what can't be read.
        reading: bounds how many reads go on at once.
        quotas: what a chain may come to.
    """

    def __init__(
        self,
        client: Consul,
        deliver: Callable[[Batch], None],
        report: Report,
        reading: asyncio.Semaphore,
        quotas: Quotas,
    ) -> None:
        self._client = client
        self._quotas = quotas
        self._deliver = deliver
        self._report = report
        self._reading = reading
        self._watched: dict[str, bool | None] = {}
        """Whether a service's instances carry its virtual IP; ``None`` where there are none."""
        self._named: frozenset[str] | None = None
        self._plain: DiscoveryChain | None = None
        self._stale: set[str] = set()
        self._woken = asyncio.Event()
        self._being_read: set[str] = set()
        self._read_at: dict[str, float] = {}
        self._errors: dict[str, str] = {}

    def follow(self, service: str, *, tagged: bool | None) -> DiscoveryChain | None:
        """Follow the chain of ``service``, whose instances carry its virtual IP or not (``None``: there are none).

        Returns:
            The chain where it can be derived; otherwise it is read and delivered.
        """
        self._watched[service] = tagged
        derived = self._derived(service) if service not in self._being_read else None
        if derived is None:
            self._refresh([service])
        return derived

    def let_go(self, service: str) -> None:
        """Stop reading the chain of a service."""
        self._watched.pop(service, None)
        self._read_at.pop(service, None)
        self._errors.pop(service, None)

    def entries_changed(self, named: frozenset[str]) -> None:
        """Note that some config entry differs, so every chain may; those that make chains name these services."""
        self._named, self._plain = frozenset(map(fold, named)), None
        self._refresh(self._watched)

    def check_again(self, service: str) -> None:
        """Read it if that was long ago."""
        read_at = self._read_at.get(service)
        patience = max(EVERY_S, len(self._read_at) / LOOKS_A_SECOND)
        if read_at is not None and asyncio.get_running_loop().time() - read_at > patience:
            self._refresh([service])

    def _refresh(self, services: Iterable[str]) -> None:
        self._stale.update(services)
        self._woken.set()

    async def run(self) -> None:
        """Read every chain that may have changed, a bounded number at once, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._woken.wait()
                self._woken.clear()
                stale = self._stale - self._being_read
                self._stale -= stale
                derived = {Key(Kind.CHAIN, each): chain for each in stale if (chain := self._derived(each)) is not None}
                if derived:
                    self._deliver(derived)
                    for key in derived:
                        self._read_at.pop(str(key.of), None)
                for service in sorted(stale):
                    if Key(Kind.CHAIN, service) not in derived:
                        self._being_read.add(service)
                        tasks.create_task(self._read_once(service))

    def _is_plain(self, service: str) -> bool:
        """Return whether no entry is about a service, so that its chain equals that of any other plain one."""
        return self._named is not None and fold(service) not in self._named and self._watched.get(service) is not None

    def _derived(self, service: str) -> DiscoveryChain | None:
        """Return the chain of a plain service, derived from another one's."""
        if self._plain is None or not self._is_plain(service):
            return None
        if self._plain.virtual_ips and not self._watched[service]:
            return None  # it has virtual IPs that its instances don't have
        return self._plain.of(service)

    def _decoded(self, service: str, data: Any) -> DiscoveryChain:
        return decode.chain(service, data, quotas=self._quotas)

    async def _read_once(self, service: str) -> None:
        """Read a service's chain; one read at a time, so that an older answer can't arrive after a newer one."""
        self._read_at[service] = asyncio.get_running_loop().time()
        await self._read(service)
        self._being_read.discard(service)
        self._woken.set()

    async def _read(self, service: str) -> None:
        named = self._named
        try:
            async with self._reading:
                if service not in self._watched:
                    return
                derived = self._derived(service)
                if derived is not None:
                    self._read_at.pop(service, None)
                    self._deliver({Key(Kind.CHAIN, service): derived})
                    return
                reply = await self._client.read(f"/v1/discovery-chain/{service}")
        except ConsulError as error:
            if self._errors.get(service) != str(error):
                self._errors[service] = str(error)
                self._report(f"discovery chain of {service}", error)
            await asyncio.sleep(RETRY_S)
            self._refresh([service])
            return
        self._errors.pop(service, None)
        try:
            with understanding():
                chain = await off_loop(reply.size, self._decoded, service, reply.data)
        except ConsulError as error:
            chain = DiscoveryChain(service, refusal=f"its discovery chain: {error}")
        if service not in self._watched:
            return
        self._deliver({Key(Kind.CHAIN, service): chain})
        # Addresses that an operator assigns by hand (Consul 1.18) wake no query and belong to one service each.
        by_hand = "ManualVirtualIPs" in reply.data["Chain"] if chain.refusal is None else True
        if named is self._named and self._is_plain(service) and chain.is_default and not by_hand:
            self._plain = chain

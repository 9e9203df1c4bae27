"""Tests of which discovery chains are read, and which are derived."""

from __future__ import annotations

import asyncio
from typing import Any

from xds.mesh.chains import DiscoveryChain
from xds.mesh.mesh import Batch, Kind
from xds.policy.quotas import Quotas
from xds.sources.consul.chains import ChainReader
from xds.sources.consul.client import Reply


def compiled(service: str, **more: Any) -> dict[str, Any]:
    """Consul's answer for a service about which no entry says anything."""
    target = f"{service}.default.default.dc1"
    return {
        "Chain": {
            "ServiceName": service,
            "Datacenter": "dc1",
            "Protocol": "tcp",
            "StartNode": f"resolver:{target}",
            "Nodes": {
                f"resolver:{target}": {
                    "Type": "resolver",
                    "Name": target,
                    "Resolver": {"Default": True, "ConnectTimeout": "5s", "Target": target},
                }
            },
            "Targets": {target: {"ID": target, "Service": service, "Datacenter": "dc1"}},
            **more,
        }
    }


class Consul:
    """Answers for any chain, and remembers for which it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.more: dict[str, Any] = {}

    async def read(self, path: str) -> Reply:
        await asyncio.sleep(0)
        service = path.rpartition("/")[2]
        self.asked.append(service)
        return Reply(compiled(service, **self.more), 1)


class Chains:
    """A reader at work."""

    def __init__(self) -> None:
        self.consul = Consul()
        self.found: dict[object, object] = {}
        self.reader = ChainReader(self.consul, self._take, lambda *_: None, asyncio.Semaphore(2), Quotas())  # type: ignore[arg-type]

    def _take(self, batch: Batch) -> None:
        self.found.update({key.of: fact for key, fact in batch.items() if key.kind is Kind.CHAIN})

    def follow(self, service: str, *, tagged: bool | None = True) -> None:
        told = self.reader.follow(service, tagged=tagged)
        if told is not None:
            self.found[service] = told

    async def settle(self) -> None:
        """Let it read whatever it has to."""
        running = asyncio.create_task(self.reader.run())
        for _ in range(50):
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_one_default_chain_is_read_for_all_plain_services() -> None:
    chains = Chains()
    chains.reader.entries_changed(frozenset())
    for number in range(20):
        chains.follow(f"s-{number}")
    await chains.settle()
    assert len(chains.consul.asked) <= 2, "those that are read at once"
    assert {str(name) for name in chains.found} == {f"s-{number}" for number in range(20)}
    for name, chain in chains.found.items():
        assert isinstance(chain, DiscoveryChain)
        assert chain.is_default
        assert [target.service for target in chain.targets.values()] == [name]
    chains.follow("later")
    assert "later" in chains.found, "at once"


async def test_services_that_an_entry_names_are_read() -> None:
    chains = Chains()
    chains.reader.entries_changed(frozenset({"special"}))
    for name in ("a", "b", "c", "special"):
        chains.follow(name)
    await chains.settle()
    assert "special" in chains.consul.asked
    chains.consul.asked.clear()
    chains.reader.entries_changed(frozenset({"b"}))
    await chains.settle()
    assert "b" in chains.consul.asked
    assert set(chains.found) == {"a", "b", "c", "special"}


async def test_before_the_entries_are_known_every_chain_is_read() -> None:
    chains = Chains()
    for name in ("a", "b", "c"):
        chains.follow(name)
    await chains.settle()
    assert sorted(chains.consul.asked) == ["a", "b", "c"]


async def test_a_service_whose_virtual_ips_only_its_chain_carries_is_read() -> None:
    chains = Chains()
    chains.consul.more = {"AutoVirtualIPs": ["240.0.0.1"]}
    chains.reader.entries_changed(frozenset())
    chains.follow("a")
    await chains.settle()
    chains.follow("tagged")
    chains.follow("untagged", tagged=False)
    chains.follow("nobody", tagged=None)
    await chains.settle()
    assert sorted(chains.consul.asked) == ["a", "nobody", "untagged"]
    told, read = chains.found["tagged"], chains.found["untagged"]
    assert isinstance(told, DiscoveryChain)
    assert isinstance(read, DiscoveryChain)
    assert (told.virtual_ips, read.virtual_ips) == ((), ("240.0.0.1",))


async def test_where_addresses_can_be_given_by_hand_every_chain_is_read() -> None:
    chains = Chains()
    chains.consul.more = {"ManualVirtualIPs": []}
    chains.reader.entries_changed(frozenset())
    for name in ("a", "b", "c"):
        chains.follow(name)
    await chains.settle()
    assert sorted(chains.consul.asked) == ["a", "b", "c"]

"""Measures the cost of a change with many services and many sidecars, on recorded answers of a Consul.

For each there is a floor from the same run: the same bytes pushed by a bare grpc.aio server, or bare streams opened.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from benchmarks import fanout
from benchmarks.child import Child, cpu_seconds, resident_mib
from benchmarks.stage import SERVE_PORT, Played, Served, Stage, children

DENY_ALL = [["*", "*", "deny"]]
REST_S = 5.0
"""Seconds during which the cost of an idle mesh is measured."""


def sidecars(count: int, services: int = 1) -> list[list[str]]:
    """So many, of so many services in turn."""
    return [[f"s-{n % services}-{n // services}-sidecar-proxy", f"s-{n % services}"] for n in range(count)]


@asynccontextmanager
async def mesh(
    stage: Stage, services: int, instances: int, intentions: list[list[str]]
) -> AsyncIterator[tuple[Played, Served, Child, Child]]:
    """Start a recorded mesh, a Gossamer that serves it, a fleet that is not connected yet, and a bare server."""
    async with (
        stage.playback(services, instances, intentions) as played,
        children("benchmarks.fleet", "benchmarks.bare") as (fleet, bare),
        stage.serve("--consul", played.url) as served,
    ):
        await served.ready()
        yield played, served, fleet, bare


async def bare_push(
    fleet: Child, bare: Child, who: list[list[str]], messages: list[str], rounds: int, *, distinct: bool = False
) -> dict[str, float]:
    """Measure the floor: these messages to as many streams; CPU and time of a round."""
    await fleet.ask("forget")
    port = await bare.ask("listen")
    await fleet.ask("open", port=port, sidecars=who)
    await asyncio.sleep(1)
    cpu, seconds = [], []
    for _ in range(rounds):
        await fleet.ask("arm")
        if distinct:
            await bare.ask("prepare", messages=messages)
        before = cpu_seconds(bare.pid)
        began = await (bare.ask("push_prepared") if distinct else bare.ask("push", messages=messages))
        seen = await fleet.ask("messages", count=len(messages) * len(who))
        await asyncio.sleep(0.5)
        cpu.append(cpu_seconds(bare.pid) - before)
        seconds.append(seen["last"] - began)
    return {"cpu_s": min(cpu), "seconds": sorted(seconds)[len(seconds) // 2]}


async def sizes(
    stage: Stage, meshes: tuple[int, ...] = (100, 1000, 10000), streams: int = 50, changes: int = 30
) -> Any:
    """Measure the same endpoint change in meshes of several sizes; every sidecar may call every service."""
    found = {}
    for services in meshes:
        async with mesh(stage, services, 2, []) as (played, served, fleet, _):
            await fleet.ask("open", port=SERVE_PORT, sidecars=sidecars(streams, streams // 2))
            await fleet.ask("whole", clusters=services - 1, endpoints=services - 1)
            await fleet.ask("settled")
            # Once all is read, the queries that wait for changes begin, a thousand a second.
            await asyncio.sleep(5 + services / 1000)
            before = served.cpu()
            await asyncio.sleep(REST_S)
            at_rest = (served.cpu() - before) / REST_S
            before, changes_began, seconds = served.cpu(), time.monotonic(), []
            for number in range(changes):
                await fleet.ask("arm")
                began = time.monotonic()
                await played.child.ask("change", service=f"s-{50 + number % 50}")
                received = await fleet.ask("each", kind="endpoints")
                seconds.append(received["last"] - began)
                await asyncio.sleep(0.5)
            spent = served.cpu() - before - at_rest * (time.monotonic() - changes_began)
            found[str(services)] = {
                "cpu_ms_per_change": spent / changes * 1e3,
                "rest_share": at_rest,
                "seconds": sorted(seconds),
                "memory_mib": served.memory(),
                "messages": received["messages"],
            }
    return found


async def appears(stage: Stage, streams: int = 1000, services: int = 200, rounds: int = 8) -> Any:
    """Measure a service that appears and that every sidecar may call."""
    async with mesh(stage, services, 10, []) as (played, served, fleet, bare):
        who = sidecars(streams, 100)
        await fleet.ask("open", port=SERVE_PORT, sidecars=who)
        await fleet.ask("settled")
        await asyncio.sleep(3)
        cpu, seconds = [], []
        for _ in range(rounds):
            await fleet.ask("arm")
            before, began = served.cpu(), time.monotonic()
            await played.child.ask("add")
            received = await fleet.ask("each", kind="endpoints")
            await asyncio.sleep(4)
            seen = await fleet.ask("seen")
            cpu.append(served.cpu() - before)
            seconds.append(received["last"] - began)
        kept = await fleet.ask("kept")
        messages = [kept["clusters"], kept["endpoints"]]
        floor = await bare_push(fleet, bare, who, messages, rounds)
        return {
            "cpu_s": sorted(cpu)[len(cpu) // 2],
            "seconds": sorted(seconds)[len(seconds) // 2],
            "messages": seen["messages"],
            "floor": floor,
        }


async def flip(stage: Stage, services: int = 1000) -> Any:
    """Flip a wildcard intention, which changes all upstreams of every sidecar but one, and follow that one's own
    changes.

    Its upstream may be called by no other service, before and after.
    """
    apart = [["s-0", "*", "deny"], ["*", "s-1", "deny"], ["s-0", "s-1", "allow"]]
    async with (
        mesh(stage, services, 2, [*DENY_ALL, *apart]) as (played, served, fleet, bare),
        children("benchmarks.fleet") as (bystander,),
    ):
        who = sidecars(services, services)[2:]
        await fleet.ask("open", port=SERVE_PORT, sidecars=who)
        await bystander.ask("open", port=SERVE_PORT, sidecars=[["s-0-0-sidecar-proxy", "s-0"]])
        await fleet.ask("settled")
        await bystander.ask("settled")
        await asyncio.sleep(2)
        found: dict[str, Any] = {}
        for what, intentions in (("allowed", [["*", "*", "allow"], *apart]), ("denied", [*DENY_ALL, *apart])):
            await fleet.ask("arm")
            before, began = served.cpu(), time.monotonic()
            await played.child.ask("intend", intentions=intentions)
            done = asyncio.Event()
            meanwhile = asyncio.create_task(_follow_one(played, bystander, "s-1", done))
            expected = services - 2 if what == "allowed" else 0
            await fleet.ask("whole", clusters=expected, endpoints=expected)
            done.set()
            waits = await meanwhile
            seen = await fleet.ask("settled")
            found[what] = {
                "cpu_s": served.cpu() - before,
                "seconds": seen["last"] - began,
                "bytes": seen["bytes"],
                "messages": seen["messages"],
                "meanwhile_s": sorted(waits),
            }
            if what == "allowed":
                kept = await fleet.ask("kept")
        found["memory_mib"] = served.memory()
        found["floor"] = await bare_push(fleet, bare, who, [kept["clusters"], kept["endpoints"]], 3, distinct=True)
        return found


async def _follow_one(played: Played, bystander: Child, service: str, until: asyncio.Event) -> list[float]:
    """Change an endpoint again and again; how long each change took to arrive."""
    waits: list[float] = []
    while not until.is_set():
        await bystander.ask("arm")
        began = time.monotonic()
        await played.child.ask("change", service=service)
        waits.append((await bystander.ask("each", kind="endpoints"))["last"] - began)
        await asyncio.sleep(0.2)
    return waits


async def reconnect(stage: Stage, streams: int = 1000, services: int = 51, rounds: int = 5) -> Any:
    """Measure a thousand sidecars that reconnect, with nothing changed."""
    async with mesh(stage, services, -(-streams // services), []) as (_, served, fleet, bare):
        who = sidecars(streams, services)
        await fleet.ask("open", port=SERVE_PORT, sidecars=who)
        await fleet.ask("settled")
        ours = await _again(fleet, SERVE_PORT, served.process.pid, rounds)
        metrics = await served.metrics()
        port = await bare.ask("listen")
        floor = await _again(fleet, port, bare.pid, rounds)
        return {"gossamer": ours, "floor": floor, "streams": metrics["gossamer_streams"]}


async def _again(fleet: Child, port: int, pid: int, rounds: int) -> dict[str, Any]:
    cpu, sent = [], {}
    for _ in range(rounds):
        await fleet.ask("hang_up")
        await asyncio.sleep(2)
        before = cpu_seconds(pid)
        await fleet.ask("again", port=port)
        await asyncio.sleep(3)
        cpu.append(cpu_seconds(pid) - before)
        sent = (await fleet.ask("seen"))["messages"]
    return {"cpu_s": sorted(cpu)[len(cpu) // 2], "messages": sent}


async def rotation(stage: Stage, streams: int = 1000) -> Any:
    """Measure the renewal of a leaf of each of a thousand services within a minute."""
    async with mesh(stage, streams, 1, DENY_ALL) as (played, served, fleet, _):
        await fleet.ask("open", port=SERVE_PORT, sidecars=sidecars(streams, streams))
        await fleet.ask("settled")
        await fleet.ask("arm")
        before = served.cpu()
        for start in range(0, streams, 100):
            await played.child.ask("rotate", services=[f"s-{n}" for n in range(start, start + 100)])
            await asyncio.sleep(5.5)
        seen = await fleet.ask("each", kind="secrets")
        found = {"cpu_s": served.cpu() - before, "messages": seen["messages"], "bytes": seen["bytes"]}
    return {**found, "signed_a_second": await _signed(stage)}


async def _signed(stage: Stage, services: int = 300) -> float:
    """Measure how many leaves a real Consul signs each second while so many services' sidecars connect at once."""
    for number in range(services):
        await fanout.register(stage, f"signed-{number}", 0, f"240.2.{number >> 8}.{number & 255}")
    async with children("benchmarks.fleet") as (fleet,), stage.serve("--consul", stage.consul.url) as served:
        await served.ready()
        await fleet.ask("arm")
        began = time.monotonic()
        await fleet.ask(
            "open", port=SERVE_PORT, sidecars=[[f"signed-{n}-0-sidecar-proxy", f"signed-{n}"] for n in range(services)]
        )
        seen = await fleet.ask("each", kind="secrets")
        return services / float(seen["last"] - began)


async def idle(stage: Stage, streams: int = 3000, services: int = 10000, seconds: float = 40) -> Any:
    """Nothing happens. Three hundred services, of ten sidecars each, call all of the others between them.

    With the first sidecar of each everything is read; what a stream takes is what the others add.
    """
    callers = streams // 10
    each = -(-services // callers)
    allowed = [[f"s-{n}", f"s-{(n * each + k) % services}", "allow"] for n in range(callers) for k in range(each)]
    async with mesh(stage, services, 10, [*DENY_ALL, *allowed]) as (_, served, fleet, bare):
        who = sidecars(streams, callers)
        await fleet.ask("open", port=SERVE_PORT, sidecars=who[:callers])
        await fleet.ask("settled", within_s=300)
        await asyncio.sleep(20)
        before = served.memory()
        await fleet.ask("open", port=SERVE_PORT, sidecars=who[callers:])
        await fleet.ask("settled", within_s=300)
        # The queries that were asked at first run out at their own pace; what is measured is how it goes on then.
        await asyncio.sleep(20)
        memory, cpu = served.memory(), served.cpu()
        await asyncio.sleep(seconds)
        used = (served.cpu() - cpu) / seconds
        metrics = await served.metrics()
        await fleet.ask("forget")
        port = await bare.ask("listen")
        empty = resident_mib(bare.pid)
        await fleet.ask("open", port=port, sidecars=who)
        await asyncio.sleep(5)
        return {
            "core_share": used,
            "memory_mib": memory,
            "memory_before_mib": before,
            "kb_per_stream": (memory - before) * 1024 / (streams - callers),
            "bare_kb_per_stream": (resident_mib(bare.pid) - empty) * 1024 / streams,
            "watches": metrics["gossamer_consul_watches"],
        }

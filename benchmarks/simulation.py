"""Extrapolates the measurements to meshes that no machine here can hold: the first limit that they reach.

One server is simulated, since servers know nothing of each other: a process that reads Consul and workers that serve.
Changes come at random, each waits until the reader has taken those before it, and then at every worker until that has
served those before it. Everything has the cost that was measured; what the simulation adds is queueing, and the limits
of the machine and of Consul that no measurement of a smaller mesh runs into.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

INSTANCES = 2
"""Of each service, each with a sidecar."""
CALLED = 20
"""Other services that each service may call."""
REPLACED_A_DAY = 4
"""Replacements of each instance in a day, each with three changes: it fails, it goes, another comes."""
BUSY = 10
"""The busiest hour, beside the average."""
SECONDS = 600
"""Of that hour, simulated."""
NAMES_READS_A_SECOND = 1.0
"""Gossamer reads the catalog's names no more often, however many changes there are."""
PORTS = 28232
"""That Linux has by default (``net.ipv4.ip_local_port_range``) for connections from one address to one other."""
OPEN_FILES = 524288
"""That systemd lets a process have at the most, by default."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Measured costs in seconds of CPU and MiB."""

    change: float
    """To read a change from Consul and find out whom it is about."""
    change_stream: float
    """To tell one sidecar of it."""
    name: float
    """To read one of the catalog's names again."""
    reconnect: float
    watch: float
    """Of a core, for each blocking query at which nothing happens."""
    stream_mib: float
    service_mib: float
    """With ten instances."""
    base_mib: float
    start: float
    """To read one service at first."""


def costs(results: dict[str, Any]) -> Costs:
    """From the results of the benchmarks, the median of their runs."""

    def median(name: str, of: Callable[[Any], float]) -> float:
        return statistics.median(of(run) for run in results[name])

    told = median("fanout", lambda run: run["1000"]["gossamer"]["cpu_us_per_stream"] / 1e6)
    small, large = (median("sizes", lambda run, n=n: run[n]["cpu_ms_per_change"] / 1e3) for n in ("100", "10000"))  # type: ignore[misc]
    before, after = (median("sizes", lambda run, n=n: run[n]["memory_mib"]) for n in ("1000", "10000"))  # type: ignore[misc]
    return Costs(
        change=median("fanout", lambda run: run["1"]["gossamer"]["cpu_us_per_stream"] / 1e6) - told,
        change_stream=told,
        name=max(large - small, 0.0) / (2 * (10000 - 100)),
        reconnect=median("reconnect", lambda run: run["gossamer"]["cpu_s"]) / 1000,
        watch=median("idle", lambda run: run["core_share"] / run["watches"]),
        stream_mib=median("idle", lambda run: run["kb_per_stream"]) / 1024,
        service_mib=(after - before) / 9000,
        base_mib=median("sizes", lambda run: run["100"]["memory_mib"]),
        start=median("start", lambda run: run["10000"]["Consul"]["served_s"]) / 10000,
    )


@dataclass(frozen=True, slots=True)
class World:
    """A mesh, and the servers in front of it."""

    sidecars: int
    servers: int
    workers: int
    by_socket: bool = False
    """Whether the servers reach Consul at a Unix socket; else over TCP, at one address."""

    @property
    def services(self) -> int:
        """Number of services."""
        return self.sidecars // INSTANCES

    @property
    def streams(self) -> float:
        """Of one worker."""
        return self.sidecars / self.servers / self.workers

    @property
    def watched(self) -> float:
        """The services that one server's sidecars serve or may call; who connects where is left to chance."""
        mine = min(self.services, self.sidecars / self.servers)
        return float(self.services * (1 - (1 - 1 / self.services) ** (mine * (1 + CALLED))))

    @property
    def changes_a_second(self) -> float:
        """In the busiest hour, all over the mesh."""
        return self.sidecars * REPLACED_A_DAY * 3 / 86400 * BUSY


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of a simulation."""

    reader: float
    """Of a core."""
    worker: float
    median_s: float
    p99_s: float
    reconnect_s: float
    """Until a worker's sidecars are served again when all of them come at once."""
    memory_gib: float
    """Of the largest process."""
    connections: float
    """To Consul."""
    start_s: float

    def limits(self, *, by_socket: bool) -> list[tuple[float, str]]:
        """Return the used part of each limit and its name, the most used first."""
        connections = (OPEN_FILES, "open files") if by_socket else (PORTS, "ports for connections to Consul")
        used = [
            (self.reader / 0.7, "the reader's core (70 %)"),
            (self.worker / 0.7, "a worker's core (70 %)"),
            (self.p99_s / 1.0, "a second for a change"),
            (self.reconnect_s / 10, "ten seconds for a reconnect"),
            (self.memory_gib / 8, "8 GiB for a process"),
            (self.connections / connections[0], connections[1]),
        ]
        return sorted(used, reverse=True)


def simulate(cost: Costs, world: World, seed: int = 1) -> Outcome:
    """Ten minutes of the busiest hour."""
    chance = random.Random(seed)
    share = world.watched / world.services
    rate = world.changes_a_second * share
    rest = cost.watch * (world.watched + min(world.services, world.sidecars / world.servers))
    names = NAMES_READS_A_SECOND * cost.name * 2 * world.services
    slowed = 1 / max(1 - rest - min(names, 0.9), 0.01)
    """Factor by which constant work of the reader slows changes down."""
    now = free = busy = 0.0
    workers = [0.0] * world.workers
    worked, waits = 0.0, []
    told = INSTANCES * CALLED / world.servers / world.workers
    while now < SECONDS:
        now += chance.expovariate(rate)
        free = max(free, now) + cost.change * slowed
        busy += cost.change
        ends = free
        for number in range(world.workers):
            streams = _poisson(chance, told)
            if streams:
                workers[number] = max(workers[number], free) + streams * cost.change_stream
                worked += streams * cost.change_stream
                ends = max(ends, workers[number])
        waits.append(ends - now)
    waits.sort()
    services_mib = cost.service_mib * INSTANCES / 10 * world.watched
    largest = cost.base_mib + services_mib + cost.stream_mib * world.streams
    return Outcome(
        reader=busy / SECONDS + rest + names,
        worker=worked / SECONDS / world.workers,
        median_s=waits[len(waits) // 2],
        p99_s=waits[len(waits) * 99 // 100],
        reconnect_s=world.streams * cost.reconnect,
        memory_gib=largest / 1024,
        connections=world.watched + min(world.services, world.sidecars / world.servers),
        start_s=cost.start * world.watched,
    )


def _poisson(chance: random.Random, mean: float) -> int:
    """Knuth's, for small means."""
    limit, count, product = math.exp(-mean), 0, chance.random()
    while product > limit:
        count += 1
        product *= chance.random()
    return count


WORLDS = (
    World(1_000, 1, 1),
    World(10_000, 1, 4),
    World(30_000, 1, 4),
    World(30_000, 3, 4),
    World(100_000, 8, 4),
    World(100_000, 1, 4, by_socket=True),
    World(100_000, 3, 4, by_socket=True),
    World(100_000, 8, 4, by_socket=True),
)

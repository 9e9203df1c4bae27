"""Several workers that share one port, and the process that reads the mesh for all of them.

The kernel gives each new connection to one of the processes that listen (``SO_REUSEPORT``). Each worker reports what
its sidecars need; the union is read once, and each worker is sent what it asked for. A worker that ends is replaced,
and its sidecars reconnect to any of the workers.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from prometheus_client import Metric

from xds.ads.call import STATUS_TIMEOUT
from xds.ads.listening import ListenError, Reservation, reserve
from xds.ads.tls import MeshTls
from xds.mesh.facts import CONTROL_PLANE_CERTIFICATE, Leaf
from xds.mesh.mesh import BASE_FACTS, Batch, Demand, Mesh
from xds.metrics import Metrics
from xds.workers.grpc_log import VARIABLES
from xds.workers.link import Answer, Drain, Facts, Link, Listening, Question, Start, Wanted
from xds.workers.serving import OWN_CERTIFICATE
from xds.workers.xds_settings import XdsSettings

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LAST_PAUSE_S = 0.5, 10.0
"""Before a worker that ended is replaced: longer for one that does so again and again."""
LIVED_S = 30.0
"""Seconds after which a worker's end does not count as failing at once."""
ANSWER_WITHIN_S = 10.0
ENDING_S = 5.0
"""Seconds that a worker has to end."""


class Worker:
    """Worker process, as long as it runs."""

    def __init__(self, link: Link, process: asyncio.subprocess.Process) -> None:
        self.link = link
        self.process = process
        self.demand = Demand()
        self.answers: dict[int, asyncio.Future[Any]] = {}


class WorkerPool:
    """Pool of ``count`` worker processes that serve.

    Args:
        settings: of each worker; all of them listen on the same address.
        on_demand: called with what all sidecars together need whenever that changes.
        count: how many workers.
    """

    def __init__(
        self,
        settings: XdsSettings,
        on_demand: Callable[[Demand], None],
        count: int,
    ) -> None:
        self.metrics = Metrics()
        self._settings = settings
        self._on_demand = on_demand
        self._count = count
        self._mesh = Mesh()
        self._demand = Demand()
        self._workers: dict[int, Worker] = {}
        self._questions = itertools.count()
        self._reservation: Reservation | None = None
        self._certified = False

    async def start(self) -> int:
        """Start the workers, and return the port on which all of them listen.

        Raises:
            ListenError: the address can't be listened on.
        """
        self._reservation = await reserve(self._settings.listen)
        try:
            for number in range(self._count):
                self._workers[number] = await self._start_one()
        except BaseException:
            await self.stop()
            raise
        return self._reservation.address.port

    async def drain(self, seconds: float) -> None:
        """Have every worker end its streams one after the other, over at most ``seconds``, and end."""
        workers, self._workers = list(self._workers.values()), {}
        for worker in workers:
            worker.link.send(Drain(seconds))
        await asyncio.gather(*(_ended(worker.process, seconds + STATUS_TIMEOUT + ENDING_S) for worker in workers))
        for worker in workers:
            worker.link.close()

    async def stop(self) -> None:
        """End every worker."""
        workers, self._workers = list(self._workers.values()), {}
        for worker in workers:
            worker.link.close()
        for worker in workers:
            await _ended(worker.process)
        if self._reservation is not None:
            self._reservation.close()

    async def _start_one(self) -> Worker:
        assert self._reservation is not None
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "xds.workers.worker", str(theirs.fileno()), pass_fds=[theirs.fileno()],
                env={**VARIABLES, **os.environ},
            )  # fmt: skip
        worker = Worker(await Link.over(ours), process)
        settings = replace(self._settings, listen=self._reservation.address)
        worker.link.send(Start(settings, logging.getLogger().level))
        message = await worker.link.receive()
        if not isinstance(message, Listening) or message.refusal:
            worker.link.close()
            await _ended(process)
            raise ListenError(
                message.refusal if isinstance(message, Listening) else "a worker ended before it could listen"
            )
        worker.link.send(Facts({key: fact for key in BASE_FACTS if (fact := self._mesh.fact(key)) is not None}))
        return worker

    async def watch(self) -> None:
        """Listen to the workers, and replace those that end, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(self._count):
                tasks.create_task(self._keep(number))

    async def _keep(self, number: int) -> None:
        loop = asyncio.get_running_loop()
        pause = FIRST_PAUSE_S
        while True:
            began = loop.time()
            worker = self._workers.get(number)
            if worker is not None:
                await self._listen_to(worker)
                code = await _ended(worker.process)
                if number not in self._workers:
                    return  # it was asked to end
                self._take_demand(worker, Demand())
                del self._workers[number]
                log.error("worker %d ended with code %s; another one takes its place", worker.process.pid, code)
            pause = FIRST_PAUSE_S if loop.time() - began > LIVED_S else min(pause * 2, LAST_PAUSE_S)
            await asyncio.sleep(pause)
            try:
                self._workers[number] = await self._start_one()
            except (ListenError, OSError) as error:
                log.error("a worker can't be started: %s", error)  # noqa: TRY400 - no error of this code

    async def _listen_to(self, worker: Worker) -> None:
        while (message := await worker.link.receive()) is not None:
            match message:
                case Wanted(demand):
                    self._take_demand(worker, demand)
                case Answer(number, data) if number in worker.answers:
                    worker.answers.pop(number).set_result(data)
        for answer in worker.answers.values():
            answer.cancel()

    # -- facts ------------------------------------------------------------------------------------------------------

    def apply(self, batch: Batch) -> None:
        """Take a batch of facts, and send each worker what it asked for."""
        changed = self._mesh.apply(batch)
        self._certified |= isinstance(batch.get(OWN_CERTIFICATE), Leaf)
        for worker in self._workers.values():
            known = {key: batch[key] for key in changed if key in BASE_FACTS or worker.demand.includes(key)}
            if known:
                worker.link.send(Facts(known))

    def _take_demand(self, worker: Worker, demand: Demand) -> None:
        """Take the changed demand of a worker: send it what is known, and have the rest read."""
        before, worker.demand = worker.demand, demand
        known: dict[Any, object] = {key: self._mesh.fact(key) for key in demand.keys_beside(before)}
        known = {key: fact for key, fact in known.items() if fact is not None}
        known |= dict.fromkeys(before.keys_beside(demand))
        if known:
            worker.link.send(Facts(known))
        together = Demand.union(each.demand for each in self._workers.values())
        if together != self._demand:
            self._demand = together
            self._on_demand(together)

    def missing(self) -> tuple[str, ...]:
        """Return the names of the base facts that have not been read yet."""
        missing = self._mesh.missing()
        waits = isinstance(self._settings.tls, MeshTls) and not self._certified
        return (*missing, CONTROL_PLANE_CERTIFICATE) if waits else missing

    # -- their state -----------------------------------------------------------------------------------------------

    async def _ask(self, about: str) -> list[Any]:
        async def one(worker: Worker) -> Any:
            number = next(self._questions)
            worker.answers[number] = asyncio.get_running_loop().create_future()
            worker.link.send(Question(number, about))
            try:
                async with asyncio.timeout(ANSWER_WITHIN_S):
                    return await worker.answers[number]
            except TimeoutError:
                return []
            finally:
                worker.answers.pop(number, None)

        found = await asyncio.gather(*map(one, list(self._workers.values())), return_exceptions=True)
        return [each for each in found if not isinstance(each, BaseException)]

    async def sidecars(self) -> list[dict[str, Any]]:
        """Return every connected sidecar, as plain data."""
        return sorted(itertools.chain(*await self._ask("sidecars")), key=lambda each: (each["id"], each["address"]))

    async def families(self) -> Iterable[Metric]:
        """Return the metrics of all workers, added up."""
        return added_up([list(self.metrics.registry.collect()), *await self._ask("families")])


def added_up(processes: Iterable[Iterable[Metric]]) -> list[Metric]:
    """Return the metrics of several processes as those of one; times at which something began are the earliest ones."""
    families: dict[str, Metric] = {}
    values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for metrics in processes:
        for metric in metrics:
            families.setdefault(metric.name, metric)
            sums = values.setdefault(metric.name, {})
            for sample in metric.samples:
                key = sample.name, tuple(sample.labels.items())
                before = sums.get(key)
                if before is None:
                    sums[key] = sample.value
                elif sample.name.endswith("_created"):
                    sums[key] = min(before, sample.value)
                else:
                    sums[key] = before + sample.value
    found = []
    for name, metric in families.items():
        family = Metric(name, metric.documentation, metric.type)
        for (sample_name, labels), value in values[name].items():
            family.add_sample(sample_name, dict(labels), value)
        found.append(family)
    return found


async def _ended(process: asyncio.subprocess.Process, within: float = ENDING_S) -> int:
    """Wait until it ends, and help if it does not; its exit code."""
    try:
        async with asyncio.timeout(within):
            return await process.wait()
    except TimeoutError:
        process.kill()
        return await process.wait()

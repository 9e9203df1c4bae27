"""Repeats blocking queries, by Consul's rules for their index.

The rules (Consul, "Blocking queries", and the measured behaviour of its servers): an index comes from a 200 only and is
at least 1. If it decreases, or an early answer has the same index, the state was restored or replaced; then everything
is read again without blocking, because other queries wait for an index that is too high. An answer does not imply a
change; its receiver compares. Queries expire and are not cancelled, because Consul keeps the connection slot of a
cancelled query until its wait is over.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass

from xds.sources.consul.client import ConsulError, Read, Reply

log = logging.getLogger(__name__)

Report = Callable[[str, ConsulError], None]
"""Function that reports to the operator what could not be read and why."""

FIRST_BACKOFF_S = 0.1
LAST_BACKOFF_S = 5.0
FORBIDDEN_BACKOFF_S = 10.0
EARLY_MARGIN_S = 0.25
BURST = 3
"""Reads in a row that the pace permits."""


class IndexRules:
    """Rules for the next query's index. Pure: time is an argument."""

    def __init__(self) -> None:
        self.index: int | None = None

    def answered(self, index: int, *, elapsed_s: float, wait_s: float) -> bool:
        """Take the index of an answer.

        Returns:
            Whether the state was replaced: every query has to be read again without blocking, this one included.
        """
        asked, self.index = self.index, max(1, index)
        if asked is None:
            return False
        if self.index < asked or (self.index == asked and elapsed_s < wait_s - EARLY_MARGIN_S):
            self.index = None
            return True
        return False

    def forget(self) -> None:
        """Read without blocking next."""
        self.index = None


class Backoff:
    """Jittered, doubling waits after failures."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._next_s = FIRST_BACKOFF_S

    def reset(self) -> None:
        """Note that an answer came: the next wait is the first one again."""
        self._next_s = FIRST_BACKOFF_S

    def after(self, error: ConsulError) -> float:
        """Return the seconds to wait after ``error``."""
        if error.forbidden:
            base = FORBIDDEN_BACKOFF_S
        else:
            base = LAST_BACKOFF_S if error.status == 429 else self._next_s
            self._next_s = min(self._next_s * 2, LAST_BACKOFF_S)
        return base * self._chance.uniform(0.5, 1.0)


class Pace:
    """Limit of one read each ``every_s`` seconds on average; a few in a row that come after a pause do not wait."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._spent_until = 0.0

    def next_wait(self, now: float) -> float:
        """Return the seconds to wait before the read that follows one that began at ``now``."""
        self._spent_until = max(self._spent_until, now) + self._every_s
        return max(0.0, self._spent_until - now - BURST * self._every_s)


@dataclass(slots=True)
class WatchState:
    """State of a watch, for `/ready` and the logs."""

    answered: bool = False
    error: str | None = None


class Watch:
    """Blocking query that is repeated forever; every answer goes to ``deliver``.

    Args:
        name: what is watched, for logs.
        read: reads it once.
        deliver: takes each answer; it may raise `ConsulError` to refuse one, which is then treated like a failure.
        on_replaced: called when an answer shows that Consul's state was replaced.
        on_failed: told of every failure.
        patience: how many seconds a query waits for a change, at the least; twice that at the most. It bounds how long
            it can sleep on a stale index, and how long a dead client's slot is held.
        report: told the watch's name and a failure when it is a new one, for the operator.
        pace_s: the average time between two reads, at the least.
        chance: jitter.
    """

    def __init__(
        self,
        name: str,
        read: Read,
        deliver: Callable[[Reply], object],
        *,
        on_replaced: Callable[[], None],
        on_failed: Callable[[ConsulError], None] | None = None,
        report: Report,
        pace_s: float,
        patience: Callable[[], float],
        chance: random.Random,
    ) -> None:
        self.name = name
        self.wanted = True
        self.state = WatchState()
        self._read = read
        self._deliver = deliver
        self._on_replaced = on_replaced
        self._on_failed = on_failed
        self._report = report
        self._pace = Pace(pace_s)
        self._chance = chance
        self._patience = patience
        self._rules = IndexRules()
        self._backoff = Backoff(chance)
        self._again = asyncio.Event()
        self._blocking: asyncio.Timeout | None = None
        """Timeout by which a blocking query can be interrupted."""

    def read_again(self) -> None:
        """Read without blocking, now."""
        self._again.set()
        if self._blocking is not None and not self._blocking.expired():
            self._blocking.reschedule(asyncio.get_running_loop().time())

    async def run(self) -> None:
        """Watch until the watch is not wanted any more, which is noticed when the query next returns."""
        while self.wanted:
            await self.turn()

    async def turn(self) -> None:
        """Make one read and process it, including the pause before the next one."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        wait_s = round(self._chance.uniform(1.0, 2.0) * self._patience())
        if self._again.is_set():
            self._again.clear()
            self._rules.forget()
        try:
            reply = await self._interruptible(wait_s)
            if reply is None:
                return
            self._process(reply, loop.time() - began, wait_s)
        except ConsulError as error:
            self._failed(error)
            await self._pause(self._backoff.after(error))
            return
        await self._pause(self._pace.next_wait(loop.time()))

    def _process(self, reply: Reply, elapsed_s: float, wait_s: float) -> None:
        first = self._rules.index is None
        unchanged = reply.index == self._rules.index
        replaced = self._rules.answered(reply.index, elapsed_s=elapsed_s, wait_s=wait_s)
        if first or not unchanged:
            self._deliver(reply)
        self._backoff.reset()
        if self.state.error is not None:
            log.debug("%s: Consul answers again", self.name)
        self.state = WatchState(answered=True)
        if replaced:
            log.warning("%s: Consul's state was replaced (index went back); everything is read again", self.name)
            self._on_replaced()

    def _failed(self, error: ConsulError) -> None:
        # An answer that was refused was not processed, so the next query must not wait on its index.
        self._rules.forget()
        if str(error) != self.state.error:
            self._report(self.name, error)
        self.state.error = str(error)
        if self._on_failed is not None:
            self._on_failed(error)

    async def _interruptible(self, wait_s: float) -> Reply | None:
        """Return the answer, or ``None`` when a fresh read was requested meanwhile."""
        if self._rules.index is None:
            return await self._read(None, wait_s)  # it does not block, so there is nothing to interrupt
        try:
            async with asyncio.timeout(None) as self._blocking:
                return await self._read(self._rules.index, wait_s)
        except TimeoutError:
            if not self._again.is_set():
                raise
            return None
        finally:
            self._blocking = None

    async def _pause(self, seconds: float) -> None:
        if seconds > 0:
            try:
                async with asyncio.timeout(seconds):
                    await self._again.wait()
            except TimeoutError:
                return

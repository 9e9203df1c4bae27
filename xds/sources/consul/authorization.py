"""Authorizes streams: asks Consul whether the token of each may act for its service.

The blocking query for a certificate does not notice for minutes that a token was deleted, and another stream may have
the certificate already. So each new stream is authorized by itself, before anything is sent to it, and every stream
about once a minute from then on. Streams of one service with one token share a request; one that arrives while a
request is in progress waits for the next, because the answer may be older than the end of its token.

Only a definite answer refuses: while Consul does not answer, new streams wait and the others are served.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections.abc import Callable

from xds.mesh.facts import Authorized, LeafKey, StreamKey, StreamRefused, StreamUndecided
from xds.mesh.mesh import Batch, Key, Kind
from xds.sources.consul.blocking import Backoff
from xds.sources.consul.client import ANONYMOUS, Consul, ConsulError

CONCURRENT_REQUESTS = 32
RECHECK_INTERVAL = 60.0
"""Seconds between two requests about a stream that is served."""
CONFIRMATION_PAUSE = 2.0
"""Seconds after which a refusal of a stream that is served is confirmed. A Consul that is starting refuses wrongly."""
REFUSAL_KEPT = 5.0
"""Seconds for which a refusal answers further streams of the same service with the same token."""
REFUSALS_KEPT = 1000
GATHERING_PAUSE = 0.1
"""Seconds in which further streams of the same service and token gather for a second request. The pause doubles with
each request after it, so that in a burst no stream waits longer than the burst has lasted."""
LONGEST_PAUSE = 1.0
"""Seconds of the longest such pause."""
LOOK_INTERVAL = 1.0
"""Seconds between two searches for streams whose next request is due."""


class StreamAuthorizer:
    """Authorizer of the streams that are open.

    Args:
        client: the Consul to ask.
        deliver: called with the answers.
        chance: the source of jitter.
    """

    def __init__(self, client: Consul, deliver: Callable[[Batch], None], chance: random.Random) -> None:
        self._client = client
        self._deliver = deliver
        self._chance = chance
        self._known: frozenset[StreamKey] = frozenset()
        self._served: dict[LeafKey, set[StreamKey]] = {}
        """The streams that are authorized."""
        self._waiting: dict[LeafKey, set[StreamKey]] = {}
        """The streams about which no request is in progress; a task runs for each of these keys."""
        self._refusals: dict[LeafKey, tuple[float, StreamRefused]] = {}
        """Recent refusals, each with the time until which it counts."""
        self._due: list[tuple[float, int, LeafKey]] = []
        """A heap of the times at which the served streams are asked about again."""
        self._number = itertools.count()
        self._asking = asyncio.Semaphore(CONCURRENT_REQUESTS)

    def follow(self, streams: frozenset[StreamKey], tasks: asyncio.TaskGroup) -> None:
        """Authorize the new ones of ``streams``, and forget those that are not in it any more."""
        gone, new = self._known - streams, streams - self._known
        self._known = streams
        for each in gone:
            served = self._served.get(each.leaf)
            if served is not None:
                served.discard(each)
                if not served:
                    del self._served[each.leaf]
        if gone:
            self._deliver({Key(Kind.STREAM, each): None for each in gone})
        now = asyncio.get_running_loop().time()
        refused: dict[Key, object] = {}
        for each in new:
            until, refusal = self._refusals.get(each.leaf, (0.0, None))
            if refusal is not None and now < until:
                refused[Key(Kind.STREAM, each)] = refusal
            elif each.leaf in self._waiting:
                self._waiting[each.leaf].add(each)
            else:
                self._waiting[each.leaf] = {each}
                tasks.create_task(self._authorize(each.leaf))
        if refused:
            self._deliver(refused)

    async def recheck(self, tasks: asyncio.TaskGroup) -> None:
        """Ask again about the streams that are served, each about once a minute, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(LOOK_INTERVAL)
            while self._due and self._due[0][0] <= loop.time():
                _, _, key = heapq.heappop(self._due)
                if key in self._served:
                    tasks.create_task(self._recheck(key))

    def _schedule(self, key: LeafKey, interval: float) -> None:
        heapq.heappush(self._due, (asyncio.get_running_loop().time() + interval, next(self._number), key))

    async def _recheck(self, key: LeafKey) -> None:
        answer = await self._ask(key)
        if isinstance(answer, StreamRefused):
            await asyncio.sleep(CONFIRMATION_PAUSE)
            answer = await self._ask(key)
        if isinstance(answer, StreamRefused):
            self._refuse(key, self._served.pop(key, set()), answer)
        elif key in self._served:
            self._schedule(key, RECHECK_INTERVAL)

    async def _authorize(self, key: LeafKey) -> None:
        """Ask about one service and one token until no stream waits for an answer."""
        backoff, pause = Backoff(self._chance), GATHERING_PAUSE
        while self._waiting[key]:
            asked, self._waiting[key] = self._waiting[key] & self._known, set()
            if not asked:
                continue
            answer = await self._ask(key)
            asked &= self._known
            match answer:
                case Authorized():
                    if asked and key not in self._served:
                        self._schedule(key, RECHECK_INTERVAL * self._chance.uniform(0.5, 1))
                    if asked:
                        self._served.setdefault(key, set()).update(asked)
                    self._deliver({Key(Kind.STREAM, each): answer for each in asked})
                    # When all sidecars reconnect at once, each would otherwise make a request of its own.
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, LONGEST_PAUSE)
                case StreamRefused():
                    self._refuse(key, asked, answer)
                case ConsulError() as error:
                    undecided = StreamUndecided(str(error))
                    self._deliver({Key(Kind.STREAM, each): undecided for each in asked})
                    await asyncio.sleep(backoff.after(error))
                    self._waiting[key] |= asked
        del self._waiting[key]

    def _refuse(self, key: LeafKey, streams: set[StreamKey], refusal: StreamRefused) -> None:
        now = asyncio.get_running_loop().time()
        self._refusals.pop(key, None)
        self._refusals[key] = now + REFUSAL_KEPT, refusal
        while len(self._refusals) > REFUSALS_KEPT or next(iter(self._refusals.values()))[0] <= now:
            del self._refusals[next(iter(self._refusals))]
        self._deliver({Key(Kind.STREAM, each): refusal for each in streams & self._known})

    async def _ask(self, key: LeafKey) -> Authorized | StreamRefused | ConsulError:
        async with self._asking:
            try:
                await self._client.check_may_write_service(key.service, key.token or ANONYMOUS)
            except ConsulError as error:
                return _refusal(key, error) if error.forbidden else error
        return Authorized()


def _refusal(key: LeafKey, error: ConsulError) -> StreamRefused:
    unknown = not key.token or "ACL not found" in str(error)
    return StreamRefused(
        f"{error}. 'consul acl token create -service-identity {key.service}' makes a token that has service:write on"
        f" {key.service!r}; give it to the sidecar with --token-file or CONSUL_HTTP_TOKEN",
        unauthenticated=unknown,
    )

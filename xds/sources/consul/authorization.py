"""Whether the token of a stream may act for its service: asked of Consul once for each stream.

The blocking query for a certificate does not notice that a token was deleted for minutes, and another stream may have
the certificate already. So each new stream is judged by itself, before anything is sent to it. Streams of one service
that present one token and arrive together share a question; one that arrives while a question is under way gets the
next, because the answer may be older than its token's end.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from xds.mesh.facts import Authorized, LeafKey, LeafRefused, StreamKey
from xds.mesh.mesh import Batch, Key, Kind
from xds.sources.consul.blocking import Backoff
from xds.sources.consul.client import ANONYMOUS, Consul, ConsulError

QUESTIONS_AT_ONCE = 32


class StreamAuthorizer:
    """Judges the streams that there are.

    Args:
        client: where to ask.
        deliver: takes the answers.
        chance: jitter.
    """

    def __init__(self, client: Consul, deliver: Callable[[Batch], None], chance: random.Random) -> None:
        self._client = client
        self._deliver = deliver
        self._chance = chance
        self._known: frozenset[StreamKey] = frozenset()
        self._waiting: dict[LeafKey, set[StreamKey]] = {}
        """The streams for which no question is under way yet; for each of these keys a task runs."""
        self._asking = asyncio.Semaphore(QUESTIONS_AT_ONCE)

    def follow(self, streams: frozenset[StreamKey], tasks: asyncio.TaskGroup) -> None:
        """Judge the new ones of ``streams``; what was said of the others that are gone is taken back."""
        gone, new = self._known - streams, streams - self._known
        self._known = streams
        if gone:
            self._deliver({Key(Kind.STREAM, each): None for each in gone})
        for each in new:
            if each.leaf in self._waiting:
                self._waiting[each.leaf].add(each)
            else:
                self._waiting[each.leaf] = {each}
                tasks.create_task(self._judge(each.leaf))

    async def _judge(self, key: LeafKey) -> None:
        """Ask about one service and one token for as long as streams wait for an answer."""
        backoff = Backoff(self._chance)
        while self._waiting[key]:
            async with self._asking:
                asked, self._waiting[key] = self._waiting[key] & self._known, set()
                if not asked:
                    continue
                error = await self._refusal(key)
            asked &= self._known
            if error is None:
                self._deliver({Key(Kind.STREAM, each): Authorized() for each in asked})
                backoff.reset()
            elif asked:
                self._deliver({Key(Kind.STREAM, each): LeafRefused(str(error)) for each in asked})
                await asyncio.sleep(backoff.after(error))
                self._waiting[key] |= asked
        del self._waiting[key]

    async def _refusal(self, key: LeafKey) -> ConsulError | None:
        try:
            await self._client.check_may_write_service(key.service, key.token or ANONYMOUS)
        except ConsulError as error:
            return error
        return None

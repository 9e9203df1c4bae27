"""Elects the one replica that may act, by a Lease: the same rules as client-go's leader election.

A replica that holds the Lease renews it; another one takes it when it was not renewed for its duration, by this
replica's own clock. The API server's check of the resource version decides between two that try.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import httpx2
from lightkube import AsyncClient
from lightkube.core.exceptions import ApiError
from lightkube.models.coordination_v1 import LeaseSpec
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.coordination_v1 import Lease

log = logging.getLogger(__name__)

DURATION_S = 15
"""Seconds after the last renewal at which another replica takes the Lease."""
RENEW_WITHIN_S = 8.0
"""Seconds without a renewal after which the leader stops acting. With a last try and its pause that is less than the
duration: no two act at once."""
RETRY_S = 2.0


class Election:
    """Election among the replicas of a Deployment.

    Args:
        client: of the API server.
        namespace: of the Lease.
        name: its name.
        identity: of this replica.
    """

    def __init__(self, client: AsyncClient, namespace: str, name: str, identity: str) -> None:
        self._client: Any = client
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._seen: tuple[str | None, str | None] = (None, None)
        self._seen_at = 0.0

    async def lead(self, act: Callable[[], Awaitable[None]]) -> None:
        """Run ``act`` whenever this replica is the leader; cancel it when it is no more. Until cancelled.

        Raises:
            Exception: that of ``act``.
        """
        loop = asyncio.get_running_loop()
        while True:
            renewed = loop.time()  # before the request: the API server may have taken it at once
            if not await self._try():
                await asyncio.sleep(RETRY_S)
                continue
            log.info("%s: this replica leads", self._name)
            async with _running(act) as task:
                while loop.time() - renewed < RENEW_WITHIN_S:
                    await asyncio.wait([task], timeout=RETRY_S)
                    if task.done():
                        task.result()
                    tried = loop.time()
                    if await self._try():
                        renewed = tried
            log.warning("%s: this replica leads no more: the Lease was not renewed", self._name)

    async def release(self) -> None:
        """Give the Lease up, so that another replica need not wait for its end."""
        try:
            found = await self._client.get(Lease, self._name, namespace=self._namespace)
            if found.spec.holderIdentity == self._identity:
                found.spec.holderIdentity = ""
                await self._client.replace(found)
        except httpx2.HTTPError as error:
            log.info("%s: the Lease is not given up: %s", self._name, error)

    async def _try(self) -> bool:
        """Take or renew the Lease. Return whether this replica has it."""
        try:
            async with asyncio.timeout(RETRY_S):
                return await self._take()
        except (httpx2.HTTPError, TimeoutError):
            return False

    async def _take(self) -> bool:
        now, clock = dt.datetime.now(dt.UTC), asyncio.get_running_loop().time()
        try:
            found = await self._client.get(Lease, self._name, namespace=self._namespace)
        except ApiError as error:
            if error.status.code != HTTPStatus.NOT_FOUND:
                raise
            spec = LeaseSpec(
                holderIdentity=self._identity, leaseDurationSeconds=DURATION_S, acquireTime=now, renewTime=now,
                leaseTransitions=0,
            )  # fmt: skip
            await self._client.create(Lease(metadata=ObjectMeta(name=self._name, namespace=self._namespace), spec=spec))
            return True
        spec = found.spec
        seen = spec.holderIdentity, str(spec.renewTime)
        if seen != self._seen:
            self._seen, self._seen_at = seen, clock
        if spec.holderIdentity not in (self._identity, "", None) and clock - self._seen_at < DURATION_S:
            return False
        if spec.holderIdentity != self._identity:
            spec.acquireTime, spec.leaseTransitions = now, (spec.leaseTransitions or 0) + 1
        spec.holderIdentity, spec.leaseDurationSeconds, spec.renewTime = self._identity, DURATION_S, now
        await self._client.replace(found)
        return True


@asynccontextmanager
async def _running(act: Callable[[], Awaitable[None]]) -> AsyncIterator[asyncio.Future[None]]:
    task = asyncio.ensure_future(act())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

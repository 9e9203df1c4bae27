"""Keeps a copy of a kind of Kubernetes objects: lists them once, then follows their changes.

The client is lightkube. Its watch raises on 410 (an expired resource version), so that the objects are listed again
here; it reads a rotated token anew after a 401; its objects are structs that keep known fields only. While the API
server can't be read, the last copy stays.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any, Generic, TypeVar

import httpx2
from lightkube import AsyncClient
from lightkube.core.exceptions import ApiError

log = logging.getLogger(__name__)

Object = TypeVar("Object")
Name = tuple[str, str]
"""Namespace and name of an object; an empty namespace for one of the whole cluster."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
"""Seconds before a failed list or watch is tried again; doubled with each failure, with jitter."""
WATCH_S = 50
"""Seconds after which a watch ends and is continued from its last version. A connection that was lost without a sign is
noticed by then."""


class Reflector(Generic[Object]):
    """Copy of all objects of one kind.

    Args:
        client: of the API server.
        kind: the class of the objects.
        on_change: called with the names of the objects that changed, appeared or disappeared.
        namespace: whose objects; ``*`` for all.
        labels: label selector.
    """

    def __init__(
        self,
        client: AsyncClient,
        kind: type[Object],
        on_change: Callable[[Iterable[Name]], None],
        *,
        namespace: str | None = None,
        labels: dict[str, Any] | None = None,
    ) -> None:
        self._client: Any = client  # its methods are typed for the kinds that lightkube knows
        self._kind = kind
        self._on_change = on_change
        self._where: dict[str, Any] = {"namespace": namespace, "labels": labels}
        self._version: str | None = None
        self.objects: dict[Name, Object] = {}
        self.listed = asyncio.Event()
        """Whether the objects have been listed once."""
        self.trouble = ""
        """Reason why the objects can't be read at the moment."""

    async def run(self) -> None:
        """Follow the objects until cancelled."""
        pause = FIRST_PAUSE_S
        while True:
            try:
                if self._version is None:
                    await self._list()
                    self._recovered()
                await self._watch()
                pause = FIRST_PAUSE_S
            except httpx2.HTTPError as error:
                if isinstance(error, ApiError) and error.status.code == HTTPStatus.GONE:
                    self._version = None
                    continue
                if not self.trouble:
                    log.warning("Kubernetes: can't read %s: %s", self._kind.__name__, _words(error))
                self.trouble = _words(error)
                await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - jitter
                pause = min(2 * pause, LONGEST_PAUSE_S)

    def _recovered(self) -> None:
        if self.trouble:
            log.info("Kubernetes: %s are read again", self._kind.__name__)
        self.trouble = ""

    async def _list(self) -> None:
        found = self._client.list(self._kind, **self._where)
        objects: dict[Name, Object] = {}
        async for each in found:
            objects[name_of(each)] = each
        before, self.objects = self.objects, objects
        self._version = found.resourceVersion
        changed = [name for name, each in objects.items() if _version(before.get(name)) != _version(each)]
        self.listed.set()
        self._on_change([*changed, *(before.keys() - objects.keys())])

    async def _watch(self) -> None:
        try:
            async with asyncio.timeout(WATCH_S):
                changes = self._client.watch(
                    self._kind, resource_version=self._version, server_timeout=WATCH_S, **self._where
                )
                async for what, each in changes:
                    self._recovered()
                    name = name_of(each)
                    if what == "DELETED":
                        self.objects.pop(name, None)
                    else:
                        self.objects[name] = each
                    self._version = each.metadata.resourceVersion
                    self._on_change([name])
        except TimeoutError:
            self._recovered()  # nothing changed meanwhile


def name_of(each: Any) -> Name:
    """Return the namespace and the name of an object."""
    return each.metadata.namespace or "", each.metadata.name


def _version(each: Any) -> str | None:
    return None if each is None else each.metadata.resourceVersion


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__

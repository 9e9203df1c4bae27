"""One HTTP request from a host, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from xds.lab.network import Host
from xds.lab.processes import eventually


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer; ``body`` is what the lab's application says, empty where something else answered."""

    status: int
    headers: Mapping[str, str]
    body: Mapping[str, Any]

    @property
    def service(self) -> str | None:
        """The name of the application that answered."""
        return self.body.get("service")

    @property
    def seen(self) -> Mapping[str, str]:
        """The headers that the application saw."""
        return dict(self.body.get("headers", {}))


async def request(
    host: Host,
    url: str,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    *,
    unix: str = "",
) -> Answer:
    """Send one request, on a connection of its own.

    Raises:
        ConnectionError: there was no answer.
    """
    connector: aiohttp.BaseConnector = aiohttp.TCPConnector(
        socket_factory=lambda info: host.socket(info[0], info[1]), force_close=True
    )
    if unix:
        connector = aiohttp.UnixConnector(unix)
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=20)) as session,
            session.request(method, url, headers=headers, allow_redirects=False) as answer,
        ):
            body = await answer.json() if answer.content_type == "application/json" else {}
            return Answer(answer.status, {key.lower(): value for key, value in answer.headers.items()}, body)
    except aiohttp.ClientError as error:
        raise ConnectionError(f"{url}: {error!r}") from error


async def until(ask: Callable[[], Any], what: str, holds: Callable[[Answer], bool], *, again: bool = True) -> Answer:
    """Ask until the answer is as it should be, and see ``again`` that it stays so."""
    found: Answer = await eventually(what, ask, until=holds)
    if again:
        found = await ask()
        assert holds(found), f"{what}: and then not any more: {found}"
    return found

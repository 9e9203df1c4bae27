"""Client of Consul's HTTP API: python-consul2's endpoint classes over one pooled aiohttp session.

The library's own asyncio client opens a connection for each request, ends every one after 300 s and drops client
certificates. So its base classes use a session of Gossamer's: no connection limit (every blocking query holds one), a
read timeout that fits the query's ``wait``, and TLS as configured. Endpoints and parameters that the library lacks go
through `Consul.read`.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import json
import logging
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson
from consul import base
from yarl import URL

from xds.sources.consul.pruning import pruned
from xds.sources.consul.settings import ConsulSettings, SettingsError

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 20.0
"""Seconds for an answer that does not block. Consul itself holds a request for 7 s while it has no leader."""

QUESTIONS_AT_ONCE = 64
"""Permissions in one request; Consul refuses more."""
ANONYMOUS = "anonymous"
"""Token that means "no token", where the agent would replace an empty one by its own default token."""

Params = Sequence[tuple[str, str | int]]


class ConsulError(Exception):
    """Failure of Consul to answer, or an unexpected answer. ``status`` is the HTTP status, if it answered."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status

    @property
    def forbidden(self) -> bool:
        """Whether the token lacks a permission or is unknown."""
        return self.status == 403


@contextmanager
def understanding() -> Iterator[None]:
    """Turn what decoding an unexpected answer raises into a `ConsulError`."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        raise ConsulError(f"Consul's answer is not understood ({type(error).__name__}: {error})") from error


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: its body decoded, and what its headers say."""

    data: Any
    index: int
    """X-Consul-Index, at least 1."""
    filtered: bool = False
    """Whether Consul left out what the token may not see (reported from 1.11 on)."""
    default_policy: str = ""
    """X-Consul-Default-ACL-Policy, where Consul sends it."""
    body: bytes = b""
    """Body as it was received, where that was asked for."""
    size: int = 0
    """Bytes of the body."""
    facts: Any = None
    """Decoded form of the answer, where the reader decodes it before it is delivered."""
    same: bool = False
    """Whether the body is the known one. ``data`` is empty then."""


class PooledClient(base.HTTPClient):  # type: ignore[misc]  # python-consul2 is not typed
    """python-consul2's transport over a shared session. Any status but 200 is a `ConsulError`.

    That includes 404, which the library takes for "empty": nothing that is read here ever answers so, but a proxy in
    front of Consul may, and an empty list of intentions would open what they close.
    """

    def __init__(self, settings: ConsulSettings) -> None:
        self._settings = settings
        self.base_uri = "http://localhost" if settings.address.startswith("unix:") else settings.address
        self._session: aiohttp.ClientSession | None = None

    async def get(self, callback: Any, path: str, params: Any = None, headers: Any = None) -> Any:
        return await self._request(callback, "GET", path, params, None, headers)

    async def put(self, callback: Any, path: str, params: Any = None, data: Any = "", headers: Any = None) -> Any:
        return await self._request(callback, "PUT", path, params, data, headers)

    async def delete(self, callback: Any, path: str, params: Any = None, data: Any = "", headers: Any = None) -> Any:
        return await self._request(callback, "DELETE", path, params, data, headers)

    async def post(self, callback: Any, path: str, params: Any = None, data: Any = "", headers: Any = None) -> Any:
        return await self._request(callback, "POST", path, params, data, headers)

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            address = self._settings.address
            connector: aiohttp.BaseConnector
            if address.startswith("unix://"):
                connector = aiohttp.UnixConnector(address.removeprefix("unix://"), limit=0)
            else:
                connector = aiohttp.TCPConnector(limit=0, ssl=self._settings.ssl_context())
            # Compression costs Consul more than sending, as measured on loopback and LAN.
            headers = {"Accept-Encoding": "identity"}
            self._session = aiohttp.ClientSession(connector=connector, headers=headers)
        return self._session

    async def _request(self, callback: Any, method: str, path: str, params: Any, data: Any, headers: Any) -> Any:
        timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT_S, sock_read=_read_timeout(params))
        server_name = self._settings.tls_server_name or None
        try:
            async with self._open().request(
                method,
                URL(self.uri(path, params), encoded=True),
                data=data,
                headers=headers,
                timeout=timeout,
                server_hostname=server_name,
                allow_redirects=False,
            ) as response:
                body = await response.read()
                answer = base.Response(response.status, response.headers, body.decode("utf-8", "replace"), body)
        except TimeoutError as error:
            raise ConsulError(f"Consul at {self._settings.shown_address} did not answer {path} in time") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ConsulError(f"can't reach Consul at {self._settings.shown_address}: {_reason(error)}") from error
        if answer.code != 200:
            words = "a web page, not Consul's words" if "<html" in answer.body.lower() else answer.body
            words = " ".join(words.split())[:300] or "no reason given"
            raise ConsulError(f"Consul refused {path} with status {answer.code}: {words}", answer.code)
        try:
            try:
                return callback(answer)
            except RecursionError:
                log.warning("Consul's answer to %s nests too deep; what is deeper is left out", path)
                body = await asyncio.to_thread(pruned, body)
                return callback(base.Response(answer.code, answer.headers, body.decode(), body))
        except ValueError as error:
            raise ConsulError(f"Consul's answer to {path} is not JSON: {error}", answer.code) from error


class Consul(base.Consul):  # type: ignore[misc]  # python-consul2 is not typed
    """The endpoints that Gossamer reads.

    The base class' constructor is not called: it would let CONSUL_HTTP_ADDR override what was configured, and warn
    of endpoints that are not used here.
    """

    def __init__(self, settings: ConsulSettings, *, needs_acls: bool = False) -> None:
        self.settings = settings
        self.needs_acls = needs_acls
        """Whether a Consul without ACLs grants nothing, rather than everything."""
        self.http = PooledClient(settings)
        self.token = settings.read_token()
        self.dc = settings.datacenter or None
        self.scheme = URL(settings.address).scheme
        self.consistency = "default"
        self.agent = base.Consul.Agent(self)
        self.catalog = base.Consul.Catalog(self)

    async def close(self) -> None:
        """Close every connection."""
        await self.http.close()

    async def follow_token_file(self, every_s: float = 1.0) -> None:
        """Read the token file again whenever it changes, until cancelled. Return at once without one."""
        while self.settings.token_file:
            await asyncio.sleep(every_s)
            try:
                self.token = await asyncio.to_thread(self.settings.read_token) or self.token
            except SettingsError:  # the file is being replaced: the current token stays
                continue

    async def read(
        self,
        path: str,
        *,
        index: int | None = None,
        wait_s: float = 0,
        token: str | None = None,
        datacenter: str = "",
        params: Params = (),
        known: bytes | None = None,
    ) -> Reply:
        """Send a GET request for ``path``, blocking until its index passes ``index``, ``wait_s`` seconds at most.

        Args:
            path: from ``/v1/`` on.
            index: X-Consul-Index of the last answer; ``None`` doesn't block.
            wait_s: how long to block.
            token: in place of this client's own.
            datacenter: in place of this client's own.
            params: more query parameters.
            known: a body that is known, and is not decoded again; ``None``: the body itself is not wanted.

        Raises:
            ConsulError: no answer, or one with a status other than 200.
        """
        query: list[tuple[str, str | int]] = [*params]
        where = datacenter or self.dc
        if where:
            query.append(("dc", where))
        if index is not None:
            query += [("index", index), ("wait", f"{wait_s:.0f}s")]
        used = self.token if token is None else token
        headers = {"X-Consul-Token": used} if used else {}
        decode = _reply if known is None else functools.partial(_reply, known=known)
        reply: Reply = await self.http.get(decode, path, params=query, headers=headers)
        return reply

    async def write(self, path: str, body: str, *, post: bool = False) -> Any:
        """Send a PUT request for ``path``, or a POST request, with the JSON ``body``.

        Return the answer, ``None`` for an empty one.

        Raises:
            ConsulError: no answer, or one with a status other than 200.
        """
        params = [("dc", self.dc)] if self.dc else []
        headers = {"Content-Type": "application/json"} | ({"X-Consul-Token": self.token} if self.token else {})
        send = self.http.post if post else self.http.put
        return await send(_answered, path, params=params, data=body.encode(), headers=headers)

    async def check_may_write_service(self, service: str, token: str) -> None:
        """Check that ``token`` has service:write on ``service``; where ACLs are off, every token has.

        Raises:
            ConsulError: it hasn't (403), Consul doesn't know it (403), has no ACLs though they are needed (403), or did
                not answer.
        """
        if self.needs_acls and not await self.has_acls():
            raise ConsulError(
                "Consul has no ACLs, so any host could act for any service: turn them on, or accept that with gossamer"
                " serve --insecure",
                403,
            )
        denied = await self._denied("write", [("service", service)], token)
        if denied:
            known = {self.token: "Gossamer's own token", ANONYMOUS: "the sidecar presents no token, and"}
            which = known.get(token, "the token that the sidecar presents")
            raise ConsulError(f"{which} needs service:write on {service!r}", 403)

    async def has_acls(self) -> bool:
        """Return whether this Consul has ACLs.

        Raises:
            ConsulError: it did not answer.
        """
        try:
            await self.http.post(_reply, "/v1/internal/acl/authorize", data="[]", headers={"X-Consul-Token": ANONYMOUS})
        except ConsulError as error:
            if _has_no_acls(error):
                return False
            if error.status is None or error.status >= 500:
                raise
        return True

    async def check_may_read(self, what: Sequence[tuple[str, str]]) -> None:
        """Check that this client's own token may read each of ``what``: pairs of a kind of resource and a name.

        Used when an answer lost something: a token without the permission gets an incomplete answer and no error.

        Raises:
            ConsulError: it may not (403), or Consul did not answer.
        """
        denied = await self._denied("read", what, self.token)
        if denied:
            kind, name = denied[0]
            raise ConsulError(f"the token may not read every {kind}: it lacks {kind}:read on {name!r}", 403)

    async def _denied(self, access: str, what: Sequence[tuple[str, str]], token: str) -> list[tuple[str, str]]:
        """Return those of ``what`` that ``token`` has no such access to; none where ACLs are off."""
        headers = {"X-Consul-Token": token} if token else {}
        denied: list[tuple[str, str]] = []
        for start in range(0, len(what), QUESTIONS_AT_ONCE):
            asked = what[start : start + QUESTIONS_AT_ONCE]
            question = json.dumps([{"Resource": kind, "Access": access, "Segment": name} for kind, name in asked])
            try:
                reply = await self.http.post(_reply, "/v1/internal/acl/authorize", data=question, headers=headers)
            except ConsulError as error:
                if _has_no_acls(error):
                    return []
                raise
            allowed = {(a["Resource"], a["Segment"]) for a in reply.data or () if a.get("Allow") is True}
            denied += [one for one in asked if one not in allowed]
        return denied

    @staticmethod
    async def awaited(answer: Awaitable[Any]) -> Any:
        """Return the result of one of the library's endpoints, which is not typed and awaitable over this transport
        only."""
        return await answer


def _has_no_acls(error: ConsulError) -> bool:
    return error.status == 401 and "ACL support disabled" in str(error)


Read = Callable[[int | None, float], Awaitable[Reply]]
"""Function that reads something once; its arguments are the index to wait for, and the seconds to wait."""


def _reply(response: Any, known: bytes | None = None) -> Reply:
    headers = response.headers
    same = bool(known) and response.content == known
    return Reply(
        data=None if same else _decoded(response),
        index=max(1, int(headers.get("X-Consul-Index", "1"))),
        filtered=headers.get("X-Consul-Results-Filtered-By-ACLs", "") == "true",
        default_policy=headers.get("X-Consul-Default-ACL-Policy", ""),
        body=b"" if known is None else response.content,
        size=len(response.content),
        same=same,
    )


def _answered(response: Any) -> Any:
    return _decoded(response) if response.content.strip() else None


def _decoded(response: Any) -> Any:
    try:
        return orjson.loads(response.content)
    except orjson.JSONDecodeError:  # which accepts less than Go may send, for example not half a surrogate pair
        return json.loads(response.body)


def _read_timeout(params: Any) -> float:
    wait = next((str(value) for key, value in params or () if key == "wait"), "")
    # Consul adds up to a sixteenth to the requested wait.
    return float(wait.removesuffix("s")) * 17 / 16 + 10 if wait else READ_TIMEOUT_S


def _reason(error: Exception) -> str:
    if isinstance(error, aiohttp.ServerDisconnectedError | ConnectionResetError):
        return (
            "it closed the connection without an answer; where this goes on, raise limits.http_max_conns_per_client"
            " on the agent (200 by default, and every watched service holds a connection)"
        )
    words = str(error)
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        cause = error.certificate_error
        why = getattr(cause, "verify_message", None) or str(cause)
        return f"its certificate can't be verified: {why}; compare --ca-file or CONSUL_CACERT"
    if isinstance(error, aiohttp.ClientConnectorError) and error.os_error.errno == errno.EADDRNOTAVAIL:
        return (
            "no local port is left for another connection to it, and every watched service holds one; reach Consul at"
            " a Unix socket (its addresses.http), or widen net.ipv4.ip_local_port_range"
        )
    if isinstance(error, aiohttp.ClientConnectorError):
        words = os.strerror(error.os_error.errno) if error.os_error.errno else str(error.os_error)
    if "WRONG_VERSION_NUMBER" in words:
        return "it does not speak TLS there; is it http:// rather than https://?"
    if "Bad status line" in words or "Expected HTTP" in words:
        return "what answers there does not speak HTTP; Consul's HTTP port is 8500 unless configured otherwise"
    return words.splitlines()[0] if words else type(error).__name__

"""Applications of the lab that know nothing of a mesh: servers, and clients that dial them.

``python -m xds.lab.application NAME PORT`` greets every connection with its name and echoes lines. With ``--http`` it
answers requests with its name, after calling every service that ``--calls NAME=URL`` names: ``http://`` others of its
kind, ``tcp://`` servers that greet. With ``--grpc`` it answers every gRPC method with its name.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import grpc
import grpc.aio
from aiohttp import web

from xds.lab.network import Host

CALL_WITHIN_S = 5.0


async def serve(name: str, port: int, address: str) -> None:
    """Greet every connection with ``name`` and echo each line."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(f"{name}\n".encode())
            while line := await reader.readline():
                writer.write(line)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, address, port)
    async with server:
        await server.serve_forever()


async def serve_http(name: str, port: int, address: str, calls: Mapping[str, str]) -> None:
    """Answer every request with ``name`` and what the services that it calls answered.

    ``request`` counts the requests on one connection, so that a client sees whether it is still the same one. What was
    asked for is told as well. ``?status=503`` is answered with that, ``?wait=2`` after so many seconds; a WebSocket
    echoes.
    """
    counts: weakref.WeakKeyDictionary[asyncio.BaseTransport, int] = weakref.WeakKeyDictionary()

    async def answer(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        counts[request.transport] = counts.get(request.transport, 0) + 1
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await _echo(request, name)
        await asyncio.sleep(float(request.query.get("wait", 0)))
        body: dict[str, Any] = {
            "service": name,
            "request": counts[request.transport],
            "path": request.path_qs,
            "method": request.method,
            "headers": {key.lower(): value for key, value in request.headers.items()},
        }
        answers = await asyncio.gather(*map(_call, calls.values()))
        if calls:
            body["calls"] = dict(zip(calls, answers, strict=True))
        return web.json_response(body, status=int(request.query.get("status", 200)), headers={"x-service": name})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, address, port).start()
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


async def _echo(request: web.Request, name: str) -> web.WebSocketResponse:
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    await socket.send_str(name)
    async for message in socket:
        await socket.send_str(message.data)
    return socket


async def serve_grpc(name: str, port: int, address: str) -> None:
    """Answer every unary gRPC method with ``name``."""

    def answer(details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        async def call(request: bytes, _context: Any) -> bytes:
            return f"{name} {details.method} {request.decode()}".encode()

        return grpc.unary_unary_rpc_method_handler(call)

    class EveryMethod(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpcio is not typed
        def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            return answer(handler_call_details)

    server = grpc.aio.server(handlers=[EveryMethod()])
    server.add_insecure_port(f"{address}:{port}")
    await server.start()
    await server.wait_for_termination()


async def _call(url: str) -> Any:
    """Return the response of the server at ``url``, or the reason why there is none."""
    parts = urlsplit(url)
    try:
        async with asyncio.timeout(CALL_WITHIN_S):
            if parts.scheme == "tcp":
                reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
                greeting = await reader.readline()
                await _closed(writer)
                return {"service": greeting.decode().strip()} if greeting else "refused"
            async with aiohttp.ClientSession() as session, session.get(url) as response:
                return await response.json()
    except (OSError, aiohttp.ClientError) as error:
        return f"refused: {error or type(error).__name__}"


TLS_ALERT = b"\x15\x03"
"""Beginning of the answer to plain text from a server that expects TLS."""


class RefusedError(ConnectionError):
    """Connection that was closed before the server sent its name."""


@dataclass(slots=True)
class Connection:
    """Connection to a server of this kind, which has sent its name: ``greeting``."""

    greeting: str
    _reader: asyncio.StreamReader
    _writer: asyncio.StreamWriter

    async def echo(self, text: str, within_s: float = 10.0) -> str:
        """Return what the server sends back for ``text``."""
        self._writer.write(f"{text}\n".encode())
        async with asyncio.timeout(within_s):
            line = await self._reader.readline()
        if not line:
            raise RefusedError("the connection was closed")
        return line.decode().rstrip("\n")

    async def close(self) -> None:
        """Close it."""
        await _closed(self._writer)

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def dial(host: Host, address: str, port: int, within_s: float = 10.0, say: str = "") -> Connection:
    """Connect from ``host`` as an application there would, and wait for the greeting.

    Args:
        host: where the application runs.
        address: what it dials.
        port: of it.
        within_s: how long to wait for the greeting, in seconds.
        say: a line to send first; a server that wants TLS closes the connection on it.

    Raises:
        RefusedError: the connection was closed without one.
        OSError: it could not be opened at all, or nothing happened for ``within_s`` seconds.
    """
    made = host.socket()
    async with asyncio.timeout(within_s):
        try:
            await asyncio.get_running_loop().sock_connect(made, (address, port))
        except BaseException:
            made.close()
            raise
        reader, writer = await asyncio.open_connection(sock=made)  # the transport closes the socket from now on
        try:
            writer.write(f"{say}\n".encode() if say else b"")
            greeting = await reader.readline()
        except BaseException:
            await _closed(writer)
            raise
    if not greeting or greeting.startswith(TLS_ALERT):
        await _closed(writer)
        raise RefusedError(f"{address}:{port} closed the connection without a greeting")
    return Connection(greeting.decode().rstrip("\n"), reader, writer)


async def _closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def who_answers(host: Host, address: str, port: int, within_s: float = 10.0, say: str = "") -> str | None:
    """Return the name of the server that answers, ``None`` where the connection is refused."""
    try:
        async with await dial(host, address, port, within_s, say) as connection:
            return connection.greeting
    except (ConnectionError, TimeoutError):
        return None


class Held:
    """An HTTP connection from ``host`` that is held open from one request to the next."""

    def __init__(self, host: Host, url: str) -> None:
        self._url = url
        self.requests = 0
        """Number of requests that were answered."""
        connector = aiohttp.TCPConnector(
            socket_factory=lambda info: host.socket(info[0], info[1]), limit=1, keepalive_timeout=3600
        )
        self._session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=10))

    async def ask(self) -> dict[str, Any]:
        """Return the response to one more request.

        Raises:
            RefusedError: there was none.
        """
        try:
            async with self._session.get(self._url) as response:
                answer = dict(await response.json())
        except (aiohttp.ClientError, OSError) as error:
            raise RefusedError(f"{self._url}: {error or type(error).__name__}") from error
        self.requests += 1
        return answer

    async def still_open(self) -> bool:
        """Return whether one more request is answered on the same connection."""
        return bool((await self.ask())["request"] == self.requests)

    async def __aenter__(self) -> Held:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()


async def ask(host: Host, url: str) -> dict[str, Any]:
    """Return the response to one request on a connection of its own.

    Raises:
        RefusedError: there was none.
    """
    async with Held(host, url) as connection:
        return await connection.ask()


def main() -> None:
    """Run a server until it is stopped."""
    parser = argparse.ArgumentParser(prog="xds.lab.application")
    parser.add_argument("name")
    parser.add_argument("port", type=int)
    parser.add_argument("--address", default="127.0.0.1")
    parser.add_argument("--http", action="store_true")
    parser.add_argument("--grpc", action="store_true")
    parser.add_argument("--calls", action="append", default=[], metavar="NAME=URL")
    given = parser.parse_args()
    if given.grpc:
        asyncio.run(serve_grpc(given.name, given.port, given.address))
    elif given.http:
        calls = dict(call.split("=", 1) for call in given.calls)
        asyncio.run(serve_http(given.name, given.port, given.address, calls))
    else:
        asyncio.run(serve(given.name, given.port, given.address))


if __name__ == "__main__":
    main()

"""The applications of the lab: a server that says its name and echoes, and a client that dials it.

``python -m xds.lab.application NAME PORT [ADDRESS]`` is the server. It knows nothing of a mesh.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from dataclasses import dataclass
from types import TracebackType

from xds.lab.network import Host


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


TLS_ALERT = b"\x15\x03"
"""What a server that wants TLS answers to plain text."""


class RefusedError(ConnectionError):
    """The connection was closed before the server said its name."""


@dataclass(slots=True)
class Connection:
    """A connection to a server of this kind, which has said its name: ``greeting``."""

    greeting: str
    _reader: asyncio.StreamReader
    _writer: asyncio.StreamWriter

    async def echo(self, text: str, within_s: float = 10.0) -> str:
        """What comes back for ``text``."""
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
        reader, writer = await asyncio.open_connection(sock=made)  # the socket is the transport's to close now
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
    """The name of the server that answers, ``None`` where the connection is refused."""
    try:
        async with await dial(host, address, port, within_s, say) as connection:
            return connection.greeting
    except (ConnectionError, TimeoutError):
        return None


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "127.0.0.1"))

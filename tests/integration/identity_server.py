"""A Connect-native server: speaks mutual TLS itself and tells each client the SPIFFE ID and serial it saw, then echoes.

``python -m tests.integration.identity_server PORT CERT KEY ROOTS``
"""

from __future__ import annotations

import asyncio
import ssl
import sys


async def serve(port: int, certificate: str, key: str, roots: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(roots)
    context.verify_mode = ssl.CERT_REQUIRED

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peercert")
        identity = next(value for kind, value in peer["subjectAltName"] if kind == "URI")
        writer.write(f"{identity} {peer['serialNumber']}\n".encode())
        while line := await reader.readline():
            writer.write(line)
        writer.close()

    server = await asyncio.start_server(answer, "0.0.0.0", port, ssl=context)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), *sys.argv[2:5]))

"""Answers DNS queries in any letter case.

Names in DNS have no case (RFC 1035, 2.3.3), but Envoy's DNS filter compares them letter by letter, and its table has
small letters. This server listens in front of Envoy's: it asks Envoy for the name in small letters, and answers
with the name as it was asked. Messages are read and written by dnspython.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import dns.asyncquery
import dns.exception
import dns.message
import dns.name

log = logging.getLogger(__name__)

ANSWER_TIMEOUT = 8.0
"""Seconds that Envoy has to answer; it gives the host's resolvers two seconds for each attempt."""
PENDING = 256
"""Queries that are answered at the same time; as many as Envoy forwards. Another one is dropped, and asked again."""


class DnsServer(asyncio.DatagramProtocol):
    """A DNS server over UDP that asks another one on loopback, in small letters.

    Attributes:
        pending: the queries that are being answered.
    """

    def __init__(self, upstream: int) -> None:
        """Make a server; ``upstream`` is the port of 127.0.0.1 at which Envoy answers."""
        self._upstream = upstream
        self._transport: asyncio.DatagramTransport | None = None
        self.pending: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        """Remember where to send answers."""
        self._transport = transport

    def datagram_received(self, data: bytes, client: Any) -> None:
        """Answer a query in a task of its own."""
        if len(self.pending) < PENDING:
            task = asyncio.get_running_loop().create_task(self._answer(data, client))
            self.pending.add(task)
            task.add_done_callback(self.pending.discard)

    async def _answer(self, wire: bytes, client: Any) -> None:
        try:
            query, lowered = dns.message.from_wire(wire), dns.message.from_wire(wire)
            for question in lowered.question:
                question.name = question.name.canonicalize()
            response = await dns.asyncquery.udp(
                lowered, "127.0.0.1", ANSWER_TIMEOUT, self._upstream, ignore_trailing=True
            )
            answer = as_asked(query, response).to_wire()
        except (dns.exception.DNSException, OSError, ValueError) as error:
            log.debug("no answer to a DNS query of %d bytes: %r", len(wire), error)
            return
        if self._transport is not None:
            self._transport.sendto(answer, client)

    async def close(self) -> None:
        """End all pending queries without an answer."""
        for task in self.pending:
            task.cancel()
        await asyncio.gather(*self.pending, return_exceptions=True)
        if self._transport is not None:
            self._transport.close()


def as_asked(query: dns.message.Message, response: dns.message.Message) -> dns.message.Message:
    """Return ``response`` with the names as ``query`` spells them, as a client that varies the case expects."""
    asked = {question.name: question.name for question in query.question}  # equal regardless of case
    response.question = query.question
    for record in response.answer:
        record.name = asked.get(record.name, record.name)
    return response

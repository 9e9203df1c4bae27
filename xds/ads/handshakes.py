"""Reports connections that fail: TLS handshakes, and clients that expect TLS at a plain-text port.

gRPC does not report connections without a call to the application. It does write lines to its log, with
``GRPC_TRACE=handshaker``: the address of each connection, and the error of a handshake that failed. This module parses
those lines (`Parser`), and logs one line that says what is wrong and what to do (`Handshakes`).
"""

from __future__ import annotations

import logging
import re
from collections import deque
from dataclasses import dataclass

from xds.ads.listening import peer_address

log = logging.getLogger(__name__)

STREAM_TIMEOUT = 10.0
"""Seconds after which a connection without a call counts as one that expects TLS."""
SILENT_CONNECTIONS = 3
"""Such connections of one host that are reported; a check of the port alone makes one now and then."""
SILENT_PERIOD = 60.0
"""Seconds in which they count."""
HOSTS_KEPT = 1000
CONNECTIONS_KEPT = 10_000

_HEADER = re.compile(rb"([IWEF])\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ ([\w.]+):\d+\] ")
"""The beginning of a line of gRPC's log: level, date, time, thread, source file."""
_CONTINUATION = re.compile(rb"=== Source Location Trace|src/| shutdown=|\s*$")
"""Beginnings of the further lines of an entry that has a status of several lines."""
_STEP = b"CallNextHandshakerLocked: error="
_FINISHED = re.compile(rb"error=OK shutdown=false index=2,")
_PEER = re.compile(rb"grpc\.internal\.endpoint_peer_address=([^,}]+)")
_REASON = re.compile(rb"(?:routines:OPENSSL_internal:)(\w+)(?:: ([^:]+))?")
_SERVER_NAME = b"No match found for server name"
_NOISE = (b"Log level INFO is not suitable", _SERVER_NAME)
"""Warnings about the log itself, and about a server name that has no certificate of its own."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A connection on which calls can arrive now."""

    peer: str


@dataclass(frozen=True, slots=True)
class Failed:
    """A connection whose handshake failed."""

    peer: str
    reason: str
    """The name that OpenSSL gives to the error."""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Other:
    """A line that is not about a handshake: a warning or an error of gRPC, or not gRPC's at all."""

    text: bytes
    grpc: bool


Event = Finished | Failed


class Parser:
    """Parser of standard error, in pieces of any size."""

    def __init__(self) -> None:
        self._partial = b""
        self._in_entry = False
        """Whether the previous line belongs to an entry of gRPC's log that may have further lines."""
        self._in_server_name = False
        """Whether the previous line has a server name that a client sent, which may have further lines."""
        self._error = b""
        """The error of a handshake whose address is in one of the next lines."""

    def feed(self, data: bytes) -> list[Event | Other]:
        """Return the events in complete lines; an incomplete line is kept until it is complete."""
        *lines, self._partial = (self._partial + data).split(b"\n")
        return [event for line in lines if (event := self._line(line)) is not None]

    def _line(self, line: bytes) -> Event | Other | None:
        header = _HEADER.match(line)
        if header is None:
            if self._in_server_name:  # the client chose it, line breaks included
                return None
            if self._in_entry and _CONTINUATION.match(line):
                return self._failed(line) if self._error else None
            self._in_entry = False
            return Other(line, grpc=False)
        self._in_entry, self._error = True, b""
        text = line[header.end() :]
        self._in_server_name = text.startswith(_SERVER_NAME)
        if text.startswith(_STEP):
            if _FINISHED.search(text):
                peer = _PEER.search(text)
                return Finished(_address(peer[1])) if peer else None
            if not text.startswith(_STEP + b"OK"):
                self._error = text
                return self._failed(text)
        elif header[1] != b"I" and not text.startswith(_NOISE):
            return Other(text, grpc=True)
        return None

    def _failed(self, line: bytes) -> Event | None:
        peer = _PEER.search(line)
        if peer is None:
            return None
        reason = _REASON.search(self._error)
        self._error = b""
        if reason is None:  # the connection was closed, for example, which is no mistake
            return None
        name, detail = (part.decode("ascii", "replace") for part in (reason[1], reason[2] or b""))
        return Failed(_address(peer[1]), name, detail)


def _address(name: bytes) -> str:
    return peer_address(name.decode("ascii", "replace"))


_CLIENT_REFUSES = (
    "the client does not accept this server's certificate ({}): compare its --xds-ca and --xds-sni, or the mesh's"
    " certificate authorities that it has"
)
_REMEDIES = {
    "WRONG_VERSION_NUMBER": "the client speaks plain text, and this port TLS: have its sidecar connect over TLS (--tls"
    " mesh, or --xds-ca), with a bootstrap made anew",
    "HTTP_REQUEST": "the client speaks HTTP, and this port TLS: gRPC over TLS is expected",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the client has no certificate, and --tls-client-ca requires one: give its"
    " sidecar --xds-cert and --xds-key",
    "CERTIFICATE_VERIFY_FAILED": "the client's certificate is refused ({}): expected a valid one of an authority in"
    " --tls-client-ca",
    "UNSUPPORTED_PROTOCOL": "the client offers an old version of TLS: 1.2 or newer is expected",
    "NO_SHARED_CIPHER": "the client offers no cipher that this server has: TLS 1.2 or newer with ECDHE is expected",
    # Appearance of an alert that OpenSSL sends in TLS 1.3 before its keys are in use.
    "BAD_PACKET_LENGTH": _CLIENT_REFUSES.format("its authority, name or validity"),
    "TLSV1_ALERT_UNKNOWN_CA": _CLIENT_REFUSES.format("its authority is unknown there"),
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": _CLIENT_REFUSES.format("it has expired, by the client's clock"),
    "SSLV3_ALERT_BAD_CERTIFICATE": _CLIENT_REFUSES.format("it is for another name"),
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": _CLIENT_REFUSES.format("its authority, name or validity"),
}


def explanation(failed: Failed) -> str:
    """Return what is wrong with a handshake and what to do."""
    text = _REMEDIES.get(failed.reason)
    if text is None and "ALERT" in failed.reason:
        text = _CLIENT_REFUSES.format(failed.reason)
    if text is None:
        return f"the handshake failed with {failed.reason}"
    return text.format(failed.detail or failed.reason)


class Handshakes:
    """Connections of a server on which no call has been made yet."""

    def __init__(self) -> None:
        self.tls = False
        """Whether the port speaks TLS. Only a plain-text port has clients whose handshake begins after gRPC's."""
        self._open: dict[str, float] = {}
        """The time at which each connection without a call began."""
        self._silent: dict[str, deque[float]] = {}
        """The times of the connections of each host that stayed without a call."""

    def take(self, event: Event, now: float) -> None:
        """Process an event of a connection from gRPC's log; ``now`` is the time in seconds."""
        match event:
            case Failed(peer):
                log.warning("TLS with %s failed: %s", peer.rpartition(":")[0], explanation(event))
            case Finished(peer) if not self.tls and len(self._open) < CONNECTIONS_KEPT:
                self._open[peer] = now

    def called(self, peer: str) -> None:
        """Note that a call arrived from a peer, ``host:port``."""
        self._open.pop(peer, None)

    def check(self, now: float) -> None:
        """Report the hosts that connect again and again without a call; ``now`` is the time in seconds."""
        while self._open:
            peer, since = next(iter(self._open.items()))
            if now - since < STREAM_TIMEOUT:
                break
            del self._open[peer]
            self._note_silent(peer.rpartition(":")[0], since)

    def _note_silent(self, host: str, since: float) -> None:
        times = self._silent.pop(host, deque())
        self._silent[host] = times
        times.append(since)
        while since - times[0] > SILENT_PERIOD:
            times.popleft()
        if len(self._silent) > HOSTS_KEPT:
            del self._silent[next(iter(self._silent))]
        if len(times) == SILENT_CONNECTIONS:
            log.warning(
                "%d connections of %s within a minute had no xDS stream: where its sidecar expects TLS, start this"
                " server with --tls mesh or --tls-cert, or the sidecar with --plaintext",
                len(times), host,
            )  # fmt: skip
            times.clear()

"""Keeps the mesh's certificate authorities in a file up to date with Consul.

Envoy verifies the control plane with the file and reads it again when it is replaced, so that a rotation of the
authority needs no restart. The answers come from the agent's own cache and need no token. Python's ``http.client`` is
used because a process runs beside each sidecar: it takes 15 MB less than the client of ``gossamer serve``.
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import logging
import random
import socket
import ssl
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from xds.files import write_public
from xds.sources import decode
from xds.sources.consul.settings import AGENT_ROOTS_PATH, ConsulSettings, SettingsError

log = logging.getLogger(__name__)

POLL_INTERVAL = 30.0
"""Seconds between two requests; the answer of an agent is in its cache."""
ANSWER_TIMEOUT = 5.0
"""Seconds for each step of a request."""
MAX_ANSWER = 1 << 20
"""Bytes of an answer."""


class RootsError(Exception):
    """Answer of Consul's without usable authorities; the message says why."""


class RootsFile:
    """File with the roots of one sidecar.

    Args:
        file: the file.
        trust_domain: the mesh's; authorities of another one are not written.
        settings: where Consul is.
    """

    def __init__(self, file: Path, trust_domain: str, settings: ConsulSettings) -> None:
        self._file = file
        self._trust_domain = trust_domain
        self._settings = settings
        self._failure = ""

    async def follow(self, interval: float = POLL_INTERVAL) -> None:
        """Replace the file whenever the authorities change, about each ``interval`` seconds, until cancelled."""
        while True:
            await asyncio.sleep(interval * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
            await asyncio.to_thread(self.update)

    def update(self) -> None:
        """Read the authorities once, and replace the file if it has others."""
        try:
            found = self._read()
            if found != self._written():
                write_public(self._file, found)
                log.info("the mesh's certificate authorities changed; %s has them", self._file)
        except (OSError, http.client.HTTPException, ValueError, SettingsError, RootsError) as error:
            failure = f"{type(error).__name__}: {error}"
            if failure != self._failure:
                log.warning(
                    "can't read the mesh's certificate authorities from Consul at %s, or write them: %s; those in %s"
                    " stay in use",
                    self._settings.shown_address, failure, self._file,
                )  # fmt: skip
            self._failure = failure
        else:
            self._failure = ""

    def _written(self) -> str | None:
        """Return the content of the file, ``None`` where it was removed or damaged, so that it is written again."""
        try:
            return self._file.read_text(encoding="ascii")
        except (OSError, ValueError):
            return None

    def _read(self) -> str:
        connection = ConsulConnection(self._settings)
        try:
            path = f"{connection.prefix}{AGENT_ROOTS_PATH}"
            if self._settings.datacenter:
                path += f"?dc={quote(self._settings.datacenter, safe='')}"
            connection.request("GET", path, headers=connection.headers)
            response = connection.getresponse()
            content = response.read(MAX_ANSWER)
        finally:
            connection.close()
        if response.status != http.HTTPStatus.OK:
            raise RootsError(f"it answers {response.status} {response.reason}")
        return roots_in(content, self._trust_domain)


def roots_in(content: bytes, trust_domain: str) -> str:
    """Return the authorities in Consul's answer, as one PEM file.

    Args:
        content: the body of the answer.
        trust_domain: the trust domain that is expected.

    Raises:
        RootsError: there are none, or they are of another trust domain.
        ValueError: the answer is not JSON, or what it has is not PEM.
    """
    data = json.loads(content)
    if not isinstance(data, dict) or not data.get("Roots"):
        raise RootsError("its answer has no authorities")
    if data.get("TrustDomain") != trust_domain:
        raise RootsError(
            f"the mesh's trust domain is {data.get('TrustDomain')!r} now, not {trust_domain!r}: restart the sidecar if"
            " this is meant"
        )
    try:
        found = decode.roots(data)
    except (KeyError, TypeError, AttributeError) as error:
        raise RootsError(f"its answer makes no sense: {error!r}") from error
    for certificate in found.certificates:
        ssl.PEM_cert_to_DER_cert(certificate.strip())
    return found.pem()


class ConsulConnection(http.client.HTTPConnection):
    """A connection to Consul's HTTP API: TCP, TLS, or a Unix socket.

    Attributes:
        headers: what each request has to send.
        prefix: the path before ``/v1``.

    Raises:
        SettingsError: the files for TLS can't be used.
    """

    def __init__(self, settings: ConsulSettings) -> None:
        parts = urlsplit(settings.address)
        self._socket_path = parts.path if parts.scheme == "unix" else ""
        self.prefix = "" if self._socket_path else parts.path.rstrip("/")
        context = settings.ssl_context()
        self._context = context if isinstance(context, ssl.SSLContext) else None
        host = parts.hostname or "localhost"
        self._server_name = settings.tls_server_name or host
        default = 443 if self._context else 80
        super().__init__(host, parts.port or default, timeout=ANSWER_TIMEOUT)
        self.headers = {}
        if parts.username is not None:
            credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
            self.headers["Authorization"] = f"Basic {base64.b64encode(credentials).decode()}"

    def connect(self) -> None:
        """Connect.

        Raises:
            OSError: Consul can't be reached, or can't be verified.
        """
        if self._socket_path:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(ANSWER_TIMEOUT)
            self.sock.connect(self._socket_path)
            return
        super().connect()
        if self._context is not None:
            self.sock = self._context.wrap_socket(self.sock, server_hostname=self._server_name)

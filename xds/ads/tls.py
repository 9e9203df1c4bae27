"""TLS of the xDS port: certificate files, read again when they change, and the identities of clients.

gRPC asks for the certificate at each handshake, in a thread of its own, so new files need no restart and end no stream.
Files that can't be used leave the certificate that is in use.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from xds.files import states

log = logging.getLogger(__name__)


class TlsError(Exception):
    """A certificate file can't be used; the message says which, why, and what is expected."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The files of a TLS server, PEM."""

    certificate: Path
    """The server's certificate, followed by the intermediate ones."""
    key: Path
    client_ca: Path | None = None
    """Certificate authorities. Where it is given, clients must present a certificate of one of these."""

    def paths(self) -> list[Path]:
        """Return the files that are given."""
        return [self.certificate, self.key, *([self.client_ca] if self.client_ca else [])]


class ServerCertificate:
    """The certificate of a TLS server.

    Raises:
        TlsError: its files can't be used.
    """

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._seen = states(files.paths())
        self._configuration = _read(files)

    def credentials(self) -> Any:
        """Return the credentials of a gRPC server, which follow the files. gRPC takes TLS 1.2 and newer only."""
        return grpc.dynamic_ssl_server_credentials(
            self._configuration, self._changed, require_client_authentication=self._files.client_ca is not None
        )

    def _changed(self) -> Any:
        """Return another configuration if the files differ, ``None`` otherwise."""
        with self._lock:
            state = states(self._files.paths())
            if state == self._seen:
                return None
            self._seen = state
            try:
                self._configuration = _read(self._files)
            except TlsError as error:
                log.error("the certificate in use stays: %s", error)  # noqa: TRY400 - a file's fault
                return None
            log.info("the certificate of the xDS port was read again from %s", self._files.certificate)
            return self._configuration


def _read(files: TlsFiles) -> Any:
    certificate, key = _content(files.certificate), _content(files.key)
    found = _certificates(files.certificate, certificate)[0]
    try:
        private = serialization.load_pem_private_key(key, None)
    except (ValueError, TypeError) as error:
        raise TlsError(f"{files.key} has no private key in PEM without a password: {error}") from None
    if private.public_key() != found.public_key():
        raise TlsError(f"the key in {files.key} is not that of the certificate in {files.certificate}")
    if found.not_valid_after_utc < datetime.now(UTC):
        when = f"{found.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
        raise TlsError(f"the certificate in {files.certificate} expired at {when}: replace it")
    roots = None
    if files.client_ca is not None:
        roots = _content(files.client_ca)
        _certificates(files.client_ca, roots)
    return grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=roots)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsError(f"can't read {path}: {error.strerror}") from None


def _certificates(path: Path, content: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError:
        raise TlsError(f"{path} has no certificate in PEM") from None


def spiffe_ids(context: Any) -> frozenset[str]:
    """Return the SPIFFE IDs of a call's client certificate, which gRPC verified; none where there is no certificate."""
    (pem,) = context.auth_context().get("x509_pem_cert") or (b"",)
    if not pem:
        return frozenset()
    try:
        names = x509.load_pem_x509_certificate(pem).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (ValueError, x509.ExtensionNotFound):
        return frozenset()
    uris = names.value.get_values_for_type(x509.UniformResourceIdentifier)
    return frozenset(uri for uri in uris if uri.startswith("spiffe://"))

"""TLS of the xDS port: the server's certificate, from files or of the mesh, and the identities of clients.

gRPC asks for the certificate at each handshake, in a thread of its own, so a new certificate needs no restart and ends
no stream. If a new one can't be used, the current one stays.
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from xds.files import states
from xds.mesh.facts import Leaf

log = logging.getLogger(__name__)

LAST_PART = 0.1
"""The part of a certificate's life that is left when it is reported as expiring."""


class TlsError(Exception):
    """Certificate that can't be used; the message says which, why, and what is expected."""


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


@dataclass(frozen=True, slots=True)
class MeshTls:
    """TLS with a certificate of the mesh's own authority, for the service ``gossamer``."""


@dataclass(frozen=True, slots=True)
class _InUse:
    """A certificate as gRPC takes it, and its life."""

    configuration: Any
    begins: datetime
    ends: datetime


class ServerCertificate(ABC):
    """The certificate of a TLS server, which may be replaced at any time.

    Attributes:
        requires_client_certificate: whether clients must present one.
    """

    requires_client_certificate = False

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._in_use: _InUse | None = None
        self._new = False
        """Whether gRPC has not been given the current certificate yet."""

    def credentials(self) -> Any:
        """Return the credentials of a gRPC server, which follow the certificate. gRPC takes TLS 1.2 and newer only."""
        with self._lock:
            assert self._in_use is not None
            self._new = False
            return grpc.dynamic_ssl_server_credentials(
                self._in_use.configuration,
                self._changed,
                require_client_authentication=self.requires_client_certificate,
            )

    def _changed(self) -> Any:
        """Return the configuration if it is another one than at the last handshake, ``None`` otherwise."""
        with self._lock:
            self._look()
            if not self._new or self._in_use is None:
                return None
            self._new = False
            return self._in_use.configuration

    def _take(self, found: _InUse) -> None:
        """Use another certificate from the next handshake on."""
        self._in_use, self._new = found, True

    @abstractmethod
    def _look(self) -> None:
        """Take another certificate where there is one that has not been taken."""

    def expiry_warning(self, now: datetime) -> str | None:
        """Return a warning about a certificate that has expired, or has less than a tenth of its life left.

        Args:
            now: the time, in UTC.
        """
        with self._lock:
            self._look()
            used = self._in_use
        if used is None or used.ends - now > (used.ends - used.begins) * LAST_PART:
            return None
        return f"the certificate of the xDS port {_expires(used.ends, now)}: {self._remedy()}"

    @abstractmethod
    def _remedy(self) -> str:
        """Return what to do about a certificate that expires."""


class FileCertificate(ServerCertificate):
    """A certificate in files, which are read again when they change.

    Raises:
        TlsError: its files can't be used.
    """

    def __init__(self, files: TlsFiles) -> None:
        super().__init__()
        self._files = files
        self.requires_client_certificate = files.client_ca is not None
        self._seen = states(files.paths())
        self._take(_read(files))

    def _look(self) -> None:
        state = states(self._files.paths())
        if state == self._seen:
            return
        self._seen = state
        try:
            self._take(_read(self._files))
        except TlsError as error:
            log.error("the certificate in use stays: %s", error)  # noqa: TRY400 - a file's fault
        else:
            log.info("the certificate of the xDS port was read again from %s", self._files.certificate)

    def _remedy(self) -> str:
        return f"replace {self._files.certificate} and {self._files.key}"


class MeshCertificate(ServerCertificate):
    """A leaf certificate of the mesh's authority for the service ``gossamer``."""

    def use(self, leaf: Leaf) -> None:
        """Use this leaf certificate from the next handshake on.

        Raises:
            TlsError: it can't be used.
        """
        names = f"the leaf certificate of {leaf.service}", f"the key of {leaf.service}"
        found = _usable(leaf.certificate_chain.encode(), leaf.private_key.encode(), *names, None)
        with self._lock:
            self._take(found)

    def _look(self) -> None:
        """Do nothing: `use` takes each one."""

    def _remedy(self) -> str:
        return "it should have been renewed; see what this log says of the leaf certificate of 'gossamer'"


def _read(files: TlsFiles) -> _InUse:
    certificate, key = _content(files.certificate), _content(files.key)
    roots = None
    if files.client_ca is not None:
        roots = _content(files.client_ca)
        _certificates(str(files.client_ca), roots)
    return _usable(certificate, key, str(files.certificate), str(files.key), roots)


def _usable(certificate: bytes, key: bytes, certificate_name: str, key_name: str, roots: bytes | None) -> _InUse:
    """Return a certificate as gRPC takes it.

    Args:
        certificate: PEM, followed by the intermediate ones.
        key: PEM.
        certificate_name: where it comes from, for messages.
        key_name: where its key comes from.
        roots: the authorities of client certificates, PEM, where these are required.

    Raises:
        TlsError: it can't be used.
    """
    found = _certificates(certificate_name, certificate)[0]
    try:
        private = serialization.load_pem_private_key(key, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise TlsError(f"{key_name} has no private key in PEM without a password: {error}") from None
    if private.public_key() != found.public_key():
        raise TlsError(f"the key in {key_name} is not that of the certificate in {certificate_name}")
    now = datetime.now(UTC)
    if found.not_valid_after_utc < now:
        raise TlsError(f"the certificate in {certificate_name} {_expires(found.not_valid_after_utc, now)}: replace it")
    configuration = grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=roots)
    return _InUse(configuration, found.not_valid_before_utc, found.not_valid_after_utc)


def _expires(when: datetime, now: datetime) -> str:
    return f"{'expired' if when < now else 'expires'} at {when:%Y-%m-%d %H:%M} UTC"


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsError(f"can't read {path}: {error.strerror}") from None


def _certificates(name: str, content: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(content)
    except (ValueError, UnsupportedAlgorithm):
        raise TlsError(f"{name} has no certificate in PEM") from None


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

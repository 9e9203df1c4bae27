"""Checks the control plane before Envoy starts: whether it speaks TLS as the sidecar does, and can be verified.

Envoy reports such a mismatch as a reset connection. So ``gossamer sidecar`` connects once and says what is wrong. If
the control plane does not answer, Envoy waits for it.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xds.mesh.addresses import HostPort
from xds.tls_client import client_context

if TYPE_CHECKING:
    from xds.envoy.bootstrap import ControlPlaneTls

TIMEOUT = 2.0
"""Seconds for each step of the check."""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""The beginning of an HTTP/2 client, an empty SETTINGS frame included (RFC 9113, section 3.4)."""
EXPIRED, NOT_YET_VALID, WRONG_HOST, WRONG_ADDRESS = 10, 9, 62, 64
"""OpenSSL's numbers of what can be wrong with a certificate (X509_V_ERR_*)."""


def mismatches(addresses: Sequence[HostPort], tls: ControlPlaneTls | None) -> list[str]:
    """Return what keeps a sidecar from talking to its control planes and what to do; nothing where nothing is seen.

    All are checked at the same time, so that several that do not answer delay the sidecar's start no more than one.
    """
    with ThreadPoolExecutor(len(addresses)) as pool:
        return [problem for problem in pool.map(partial(_mismatch, tls=tls), addresses) if problem is not None]


def _mismatch(address: HostPort, tls: ControlPlaneTls | None) -> str | None:
    shown = str(address)
    try:
        with socket.create_connection(address, TIMEOUT) as connection:
            connection.settimeout(TIMEOUT)
            return _plain_text(connection, shown) if tls is None else _over_tls(connection, address.host, tls, shown)
    except OSError:
        return None


def _plain_text(connection: socket.socket, shown: str) -> str | None:
    connection.sendall(PREFACE)
    try:
        answered = connection.recv(9)
    except ConnectionError:
        answered = b""
    if answered:
        return None
    return (
        f"the control plane at {shown} expects TLS: give --tls mesh, or with --xds-ca the authorities of its"
        " certificate file"
    )


def _over_tls(connection: socket.socket, host: str, tls: ControlPlaneTls, shown: str) -> str | None:
    name = tls.server_name or host
    try:
        context = client_context(cafile=str(tls.ca)) if isinstance(tls.ca, Path) else client_context(cadata=tls.ca)
    except (OSError, ssl.SSLError) as error:
        return f"can't use the authorities in {_named(tls)}: {error.strerror or error}; expected certificates in PEM"
    context.check_hostname = tls.identity is None
    # With TLS 1.3, OpenSSL sends its reason for a refusal in a form that the server can't read.
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    if tls.certificate is not None:
        try:
            context.load_cert_chain(tls.certificate, tls.key)
        except (OSError, ssl.SSLError) as error:
            return f"can't use --xds-cert {tls.certificate} with --xds-key {tls.key}: {error.strerror or error}"
    try:
        with context.wrap_socket(connection, server_hostname=name) as secured:
            problem = _other_identity(secured, tls, shown)
            if problem is not None:
                return problem
            secured.sendall(PREFACE)
            if secured.recv(9):
                return None
    except ssl.SSLCertVerificationError as error:
        return _unverified(error, name, tls, shown)
    except ssl.SSLError as error:
        if error.reason == "WRONG_VERSION_NUMBER":
            return (
                f"the control plane at {shown} speaks plain text, not TLS: start it with --tls mesh or --tls-cert, or"
                " give --plaintext here as well"
            )
        # gRPC closes the connection when a client certificate is missing or refused.
        closed = isinstance(error, ssl.SSLEOFError)
        if not closed and (error.reason is None or "CERTIFICATE" not in error.reason):
            return f"TLS with the control plane at {shown} failed: {error.reason or error}"
    except TimeoutError:
        return None
    if tls.identity is not None:
        return f"the control plane at {shown} closes the connection: see what its log says of this host"
    if tls.certificate is None:
        return f"the control plane at {shown} requires a client certificate: give --xds-cert and --xds-key"
    return f"the control plane at {shown} refuses the client certificate {tls.certificate}: see its --tls-client-ca"


def _named(tls: ControlPlaneTls) -> str:
    """Return where the authorities come from."""
    if tls.identity is None:
        return f"--xds-ca {tls.ca}"
    return f"the mesh's file {tls.ca}" if isinstance(tls.ca, Path) else "the mesh"


def _other_identity(secured: ssl.SSLSocket, tls: ControlPlaneTls, shown: str) -> str | None:
    """Return what is wrong where the certificate, which is of the mesh, is not the control plane's."""
    if tls.identity is None:
        return None
    about: Any = secured.getpeercert() or {}
    names = [str(value) for kind, value in about.get("subjectAltName", ()) if kind == "URI"]
    if any(re.fullmatch(tls.identity.pattern(), name) for name in names):
        return None
    return (
        f"the certificate of the control plane at {shown} is for {' and '.join(names) or 'no service'}, not for the"
        f" service 'gossamer' of {tls.identity.trust_domain}: what is listening there?"
    )


def _unverified(error: ssl.SSLCertVerificationError, name: str, tls: ControlPlaneTls, shown: str) -> str:
    of = f"the certificate of the control plane at {shown}"
    if error.verify_code == EXPIRED:
        remedy = "replace the file that its --tls-cert names" if tls.identity is None else "see its log and its /ready"
        return f"{of} has expired: {remedy}"
    if error.verify_code == NOT_YET_VALID:
        return f"{of} is not valid yet: compare the clocks of both hosts"
    if error.verify_code in (WRONG_HOST, WRONG_ADDRESS):
        return f"{of} is not for {name!r}: name what it is for with --xds-sni"
    if tls.identity is not None:
        return (
            f"{of} is not of an authority of the mesh: {error.verify_message}; where it serves with --tls-cert, give"
            " the authorities of that certificate with --xds-ca"
        )
    return f"{of} is not of an authority in --xds-ca {tls.ca}: {error.verify_message}"

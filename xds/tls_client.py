"""Makes TLS contexts for clients, which accept the same certificates on every version of Python."""

from __future__ import annotations

import ssl


def client_context(cafile: str | None = None, capath: str | None = None, cadata: str | None = None) -> ssl.SSLContext:
    """Return a context that verifies servers with these authorities, or with the system's where none are given.

    From 3.13 on, Python refuses certificates that RFC 5280 forbids, such as those without an authority key identifier.
    Envoy and Consul accept them, and private authorities often issue them, so that check is turned off.

    Raises:
        OSError: a file can't be read, or has no certificate.
    """
    context = ssl.create_default_context(cafile=cafile, capath=capath, cadata=cadata)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context

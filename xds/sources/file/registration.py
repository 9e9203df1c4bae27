"""Finds a sidecar's registration in a mesh file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cryptography import x509

from xds.mesh.facts import Roots
from xds.sources.file.document import parse
from xds.sources.file.facts import facts_of
from xds.sources.file.loading import read_text
from xds.sources.file.registered import registered
from xds.sources.file.settings import roots_file
from xds.sources.registration import Registration, choose, registration


class NoRootsError(Exception):
    """Roots of a mesh file's certificate authority that can't be read; the message says why and what to do."""


def find(mesh: Path, *, proxy_id: str = "", sidecar_for: str = "", with_roots: bool = False) -> Registration:
    """Return the sidecar with service ID ``proxy_id``, or the one of the service with ID ``sidecar_for``.

    ``with_roots``, the certificate authorities are read that ``gossamer serve`` publishes beside the file.

    Raises:
        NotRegisteredError: there is none, or several.
        RefusedError: the file can't be used.
        NoRootsError: the authorities can't be read.
    """
    document = parse(str(mesh), read_text(mesh))
    services = {service.id: service for service in registered(document.mesh)}
    shown = [service.as_json() for service in services.values()]
    found = choose(shown, proxy_id, sidecar_for, f"in {mesh}")
    facts = facts_of(document)
    return replace(
        registration("", found, facts.entries),
        datacenter=facts.datacenter,
        token=services[found["ID"]].token,
        roots=read_roots(roots_file(mesh)) if with_roots else None,
    )


def read_roots(file: Path) -> Roots:
    """Read the published roots.

    Raises:
        NoRootsError: they can't be read.
    """
    try:
        text = file.read_text(encoding="ascii")
        certificates = x509.load_pem_x509_certificates(text.encode())
        names = certificates[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
    except OSError as error:
        raise NoRootsError(
            f"can't read {file}: {error.strerror}. 'gossamer serve' writes it beside its mesh file when it serves TLS:"
            " wait for it or copy it here with the mesh file, or give the authorities of a server's certificate file"
            " with --xds-ca"
        ) from None
    except (ValueError, x509.ExtensionNotFound) as error:
        raise NoRootsError(f"{file} is not what gossamer serve wrote: {error}; copy it here again") from None
    return Roots(uri.removeprefix("spiffe://"), (text,))

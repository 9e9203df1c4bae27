"""Finding a sidecar's registration in a mesh file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from xds.sources.file.document import parse
from xds.sources.file.facts import facts_of
from xds.sources.file.registered import registered
from xds.sources.file.source import read_text
from xds.sources.registration import Registration, choose, registration


def find(mesh: Path, *, proxy_id: str = "", sidecar_for: str = "") -> Registration:
    """The sidecar with service ID ``proxy_id``, or the one of the service with ID ``sidecar_for``.

    Raises:
        NotRegisteredError: none, or several.
        RefusedError: the file can't be used.
    """
    document = parse(str(mesh), read_text(mesh))
    services = {service.id: service for service in registered(document.mesh)}
    shown = [service.as_json() for service in services.values()]
    found = choose(shown, proxy_id, sidecar_for, f"in {mesh}")
    facts = facts_of(document)
    return replace(
        registration("", found, facts.entries), datacenter=facts.datacenter, token=services[found["ID"]].token
    )

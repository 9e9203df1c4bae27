"""Reads a mesh file and its state folder as a whole: what is served until either of them changes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from xds.policy.quotas import DEFAULT_QUOTAS, Quotas
from xds.sources.authority import Authority
from xds.sources.file.document import Problem, RefusedError, no_garbage, parse
from xds.sources.file.facts import FileFacts, facts_of, warnings
from xds.sources.file.settings import FileSettings
from xds.sources.file.state import StateFolder
from xds.sources.file.virtual_ips import Given


@dataclass(frozen=True, slots=True)
class LoadedMesh:
    """Mesh from the file and the state folder."""

    facts: FileFacts
    given: Given
    authority: Authority
    warnings: tuple[str, ...]
    """Warnings about what is allowed and may still not be intended."""


def certifies_differently(before: LoadedMesh, after: LoadedMesh) -> bool:
    """Return whether certificates that were issued before differ from what would be issued now."""
    return (before.authority, before.facts.datacenter) != (after.authority, after.facts.datacenter)


@no_garbage()
def load(
    settings: FileSettings,
    *,
    tokens_needed: bool,
    now: datetime,
    known: LoadedMesh | None = None,
    quotas: Quotas = DEFAULT_QUOTAS,
) -> LoadedMesh:
    """Read the mesh file and the state folder; virtual IPs and an authority are made where there are none yet.

    Args:
        settings: where they are.
        tokens_needed: whether others than this host can connect, so that certificates have to be asked for by token.
        now: the time, in UTC.
        known: what is served now; its authority and virtual IPs are not replaced by others behind its back.
        quotas: limits of the configuration of one service.

    Raises:
        RefusedError: the file can't be used.
        StateError: the state folder can't.
    """
    document = parse(str(settings.mesh), read_text(settings.mesh))
    facts = facts_of(document, quotas)
    if tokens_needed and not facts.declares_tokens and facts.tokens:
        raise RefusedError(
            str(settings.mesh),
            [
                Problem(
                    document.lines.of(("services",)),
                    "no service has a token, so any client would be given any certificate: give each service"
                    " its token, let gossamer listen on loopback only (--listen 127.0.0.1:18000), or accept that with"
                    " --insecure",
                )
            ],
        )
    folder = StateFolder(settings.state)
    taken = {address: service for service in facts.instances for address in facts.claimed(service)}
    wanted = facts.without_virtual_ip()
    moved = [
        f"{taken[address]!r} claims the virtual IP {address}, which was given to {service!r}: choose another"
        for service, address in folder.virtual_ips().by_service.items()
        if service in wanted and address in taken
    ]
    if moved:
        raise RefusedError(str(settings.mesh), [Problem(0, reason) for reason in moved])
    authority = folder.authority(now, known=known.authority if known else None)
    given = folder.give_virtual_ips(wanted, taken, since=known.given if known else Given())
    return LoadedMesh(facts, given, authority, tuple(text for _, text in warnings(document, facts)))


def read_text(file: Path) -> str:
    """Return the text of a mesh file.

    Raises:
        RefusedError: it can't be read.
    """
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise RefusedError(str(file), [Problem(0, f"can't be read: {reason}")]) from None

"""A mesh read from a file: the same facts that Consul would give, taken again whenever the file changes.

An edit that can't be used is refused with its reasons, and the last good mesh goes on serving. Whoever edits sees the
refusal in the log and in ``/ready``.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import random
from collections.abc import Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from watchfiles import awatch

from xds.files import states, write_public
from xds.mesh.chains import DiscoveryChain, Elsewhere, InstancesOf
from xds.mesh.facts import (
    CONTROL_PLANE_LEAF,
    Authorized,
    Leaf,
    LeafKey,
    LeafRefused,
    Roots,
    ServiceInstances,
    StreamKey,
    StreamRefused,
)
from xds.mesh.mesh import DEFAULT_ALLOW, ROOTS, Batch, Demand, Key, Kind
from xds.policy.quotas import DEFAULT_QUOTAS, Quotas
from xds.sources.authority import Authority, IssuedLeaf, issue
from xds.sources.file.document import Problem, RefusedError, no_garbage, parse
from xds.sources.file.facts import FileFacts, facts_of, warnings
from xds.sources.file.state import StateError, StateFolder
from xds.sources.file.virtual_ips import Given

log = logging.getLogger(__name__)

SETTLE_MS = 100
"""An edit is read once nothing has been written for this long."""
LOOK_ANYWAY_MS = 500
"""Milliseconds after which a change is found where the file system reports nothing (a network mount, a link to
elsewhere)."""
RENEWAL_LOOK_S = 60.0
ROOT_WARNING = timedelta(days=90)


@dataclass(frozen=True, slots=True)
class FileSettings:
    """Paths of a mesh without a Consul."""

    mesh: Path
    state: Path
    """The folder of its certificate authority and its virtual IPs."""

    @classmethod
    def resolve(cls, mesh: Path, state: Path | None) -> FileSettings:
        """Return the settings for a mesh file; its state is kept beside it where no folder is named."""
        return cls(mesh, state or mesh.parent / f"{mesh.name}.state")


def roots_file(mesh: Path) -> Path:
    """Return the file with the roots of a mesh file's authority (PEM), with which sidecars verify the control plane."""
    return mesh.parent / f"{mesh.name}.roots.pem"


@dataclass(frozen=True, slots=True)
class LoadedMesh:
    """Mesh from the file and the state folder."""

    facts: FileFacts
    given: Given
    authority: Authority
    warnings: tuple[str, ...]
    """Warnings about what is allowed and may still not be intended."""


def _certifies_otherwise(before: LoadedMesh, after: LoadedMesh) -> bool:
    """Whether a certificate from before is not what would be issued now."""
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
        quotas: what the configuration of one service may come to.

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
                    "no service has a token, so whoever connects would be given any certificate: give each service"
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


def _same(token: str, presented: str) -> bool:
    """Compare tokens in a time that does not depend on what they have in common."""
    return hmac.compare_digest(token.encode(), presented.encode())


class FileSource:
    """Source that serves a mesh from a file.

    Args:
        settings: where it is.
        sink: takes each batch of facts.
        tokens_needed: as for `load`.
        default_allow: what holds where no intention matches, in place of what the file says.
        quotas: what the configuration of one service may come to.
        clock: the time, in UTC.

    Raises:
        RefusedError: the file can't be used.
        StateError: the state folder can't.
    """

    def __init__(
        self,
        settings: FileSettings,
        sink: Callable[[Batch], None],
        *,
        tokens_needed: bool,
        default_allow: bool | None = None,
        quotas: Quotas = DEFAULT_QUOTAS,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._settings = settings
        self._sink = sink
        self._tokens_needed = tokens_needed
        self._default_allow = default_allow
        self._quotas = quotas
        self._clock = clock
        self._chance = random.Random()  # noqa: S311 - jitter
        self._demand = Demand()
        self._served = Demand()
        """The demand as it was last followed."""
        self._demand_changed = asyncio.Event()
        self._leaves: dict[LeafKey, IssuedLeaf] = {}
        self._trouble: str | None = None
        self._published: Roots | None = None
        self._unpublished: str | None = None
        """The reason why the roots could not be published."""
        self._seen: tuple[object, ...] = ()
        """The files as they were when they were last taken; at the start they are looked at once more."""
        self._mesh = load(settings, tokens_needed=tokens_needed, now=clock(), quotas=quotas)
        self._tell_loaded()

    # -- from outside ---------------------------------------------------------------------------------------------

    def demand(self, demand: Demand) -> None:
        """Hand over what ``demand`` names from now on."""
        self._demand = demand
        self._demand_changed.set()

    async def run(self) -> None:
        """Follow the file until cancelled."""
        self._sink(self._base())
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_files())
            tasks.create_task(self._follow_demand())
            tasks.create_task(self._keep_leaves())

    async def asks_for_tokens(self) -> bool:
        """Return true: `load` refuses a file without tokens where they are needed."""
        return True

    async def close(self) -> None:
        """Nothing is held open."""

    def troubles(self) -> dict[str, str]:
        """Why the file as it is now is not what is served, and what needs an operator soon."""
        found = {"mesh file": self._trouble} if self._trouble else {}
        expires = self._mesh.authority.expires_at
        if expires - self._clock() < ROOT_WARNING:
            found["certificate authority"] = f"its root expires on {expires:%Y-%m-%d}: run gossamer ca rotate"
        if self._unpublished:
            found["roots file"] = self._unpublished
        return found

    # -- the files ------------------------------------------------------------------------------------------------

    def _signature(self) -> tuple[object, ...]:
        """Return what differs when the mesh file or the authority's has been written."""
        return states((self._settings.mesh, StateFolder(self._settings.state).authority_file))

    async def _follow_files(self) -> None:
        folders = {self._settings.mesh.parent, self._settings.state}
        changes = awatch(
            *folders,
            watch_filter=None,
            recursive=False,
            step=SETTLE_MS,
            rust_timeout=LOOK_ANYWAY_MS,
            yield_on_timeout=True,
        )
        try:
            async with aclosing(changes):
                async for _ in changes:
                    await self._look()
        except Exception as error:  # of the library's own, for whatever the kernel refuses
            log.warning("can't be told of edits (%s): looking every %d ms", error, LOOK_ANYWAY_MS)
        while True:
            await self._look()
            await asyncio.sleep(LOOK_ANYWAY_MS / 1000)

    async def _look(self) -> None:
        """Take the files as they are now, if that differs and can be used."""
        signature = await asyncio.to_thread(self._signature)
        if signature == self._seen:
            return
        try:
            loaded = await asyncio.to_thread(
                load,
                self._settings,
                tokens_needed=self._tokens_needed,
                now=self._clock(),
                known=self._mesh,
                quotas=self._quotas,
            )
        except RefusedError as error:
            self._seen = signature
            self._refuse(error)
            return
        except StateError as error:
            self._refuse(error)  # and try again, since what it is about may be put right without these files
            return
        except Exception as error:
            # Whatever an edit may do to us, it does not end what is served.
            self._seen = signature
            log.exception("taking the edit failed")
            self._refuse(RuntimeError(f"{self._settings.mesh}: can't be taken: {error!r}"))
            return
        self._seen = signature
        if self._trouble:
            log.info("%s can be used again", self._settings.mesh)
        self._trouble = None
        if loaded == self._mesh:
            return
        before, self._mesh = self._mesh, loaded
        self._tell_loaded(before)
        self._sink(
            self._base()
            | self._services(self._served.services)
            | self._certificates(self._served.leaves, anew=_certifies_otherwise(before, loaded))
            | self._authorizations(self._served.streams)
        )
        await self._publish_roots()

    def _refuse(self, error: Exception) -> None:
        if str(error) != self._trouble:
            log.error("refused, the last good mesh goes on serving:\n%s", error)
        self._trouble = str(error)

    def _tell_loaded(self, before: LoadedMesh | None = None) -> None:
        mesh = self._mesh
        known = before.given.by_service if before else {}
        given = [f"{name} {address}" for name, address in sorted(mesh.given.by_service.items()) if name not in known]
        log.info(
            "%s: %d services in the mesh%s",
            self._settings.mesh,
            len(mesh.facts.instances),
            f"; virtual IPs given: {', '.join(given)}" if given else "",
        )
        for warning in mesh.warnings:
            if before is None or warning not in before.warnings:
                log.warning("%s: %s", self._settings.mesh, warning)
        if before is not None and mesh.authority.certificate != before.authority.certificate:
            log.info("the certificate authority was rotated; the root is now %s", mesh.authority.fingerprint)

    # -- facts ----------------------------------------------------------------------------------------------------

    def _base(self) -> dict[Key, object]:
        base = self._mesh.facts.base(self._mesh.authority.trusted(self._clock()))
        return base if self._default_allow is None else base | {DEFAULT_ALLOW: self._default_allow}

    def _services(self, services: frozenset[str]) -> dict[Key, object]:
        batch: dict[Key, object] = {}
        for name in services:
            batch |= self._mesh.facts.service(name, self._mesh.given)
        return batch

    @staticmethod
    def _elsewhere(wanted: Iterable[Elsewhere], chains: Iterable[InstancesOf]) -> dict[Key, object]:
        """Return empty facts: a mesh file is one datacenter, and has no prepared queries."""
        batch: dict[Key, object] = {Key(Kind.INSTANCES, each): ServiceInstances("") for each in wanted}
        for key in chains:
            refusal = f"there is no datacenter {key.datacenter!r}: a mesh file is one alone"
            batch[Key(Kind.CHAIN, key)] = DiscoveryChain(key.service, refusal=refusal)
        return batch

    async def _follow_demand(self) -> None:
        while True:
            await self._demand_changed.wait()
            self._demand_changed.clear()
            before, self._served = self._served, self._demand
            batch = self._services(self._served.services - before.services)
            batch |= self._certificates(self._served.leaves - before.leaves)
            batch |= self._authorizations(self._served.streams - before.streams)
            batch |= {Key(Kind.STREAM, each): None for each in before.streams - self._served.streams}
            batch |= self._elsewhere(self._served.elsewhere, self._served.chains)
            batch |= {Key(Kind.INSTANCES, each): None for each in before.elsewhere - self._served.elsewhere}
            batch |= {Key(Kind.CHAIN, each): None for each in before.chains - self._served.chains}
            for name in before.services - self._served.services:
                batch[Key(Kind.INSTANCES, name)] = batch[Key(Kind.CHAIN, name)] = None
            for key in before.leaves - self._served.leaves:
                self._leaves.pop(key, None)
                batch[Key(Kind.LEAF, key)] = None
            self._sink(batch)
            await self._publish_roots()

    # -- who may have what -----------------------------------------------------------------------------------------

    def _authorizations(self, streams: frozenset[StreamKey]) -> dict[Key, object]:
        """Return whether each of these streams may be served; all of them are judged again after each edit."""
        return {Key(Kind.STREAM, each): self._refusal(each.leaf) or Authorized() for each in streams}

    # -- certificates ---------------------------------------------------------------------------------------------

    def _certificates(self, keys: frozenset[LeafKey], *, anew: bool = False) -> dict[Key, object]:
        """Return the leaf of each key, or the reason why there is none; existing ones are kept unless ``anew``."""
        return {Key(Kind.LEAF, key): self._certificate(key, anew=anew) for key in keys}

    def _certificate(self, key: LeafKey, *, anew: bool) -> Leaf | LeafRefused:
        refusal = self._refusal(key)
        if self._mesh.authority.expires_at <= self._clock():
            refusal = StreamRefused("the root certificate has expired: run gossamer ca rotate --distrust-old")
        if refusal is not None:
            self._leaves.pop(key, None)
            return LeafRefused(refusal.reason)
        if anew or key not in self._leaves:
            self._leaves[key] = issue(
                self._mesh.authority, key.service, self._mesh.facts.datacenter, self._clock(), self._chance.random()
            )
        return self._leaves[key].leaf

    def _refusal(self, key: LeafKey) -> StreamRefused | None:
        if key == CONTROL_PLANE_LEAF:
            return None
        tokens = self._mesh.facts.tokens.get(key.service)
        if tokens is None:
            return StreamRefused(f"the mesh file has no sidecar of a service {key.service!r}: add one")
        if key.certified or not tokens or any(_same(token, key.token) for token in tokens):
            return None
        what = "another token than" if key.token else "no token, not"
        return StreamRefused(
            f"the sidecar presents {what} the one that the mesh file names for {key.service!r}: start it with that one,"
            " in CONSUL_HTTP_TOKEN or with --token-file",
            unauthenticated=True,
        )

    async def _publish_roots(self) -> None:
        """Write the roots beside the mesh file, where sidecars verify the control plane with them."""
        if CONTROL_PLANE_LEAF not in self._served.leaves:
            return
        roots = self._mesh.authority.trusted(self._clock())
        if roots == self._published:
            return
        file = roots_file(self._settings.mesh)
        try:
            await asyncio.to_thread(write_public, file, roots.pem())
        except OSError as error:
            if self._unpublished is None:
                log.error("can't write %s, which sidecars verify Gossamer with: %s", file, error.strerror)  # noqa: TRY400
            self._unpublished = f"can't write {file}: {error.strerror}"
        else:
            self._published, self._unpublished = roots, None

    async def _keep_leaves(self) -> None:
        while True:
            await asyncio.sleep(RENEWAL_LOOK_S)
            self.renew()
            await self._publish_roots()

    def renew(self) -> None:
        """Replace the certificates whose time has come, and stop trusting roots whose time is over."""
        now = self._clock()
        due = frozenset(key for key, issued in self._leaves.items() if issued.renew_at <= now)
        self._sink({ROOTS: self._mesh.authority.trusted(now)} | self._certificates(due, anew=True))

"""Serves a mesh from a file: the same facts that Consul would give, read again whenever the file changes.

An edit that can't be used is refused with its reasons, which are in the log and in ``/ready``, and the last good mesh
goes on being served.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta

from watchfiles import awatch

from xds.files import states, write_public
from xds.mesh.chains import DiscoveryChain, Elsewhere, InstancesOf
from xds.mesh.facts import (
    CONTROL_PLANE_LEAF,
    Roots,
    ServiceInstances,
)
from xds.mesh.mesh import DEFAULT_ALLOW, ROOTS, Batch, Demand, Key, Kind
from xds.policy.quotas import DEFAULT_QUOTAS, Quotas
from xds.sources.file.certificates import Certificates
from xds.sources.file.document import RefusedError
from xds.sources.file.loading import LoadedMesh, certifies_differently, load
from xds.sources.file.settings import FileSettings, roots_file
from xds.sources.file.state import StateError, StateFolder

log = logging.getLogger(__name__)

SETTLE_MS = 100
"""Milliseconds without a write after which an edit is read."""
LOOK_ANYWAY_MS = 500
"""Milliseconds after which a change is found where the file system reports nothing (a network mount, a link to
elsewhere)."""
RENEWAL_LOOK_S = 60.0
ROOT_WARNING = timedelta(days=90)


class FileSource:
    """Source that serves a mesh from a file.

    Args:
        settings: where it is.
        sink: takes each batch of facts.
        tokens_needed: as for `load`.
        default_allow: the default where no intention matches, in place of the file's.
        quotas: limits of the configuration of one service.
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
        self._certificates = Certificates(clock)
        self._demand = Demand()
        self._served = Demand()
        """The demand as it was last followed."""
        self._demand_changed = asyncio.Event()
        self._trouble: str | None = None
        self._published: Roots | None = None
        self._unpublished: str | None = None
        """The reason why the roots could not be published."""
        self._seen: tuple[object, ...] = ()
        """State of the files when they were last read; they are checked once more at the start."""
        self._mesh = load(settings, tokens_needed=tokens_needed, now=clock(), quotas=quotas)
        self._log_loaded()

    # -- from outside ---------------------------------------------------------------------------------------------

    def demand(self, demand: Demand) -> None:
        """Deliver what ``demand`` names from now on."""
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
        """Do nothing: no connection is open."""

    def troubles(self) -> dict[str, str]:
        """Return why the current file is not served, and what needs an operator soon."""
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
        except Exception as error:  # errors of the library, when the kernel refuses something
            log.warning("the system can't report edits (%s): checking every %d ms", error, LOOK_ANYWAY_MS)
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
            self._refuse(error)  # and try again, since the problem may be solved without a change of these files
            return
        except Exception as error:
            # An edit must not end what is being served, whatever error it causes.
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
        self._log_loaded(before)
        self._sink(
            self._base()
            | self._services(self._served.services)
            | self._certificates.leaves(loaded, self._served.leaves, anew=certifies_differently(before, loaded))
            | self._certificates.authorizations(loaded, self._served.streams)
        )
        await self._publish_roots()

    def _refuse(self, error: Exception) -> None:
        if str(error) != self._trouble:
            log.error("refused, the last good mesh stays in use:\n%s", error)
        self._trouble = str(error)

    def _log_loaded(self, before: LoadedMesh | None = None) -> None:
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
            batch |= self._certificates.leaves(self._mesh, self._served.leaves - before.leaves)
            batch |= self._certificates.authorizations(self._mesh, self._served.streams - before.streams)
            batch |= {Key(Kind.STREAM, each): None for each in before.streams - self._served.streams}
            batch |= self._elsewhere(self._served.elsewhere, self._served.chains)
            batch |= {Key(Kind.INSTANCES, each): None for each in before.elsewhere - self._served.elsewhere}
            batch |= {Key(Kind.CHAIN, each): None for each in before.chains - self._served.chains}
            for name in before.services - self._served.services:
                batch[Key(Kind.INSTANCES, name)] = batch[Key(Kind.CHAIN, name)] = None
            for key in before.leaves - self._served.leaves:
                self._certificates.forget(key)
                batch[Key(Kind.LEAF, key)] = None
            self._sink(batch)
            await self._publish_roots()

    # -- certificates ---------------------------------------------------------------------------------------------

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
        renewed = self._certificates.leaves(self._mesh, self._certificates.due(), anew=True)
        self._sink({ROOTS: self._mesh.authority.trusted(self._clock())} | renewed)

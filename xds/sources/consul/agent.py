"""Follows Consul's own settings: the datacenter and the default of intentions, which have no blocking query."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from xds.mesh.mesh import DATACENTER, DEFAULT_ALLOW, Batch, Key
from xds.sources import decode
from xds.sources.consul.blocking import Backoff, Report, WatchState
from xds.sources.consul.client import Consul, ConsulError, understanding

log = logging.getLogger(__name__)

AGENT_INTERVAL = 60.0
"""Seconds between two reads of the agent's description."""


class AgentReader:
    """Reader of the datacenter and the default policy.

    Args:
        client: the Consul to read.
        deliver: called with the facts.
        report: called with failures.
        default_allow: the default to use in place of Consul's.
        chance: the source of jitter.
    """

    def __init__(
        self,
        client: Consul,
        deliver: Callable[[Batch], None],
        report: Report,
        default_allow: bool | None,
        chance: random.Random,
    ) -> None:
        self.state = WatchState()
        self._client = client
        self._deliver = deliver
        self._report = report
        self._default_allow = default_allow
        self._chance = chance

    async def run(self) -> None:
        """Read the agent's description from time to time, until cancelled."""
        backoff = Backoff(self._chance)
        while True:
            try:
                with understanding():
                    await self.read()
                if not self.state.answered:
                    await self._warn_without_acls()
                self.state = WatchState(answered=True)
                backoff.reset()
                pause = AGENT_INTERVAL
            except ConsulError as error:
                if str(error) != self.state.error:
                    self._report("the agent's description", error)
                self.state.error = str(error)
                pause = backoff.after(error)
            await asyncio.sleep(pause)

    async def _warn_without_acls(self) -> None:
        if not await self._client.has_acls():
            log.warning(
                "Consul at %s has no ACLs: any client is given the certificate of the service that it names, as in"
                " Consul itself",
                self._client.settings.shown_address,
            )

    async def read(self) -> None:
        """Read the agent's description once.

        Raises:
            ConsulError: Consul did not answer.
            KeyError, TypeError, AttributeError: its answer is no description of an agent.
        """
        batch: dict[Key, object] = {}
        if self._default_allow is not None:
            batch[DEFAULT_ALLOW] = self._default_allow
        configured = self._client.settings.datacenter
        if configured:
            batch[DATACENTER] = configured
        if len(batch) < 2:
            try:
                about = await self._client.awaited(self._client.agent.self())
                batch = {
                    DATACENTER: about["Config"]["Datacenter"],
                    DEFAULT_ALLOW: decode.agent_default_allow(about),
                } | batch
            except (KeyError, TypeError, AttributeError, ConsulError) as error:
                # Known facts are not replaced by a guess.
                if self.state.answered or (isinstance(error, ConsulError) and not error.forbidden):
                    raise
                batch = await self._without_agent(error) | batch
        self._deliver(batch)

    async def _without_agent(self, error: Exception) -> dict[Key, object]:
        """Return the facts to use when the agent's description can't be read: deny, the closed default."""
        reply = await self._client.read("/v1/connect/ca/roots")
        if self._default_allow is None and not reply.default_policy and not self.state.answered:
            log.error(
                "the default where no intention matches is unknown (%s), so it is deny: give the token agent:read, or"
                " set --default-intention-policy",
                error,
            )
        datacenters = await self._client.awaited(self._client.catalog.datacenters())
        return {DATACENTER: datacenters[0], DEFAULT_ALLOW: reply.default_policy == "allow"}

"""Reads other datacenters, mesh gateways and prepared queries.

Instances and chains of another datacenter are blocking queries that this Consul forwards. There is no blocking query
for the existing gateways and the result of a prepared query, so these are polled (Consul polls prepared queries, too).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from xds.mesh.chains import DiscoveryChain, Elsewhere, GatewaysOf, InstancesOf, QueryResult
from xds.mesh.facts import ServiceInstances
from xds.mesh.mesh import Batch, Demand, Key, Kind
from xds.mesh.names import usable_name
from xds.policy.quotas import Quotas
from xds.sources import decode
from xds.sources.consul.blocking import Report, Watch
from xds.sources.consul.client import Consul, ConsulError, Reply, understanding
from xds.sources.consul.services import PACE_S, MakeWatch

QUERIES_EVERY_S = 30.0
"""Seconds between two queries, as in Consul itself (``defaultPreparedQueryPollInterval``)."""
GATEWAYS_EVERY_S = 10.0
RETRY_S = 5.0
MESH_GATEWAY = "mesh-gateway"


class ElsewhereReader:
    """Reader of what a demand names in other datacenters, of gateways and of prepared queries."""

    def __init__(
        self,
        client: Consul,
        make_watch: MakeWatch,
        deliver: Callable[[Batch], None],
        report: Report,
        quotas: Quotas,
    ) -> None:
        self._client = client
        self._quotas = quotas
        self._make_watch = make_watch
        self._deliver = deliver
        self._report = report
        self._watches: dict[Key, Watch] = {}
        self._polls: dict[Key, asyncio.Task[None]] = {}
        self._gateways_read: dict[tuple[str, str], list[object]] = {}
        """Instances of a mesh gateway that were read last, by datacenter and name."""

    def watches(self) -> list[Watch]:
        """Return the blocking queries."""
        return list(self._watches.values())

    def follow(self, demand: Demand, tasks: asyncio.TaskGroup) -> None:
        """Read what ``demand`` names from now on. A blocking query that is not needed ends when it next returns."""
        wanted = {Key(Kind.INSTANCES, each) for each in demand.elsewhere} | {
            Key(Kind.CHAIN, each) for each in demand.chains
        }
        for key, watch in self._watches.items():
            watch.wanted = key in wanted
        for key in self._polls.keys() - wanted:
            self._polls.pop(key).cancel()
            self._deliver({key: None})
        for key in sorted(wanted - self._watches.keys() - self._polls.keys(), key=repr):
            match key.of:
                case InstancesOf():
                    self._watches[key] = self._watch(key, key.of)
                    tasks.create_task(self._keep(key, self._watches[key]))
                case GatewaysOf() | QueryResult():
                    self._polls[key] = tasks.create_task(self._poll(key, key.of))

    # -- blocking queries -------------------------------------------------------------------------------------------

    def _watch(self, key: Key, of: InstancesOf) -> Watch:
        chain = key.kind is Kind.CHAIN
        path = f"/v1/{'discovery-chain' if chain else 'health/connect'}/{of.service}"
        params = (("compile-dc", of.datacenter),) if chain else ()

        async def read(index: int | None, wait_s: float) -> Reply:
            where = "" if chain else of.datacenter
            return await self._client.read(path, index=index, wait_s=wait_s, datacenter=where, params=params)

        def receive(reply: Reply) -> None:
            if reply.filtered:
                raise ConsulError(f"the token may not see every instance of {of.service!r}: it needs node:read", 403)
            if chain:
                self._deliver({key: decode.chain(of.service, reply.data, elsewhere=True, quotas=self._quotas)})
            else:
                self._deliver({key: decode.service_instances(of.service, reply.data, elsewhere=True)})

        def failed(error: ConsulError) -> None:
            if chain and error.status is not None:
                self._deliver({key: DiscoveryChain(of.service, refusal=str(error))})

        what = "discovery chain" if chain else "instances"
        return self._make_watch(f"{what} of {of.service} in {of.datacenter}", read, receive, PACE_S, failed)

    async def _keep(self, key: Key, watch: Watch) -> None:
        while True:
            while watch.wanted:
                await watch.turn()
            self._deliver({key: None})
            if not watch.wanted:  # it was not requested again meanwhile
                del self._watches[key]
                return
            watch.read_again()

    # -- what is asked for now and then -----------------------------------------------------------------------------

    async def _poll(self, key: Key, of: Elsewhere) -> None:
        every_s = QUERIES_EVERY_S if isinstance(of, QueryResult) else GATEWAYS_EVERY_S
        reported = ""
        while True:
            pause = every_s
            try:
                with understanding():
                    found = await (self._gateways(of) if isinstance(of, GatewaysOf) else self._query(of))
                self._deliver({key: found})
                reported = ""
            except ConsulError as error:
                if str(error) != reported:
                    reported = str(error)
                    self._report(str(of), error)
                pause = RETRY_S
            await asyncio.sleep(pause)

    async def _query(self, of: Elsewhere) -> ServiceInstances:
        assert isinstance(of, QueryResult)
        reply = await self._client.read(f"/v1/query/{of.query}/execute", params=(("connect", "true"),))
        return decode.query_result(of.query, reply.data)

    async def _gateways(self, of: GatewaysOf) -> ServiceInstances:
        """Read the kinds of services from Consul's answer for its own web page; there is no query for a kind."""
        where = of.datacenter
        listed = await self._client.read("/v1/internal/ui/services", datacenter=where)
        gateways = {each["Name"] for each in listed.data or () if each.get("Kind") == MESH_GATEWAY}
        found: list[object] = []
        for name in sorted(filter(usable_name, gateways)):
            try:
                reply = await self._client.read(
                    f"/v1/health/service/{name}", datacenter=where, params=(("passing", "true"),)
                )
                self._gateways_read[where, name] = list(reply.data or ())
            except ConsulError as error:
                # The others are read all the same, and the last result of this one stays in use.
                self._report(f"mesh gateway {name}", error)
            found += self._gateways_read.get((where, name), ())
        return decode.gateways(where, found, elsewhere=bool(where))

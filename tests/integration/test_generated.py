"""Generated config entries of every kind, through the encoder into real Envoys, which reject nothing.

``GOSSAMER_EXAMPLES`` says how many; ``make fuzz`` asks for more of them than the suite has time for.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from tests.generated import accepted, of_kind
from tests.integration.helpers import free_port
from tests.unit.facts import FREE_PORT
from xds.control.proxy import SERVED_TYPES, Proxy
from xds.envoy.bootstrap import BootstrapInputs, sidecar_bootstrap
from xds.envoy.resource import CLUSTER
from xds.lab import binaries
from xds.lab.network import temporary_folder
from xds.lab.processes import Process, eventually
from xds.mesh.addresses import HostPort
from xds.mesh.facts import Authorized, LeafKey
from xds.mesh.mesh import SERVICE_NAMES, Demand, Key, Kind
from xds.sources.authority import issue, new_authority
from xds.sources.file import models
from xds.sources.file.document import RefusedError, parse
from xds.sources.file.facts import FileFacts, facts_of
from xds.sources.file.models.defaults import MeshEntry
from xds.sources.file.models.intentions import JWTProvider
from xds.sources.file.virtual_ips import Given
from xds.workers.serving import Serving
from xds.workers.xds_settings import XdsSettings

EXAMPLES = int(os.environ.get("GOSSAMER_EXAMPLES", "60"))
NOW = datetime.now(UTC)
TRACKED = ("web", "api")
"""The services whose sidecars are real."""

ENTRIES = st.tuples(
    of_kind(models.ServiceDefaults, "api"),
    of_kind(models.ServiceDefaults, "web"),
    st.one_of(of_kind(models.ServiceRouter, "api"), of_kind(models.ServiceSplitter, "api"), st.none()),
    st.one_of(of_kind(models.ServiceResolver, "api"), of_kind(models.ServiceResolver, "db"), st.none()),
    st.one_of(of_kind(models.ServiceIntentions, "api"), st.none()),
    st.one_of(of_kind(JWTProvider, "x"), st.none()),
    st.one_of(of_kind(models.ProxyDefaults, "global"), st.none()),
    st.one_of(of_kind(MeshEntry, "mesh"), st.none()),
)


class Live:
    """A control plane in this process, and the Envoys of two sidecars that follow it."""

    def __init__(self) -> None:
        self.authority = new_authority(NOW)
        self.serving = Serving(XdsSettings(listen=FREE_PORT), self._demanded)
        self.processes: list[Process] = []
        self.numbers = itertools.count(1)
        self.ports = {service: free_port() for service in ("web", "api", "db")}
        self.outbound = {service: free_port() for service in TRACKED}
        self.known: dict[Key, object] = {}

    def _demanded(self, demand: Demand) -> None:
        self.serving.apply({Key(Kind.STREAM, each): Authorized() for each in demand.streams})

    async def start(self, folder: Any) -> None:
        port = await self.serving.start()
        for service in (*TRACKED, "db"):
            leaf = issue(self.authority, service, "dc1", NOW, 0.5).leaf
            self.serving.apply({Key(Kind.LEAF, LeafKey(service, "")): leaf})
        self.serving.apply(self.batch(self.facts([])))
        for service in TRACKED:
            inputs = BootstrapInputs(
                f"{service}-sidecar-proxy", service, "", (HostPort("127.0.0.1", port),), None, "", "dc1"
            )
            file = folder / f"{service}.json"
            file.write_text(json.dumps(sidecar_bootstrap(inputs)))
            command = [binaries.envoy(), "-c", str(file), "--concurrency", "1", "--disable-hot-restart", "-l", "error"]
            # In a folder of its own, for access logs with a relative path.
            self.processes.append(await Process.start(service, command, folder / f"{service}.log", folder=folder))
        await eventually("both to be connected", self._connected, within_s=60)

    async def _connected(self) -> bool:
        return len(self.serving.plane.proxies()) == len(TRACKED)

    async def stop(self) -> None:
        for process in self.processes:
            await process.stop()
        await self.serving.stop()

    def document(self, entries: list[dict[str, Any]]) -> dict[str, Any]:
        services = []
        for service, port in self.ports.items():
            proxy: dict[str, Any] = {"mode": "transparent"}
            if service in self.outbound:
                proxy["transparent_proxy"] = {"outbound_listener_port": self.outbound[service]}
            sidecar = {"address": "127.0.0.1", "port": port, "proxy": proxy}
            services.append({"name": service, "port": 8080, "connect": {"sidecar_service": sidecar}})
        return {"default_intention_policy": "allow", "services": services, "config_entries": {"bootstrap": entries}}

    def facts(self, entries: list[dict[str, Any]]) -> FileFacts:
        """Raise `RefusedError` where the entries contradict each other."""
        return facts_of(parse("mesh.json", json.dumps(self.document(entries))))

    def batch(self, facts: FileFacts) -> dict[Key, object]:
        """Return everything that these facts say, and a service that was not there before."""
        marker = f"marker-{next(self.numbers)}"
        batch = facts.base(self.authority.trusted(NOW)) | {SERVICE_NAMES: facts.service_names | {marker}}
        addresses = {"web": "240.0.0.1", "api": "240.0.0.2", "db": "240.0.0.3", marker: "240.0.1.1"}
        for number, service in enumerate(sorted({*facts.instances, *facts.made, *facts.service_names, marker})):
            batch |= facts.service(service, Given({service: addresses.get(service, f"240.0.2.{number}")}))
        gone = {key: None for key in self.known if key not in batch}
        self.known = batch
        return {**batch, **gone}

    async def settled(self) -> None:
        """Wait until both Envoys have answered everything."""
        await eventually("both to have answered", self._settled, within_s=60)

    async def _settled(self) -> bool:
        for process in self.processes:
            process.alive()
        return all(_has_answered(proxy) for proxy in self.serving.plane.proxies())

    def rejected(self) -> dict[str, Any]:
        """Return what was rejected, with Envoy's words."""
        return {
            f"{proxy.service} {type_url.rpartition('.')[2]} {name}": rejection.reason
            for proxy in self.serving.plane.proxies()
            for type_url in SERVED_TYPES
            for name, rejection in proxy.session.state(type_url).rejected.items()
        }


def _has_answered(proxy: Proxy) -> bool:
    states = [proxy.session.state(type_url) for type_url in SERVED_TYPES]
    answered = all(state.in_flight is None and not state.dirty and not state.suspects for state in states)
    return proxy.ready and answered and not proxy.session.may_send and proxy.session.state(CLUSTER).asked


@pytest.fixture(scope="module")
def live() -> Iterator[tuple[Live, asyncio.Runner]]:
    folder = temporary_folder()
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        runner = stack.enter_context(asyncio.Runner())

        async def made() -> Live:
            found = Live()
            await found.start(folder)
            return found

        found = runner.run(made())
        stack.callback(lambda: runner.run(found.stop()))
        yield found, runner


# Examples are not made smaller: what an Envoy rejected once is not sent to it again.
@pytest.mark.timeout(0)
@given(ENTRIES)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
def test_nothing_that_is_generated_is_rejected(
    live: tuple[Live, asyncio.Runner], entries: tuple[dict[str, Any] | None, ...]
) -> None:
    served, runner = live
    kept: list[dict[str, Any]] = []
    facts = served.facts(kept)
    for entry in entries:
        found = None if entry is None else accepted(entry)
        if found is None:
            continue
        try:
            facts = served.facts([*kept, found])
        except RefusedError:
            continue  # it contradicts another
        kept.append(found)
    note(yaml.safe_dump(kept, sort_keys=False))

    async def follow() -> dict[str, Any]:
        served.serving.apply(served.batch(facts))
        await served.settled()
        return served.rejected()

    assert runner.run(follow()) == {}

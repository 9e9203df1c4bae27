"""Registration of pods against a real API server and a real Consul: restarts and losses of each, leaders, problems.

There are no nodes that run pods: the test plays the kubelet and writes their status.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.coordination_v1 import Lease
from lightkube.resources.core_v1 import Event, Namespace, Pod, Service

from tests.integration.cluster import HOST, LEASE, NODE, OWN, SHOP, Cluster, open_cluster
from tests.integration.helpers import free_port
from tests.integration.kubernetes import MISSING, program
from xds.kubernetes.containers import PROBLEM
from xds.kubernetes.reflector import Reflector
from xds.kubernetes.registrar import Registrar
from xds.lab.commands import gossamer
from xds.lab.consul import version
from xds.lab.processes import Process, eventually
from xds.sources.consul.client import Consul
from xds.sources.consul.settings import ConsulSettings

pytestmark = [pytest.mark.skipif(program() is None, reason=MISSING), pytest.mark.timeout(300)]
WITHIN_S = 60.0


class Registered:
    """A cluster, a Consul and two replicas that register."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.url = f"http://127.0.0.1:{free_port()}"
        self.replicas: dict[str, Process] = {}

    async def start_consul(self) -> None:
        """Start an empty Consul."""
        self.consul = await self.cluster.start_consul(self.url)

        async def usable() -> bool:
            self.consul.alive()
            return bool(await self.get("/v1/status/leader"))

        await eventually("Consul", usable, within_s=WITHIN_S)

    async def get(self, path: str) -> Any:
        try:
            async with aiohttp.ClientSession() as session, session.get(self.url + path) as response:
                return await response.json()
        except aiohttp.ClientError as error:
            raise ConnectionError(str(error)) from error

    async def put(self, path: str, body: Any) -> None:
        async with aiohttp.ClientSession() as session, session.put(self.url + path, json=body) as response:
            assert response.status == 200, await response.text()

    async def start_replica(self, name: str) -> Process:
        process = await self.cluster.start(
            name, "register", "--consul", self.url, "--namespace", OWN, "--lease", LEASE, "--identity", name
        )
        self.replicas[name] = process
        return process

    async def instances(self, service: str) -> dict[str, str]:
        """Return the status of each instance of a service, by its address."""
        found = await self.get(f"/v1/health/service/{service}")
        return {each["Service"]["Address"]: each["Checks"][-1]["Status"] for each in found}

    async def until(self, service: str, expected: dict[str, str]) -> None:
        """Wait until a service, and its sidecars, are registered like this."""

        async def both() -> Any:
            return await self.instances(service), await self.instances(f"{service}-sidecar-proxy")

        await eventually(
            f"{service} to be {expected}", both, until=(expected, expected).__eq__, within_s=WITHIN_S, every_s=0.1
        )

    async def leader(self) -> str:
        found = await self.cluster.client.get(Lease, LEASE, namespace=OWN)
        return str(found.spec.holderIdentity)


@pytest.fixture(scope="module")
async def registered() -> AsyncIterator[Registered]:
    async with AsyncExitStack() as stack:
        cluster = await open_cluster(stack)
        made = Registered(cluster)
        await made.start_consul()
        await made.start_replica("one")
        await made.start_replica("two")
        await cluster.serving()
        yield made


async def test_a_pod_is_registered_follows_its_readiness_and_goes(registered: Registered) -> None:
    cluster = registered.cluster
    service = await cluster.serve("web")
    pod = await cluster.run("web-1", app="web", service_tags="blue")
    address = pod.status.podIP
    await registered.until("web", {address: "passing"})
    [found] = await registered.get("/v1/health/service/web-sidecar-proxy")
    assert (found["Node"]["Node"], found["Node"]["Address"]) == (f"{NODE}-virtual", HOST)
    assert found["Service"]["TaggedAddresses"]["virtual"] == {"Address": service.spec.clusterIP, "Port": 80}
    assert found["Service"]["Tags"] == ["blue"]
    assert found["Service"]["Proxy"]["LocalServicePort"] == 8080
    await cluster.set_ready("web-1", ready=False)
    await registered.until("web", {address: "critical"})
    other = await cluster.run("web-2", app="web")
    await registered.until("web", {address: "critical", other.status.podIP: "passing"})
    await cluster.delete("web-1")
    await registered.until("web", {other.status.podIP: "passing"})
    await cluster.delete("web-2")
    await registered.until("web", {})


async def test_a_headless_service_has_no_virtual_address(registered: Registered) -> None:
    await registered.cluster.serve("db", headless=True)
    pod = await registered.cluster.run("db-1", app="db")
    await registered.until("db", {pod.status.podIP: "passing"})
    [found] = await registered.get("/v1/health/service/db-sidecar-proxy")
    assert "virtual" not in (found["Service"].get("TaggedAddresses") or {})
    await registered.cluster.delete("db-1")


async def test_a_missing_service_is_reported_at_the_pod_and_its_init_container(
    registered: Registered, tmp_path: Path
) -> None:
    client = registered.cluster.client
    pod = await registered.cluster.run("lone-1", app="lone")

    async def problem() -> str:
        found = await client.get(Pod, "lone-1", namespace=SHOP)
        return str((found.metadata.annotations or {}).get(PROBLEM, ""))

    words = await eventually("the problem", problem, within_s=WITHIN_S)
    assert words.startswith("no Service of namespace shop selects this pod")

    async def events() -> list[str]:
        found = [each async for each in client.list(Event, namespace=SHOP)]
        return [each.message for each in found if each.involvedObject.name == "lone-1"]

    await eventually("the Event", events, until=[words].__eq__, within_s=WITHIN_S)

    # What the kubelet writes into the container's volume and environment.
    (tmp_path / "problem").write_text(words)
    own = {"POD_NAME": "lone-1", "POD_NAMESPACE": SHOP, "POD_UID": pod.metadata.uid, "NODE_NAME": NODE}
    flags = ("--consul", registered.url, "--id-file", tmp_path / "id", "--problem-file", tmp_path / "problem")
    waiting = await Process.start(
        "init", gossamer("kubernetes", "init", *map(str, flags)), tmp_path / "init.log", {**os.environ, **own}
    )
    try:

        async def log() -> str:
            return waiting.tail()

        said = f"waiting for pod shop/lone-1: {words}"
        await eventually("the init container's log", log, until=lambda text: said in text, within_s=WITHIN_S)
        await registered.cluster.serve("lone")
        await registered.until("lone", {pod.status.podIP: "passing"})
        assert await waiting.ended() == 0
        assert (tmp_path / "id").read_text() == "lone-1-lone-sidecar-proxy\n"
    finally:
        await waiting.stop()
    await eventually("the problem to be over", problem, until="".__eq__)
    await registered.cluster.delete("lone-1")


async def test_two_services_are_reported_and_one_can_be_chosen(registered: Registered) -> None:
    cluster = registered.cluster
    for name in ("first", "second"):
        await cluster.serve(name, app="both")
    await cluster.run("both-1", app="both")

    async def problem() -> str:
        found = await cluster.client.get(Pod, "both-1", namespace=SHOP)
        return str((found.metadata.annotations or {}).get(PROBLEM, ""))

    assert "the Services first, second select this pod" in await eventually("the problem", problem, within_s=WITHIN_S)
    chosen = await cluster.run("both-2", app="both", kubernetes_service="second")
    await registered.until("second", {chosen.status.podIP: "passing"})
    assert await registered.instances("first") == {}
    for name in ("both-1", "both-2"):
        await cluster.delete(name)


async def test_another_namespace_does_not_become_an_instance_of_a_service(registered: Registered) -> None:
    """Consul has one name for both. The older Service has it until it is deleted, whether it has a pod or not."""
    cluster = registered.cluster
    await cluster.client.create(Namespace(metadata=ObjectMeta(name="evil")))
    await cluster.serve("paid")
    own = await cluster.run("paid-1", app="paid")
    await registered.until("paid", {own.status.podIP: "passing"})
    await asyncio.sleep(1.1)  # the API server's times are whole seconds
    await cluster.serve("paid", namespace="evil")
    other = await cluster.run("paid-1", app="paid", namespace="evil")

    async def problem() -> str:
        found = await cluster.client.get(Pod, "paid-1", namespace="evil")
        return str((found.metadata.annotations or {}).get(PROBLEM, ""))

    words = await eventually("the problem", problem, within_s=WITHIN_S)
    assert words.startswith("the service 'paid' is that of namespace shop")
    assert await registered.instances("paid") == {own.status.podIP: "passing"}
    await cluster.delete("paid-1")
    await registered.until("paid", {})
    await cluster.client.delete(Service, "paid", namespace=SHOP)
    await registered.until("paid", {other.status.podIP: "passing"})
    await cluster.delete("paid-1", "evil")


async def test_an_emptied_consul_is_filled_again_and_what_is_not_ours_stays(registered: Registered) -> None:
    cluster = registered.cluster
    await cluster.serve("api")
    pod = await cluster.run("api-1", app="api")
    await registered.until("api", {pod.status.podIP: "passing"})
    await registered.consul.stop()
    await cluster.set_ready("api-1", ready=False)
    await registered.start_consul()
    foreign = {"Service": "old", "ID": "old-1", "Meta": {"managed-by": "consul-k8s-endpoints-controller"}}
    node = {"Node": f"{NODE}-virtual", "Address": HOST, "NodeMeta": {"synthetic-node": "true"}}
    await registered.put("/v1/catalog/register", {**node, "Service": foreign})
    await registered.until("api", {pod.status.podIP: "critical"})
    await cluster.set_ready("api-1", ready=True)
    await registered.until("api", {pod.status.podIP: "passing"})
    assert len(await registered.get("/v1/catalog/service/old")) == 1


async def test_without_the_api_server_nothing_is_deregistered(registered: Registered) -> None:
    cluster = registered.cluster
    await cluster.serve("kept")
    pod = await cluster.run("kept-1", app="kept")
    address = pod.status.podIP
    await registered.until("kept", {address: "passing"})
    await cluster.kubernetes.apiserver.stop()
    await cluster.kubernetes.etcd.stop()
    await registered.put("/v1/catalog/deregister", {"Node": f"{NODE}-virtual", "ServiceID": "kept-1-kept"})
    await cluster.kubernetes.start_etcd()
    await cluster.kubernetes.start_apiserver()
    await registered.until("kept", {address: "passing"})
    await cluster.serving()
    await cluster.delete("kept-1")
    await registered.until("kept", {})


async def test_another_replica_takes_over_and_removes_what_went_meanwhile(registered: Registered) -> None:
    cluster = registered.cluster
    await cluster.serve("moved")
    pods = [await cluster.run(f"moved-{number}", app="moved") for number in (1, 2)]
    await registered.until("moved", {pod.status.podIP: "passing" for pod in pods})
    first = await registered.leader()
    for process in registered.replicas.values():
        await process.stop()
    await cluster.delete("moved-1")
    await registered.start_replica("three")
    await registered.until("moved", {pods[1].status.podIP: "passing"})
    assert await registered.leader() == "three" != first
    await registered.start_replica("four")
    await registered.replicas["three"].stop()
    await cluster.delete("moved-2")
    await registered.until("moved", {})
    assert await registered.leader() == "four"


async def test_one_pods_change_costs_one_registration(registered: Registered) -> None:
    """The registrar runs here, beside a Consul to which the leader writes the same."""
    cluster = registered.cluster
    await cluster.serve("many")
    pods = [await cluster.run(f"many-{number}", app="many") for number in range(10)]
    expected = {pod.status.podIP: "passing" for pod in pods}
    await registered.until("many", expected)
    client, consul = cluster.kubernetes.client(), Consul(ConsulSettings(address=registered.url))
    registrar = Registrar(client, consul, legacy=await version() < (1, 10))

    async def writes() -> int:
        return registrar.writes

    tasks = [asyncio.create_task(part) for part in (registrar.follow(), registrar.act())]
    try:
        before = await eventually("all to be written", writes, until=lambda found: found >= 2 * len(pods))
        await cluster.set_ready("many-3", ready=False)
        expected[pods[3].status.podIP] = "critical"
        await registered.until("many", expected)
        # The service and its sidecar.
        await eventually("the change", writes, until=lambda found: found >= before + 2)
        assert registrar.writes == before + 2
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await consul.close()
        await client.close()


async def test_an_expired_watch_is_listed_again(registered: Registered) -> None:
    cluster = registered.cluster
    client = cluster.kubernetes.client()
    changed: list[Any] = []
    reflector = Reflector(client, Service, changed.extend, namespace=SHOP)
    following = asyncio.create_task(reflector.run())
    await asyncio.wait_for(reflector.listed.wait(), WITHIN_S)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await cluster.serve("late")
    # A new API server knows no change from before its start.
    await cluster.kubernetes.apiserver.stop()
    await cluster.kubernetes.compact()
    await cluster.kubernetes.start_apiserver()
    changed.clear()
    following = asyncio.create_task(reflector.run())

    async def seen() -> bool:
        return (SHOP, "late") in changed

    await eventually("the change", seen, within_s=WITHIN_S)
    assert (SHOP, "late") in reflector.objects
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await client.close()

"""Tests of the registrar and of what waits for it, against an API server and a Consul in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.unit.kubernetes.api import Api
from tests.unit.kubernetes.test_following import running, until
from tests.unit.kubernetes.test_injection import SETTINGS, make_pod
from xds.kubernetes import process, registrar, registration, waiting
from xds.kubernetes.containers import PROBLEM
from xds.kubernetes.injection import inject
from xds.kubernetes.registrar import Registrar
from xds.kubernetes.waiting import OwnPod, login, registered
from xds.sources.consul.client import ConsulError


@dataclass
class Reply:
    data: Any
    index: int = 1


class Catalog:
    """A Consul in memory: its catalog by node and ID."""

    def __init__(self) -> None:
        self.services: dict[tuple[str, str], dict[str, Any]] = {}
        self.nodes: set[str] = set()
        self.failing = False
        self.refused = ""
        """ID of a service that is refused."""
        self.logins = 0

    def _check(self) -> None:
        if self.failing:
            raise ConsulError("no leader", 500)

    async def read(self, path: str, **_more: Any) -> Reply:
        await asyncio.sleep(0)
        self._check()
        if path == "/v1/catalog/nodes":
            return Reply([{"Node": node} for node in sorted(self.nodes)])
        if path == "/v1/agent/self":
            return Reply({"Config": {"Version": "1.16.6"}})
        node = path.rpartition("/")[2]
        return Reply({"Services": [each for (at, _), each in self.services.items() if at == node]})

    async def write(self, path: str, body: str, *, post: bool = False) -> Any:
        self._check()
        given = json.loads(body)
        if path == "/v1/catalog/register" and given["Service"]["ID"] == self.refused:
            raise ConsulError("refused with status 400: bad request", 400)
        if path == "/v1/catalog/register":
            self.nodes.add(given["Node"])
            service = given["Service"] | {"Status": given["Check"]["Status"]}
            self.services[given["Node"], service["ID"]] = service
        elif path == "/v1/acl/login":
            assert post
            self.logins += 1
            return {"SecretID": f"token of {given['BearerToken']}"}
        elif "ServiceID" in given:
            self.services.pop((given["Node"], given["ServiceID"]), None)
        else:
            self.nodes.discard(given["Node"])
        return None

    @property
    def ids(self) -> set[str]:
        return {service_id for _, service_id in self.services}


def put_pod(api: Api, name: str, app: str, **given: str) -> None:
    pod = make_pod({"connect-inject": "true", **given})
    pod["metadata"] |= {"name": name, "namespace": "shop", "labels": {"app": app}}
    made = inject(pod, {}, SETTINGS).pod
    made["spec"]["nodeName"] = "node-1"
    api.put(f"/api/v1/namespaces/shop/pods/{name}", **made, status={"podIP": "10.1.0.7", "hostIP": "10.0.0.1"})


def put_service(api: Api, name: str) -> None:
    spec = {"selector": {"app": name}, "clusterIP": "10.96.0.7", "ports": [{"port": 80}]}
    api.put(f"/api/v1/namespaces/shop/services/{name}", spec=spec)


def put_slice(api: Api, service: str, **ready: bool) -> None:
    endpoints = [
        {
            "addresses": ["10.1.0.7"],
            "conditions": {"ready": is_ready},
            "targetRef": {"kind": "Pod", "name": name.replace("_", "-"), "namespace": "shop"},
        }
        for name, is_ready in ready.items()
    ]
    path = f"/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices/{service}-1"
    metadata = {"labels": {"kubernetes.io/service-name": service}}
    api.put(path, metadata=metadata, addressType="IPv4", endpoints=endpoints)


@asynccontextmanager
async def registering(api: Api, catalog: Catalog) -> AsyncIterator[Registrar]:
    api.put("/api/v1/namespaces/kube-system", metadata={"uid": "c1"})
    made = Registrar(api.client(), catalog)  # type: ignore[arg-type]
    async with running(made.follow()), running(made.act()):
        yield made


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RESYNC_S", "RETRY_S"):
        monkeypatch.setattr(registrar, name, 0.01)
    monkeypatch.setattr(waiting, "RETRY_S", 0.01)
    monkeypatch.setattr(process, "CONSUL_RETRY_S", 0.01)


BOTH = {"web-1-web", "web-1-web-sidecar-proxy"}


@pytest.mark.usefixtures("quick")
async def test_a_pod_is_registered_follows_its_readiness_and_goes() -> None:
    api, catalog = Api(), Catalog()
    put_service(api, "web")
    put_pod(api, "web-1", "web")
    put_slice(api, "web", web_1=True)
    async with registering(api, catalog) as made:
        await until(lambda: catalog.ids == BOTH)
        assert made.writes == 2
        put_slice(api, "web", web_1=False)
        await until(lambda: {each["Status"] for each in catalog.services.values()} == {"critical"})
        assert made.writes == 4
        api.remove("/api/v1/namespaces/shop/pods/web-1")
        await until(lambda: catalog.ids == set())


@pytest.mark.usefixtures("quick")
async def test_what_consul_lost_is_written_again_and_what_has_no_pod_goes() -> None:
    api, catalog = Api(), Catalog()
    put_service(api, "web")
    put_pod(api, "web-1", "web")
    put_slice(api, "web", web_1=True)
    catalog.nodes.add("node-1-virtual")
    meta = {"managed-by": "gossamer", "gossamer-cluster": "c1", "k8s-namespace": "shop", "pod-name": "old-1"}
    catalog.services["node-1-virtual", "old-1-web"] = {"ID": "old-1-web", "Meta": meta}
    catalog.services["node-1-virtual", "other"] = {"ID": "other", "Meta": {"managed-by": "consul-k8s"}}
    async with registering(api, catalog):
        await until(lambda: catalog.ids == {*BOTH, "other"})
        for key in [key for key in catalog.services if key[1] in BOTH]:
            del catalog.services[key]
        await until(lambda: catalog.ids == {*BOTH, "other"})
        catalog.failing = True
        put_slice(api, "web", web_1=False)
        await asyncio.sleep(0.05)
        catalog.failing = False
        await until(lambda: {each.get("Status") for each in catalog.services.values()} == {"critical", None})


@pytest.mark.usefixtures("quick")
async def test_nothing_is_deregistered_while_kubernetes_can_not_be_read() -> None:
    api, catalog = Api(), Catalog()
    async with registering(api, catalog):
        await until(lambda: len(api.requests) >= 7)
        api.failing = 500
        api.expire()
        await asyncio.sleep(0.05)
        meta = {"managed-by": "gossamer", "gossamer-cluster": "c1", "k8s-namespace": "shop", "pod-name": "new-1"}
        catalog.nodes.add("node-1-virtual")
        catalog.services["node-1-virtual", "new-1-web"] = {"ID": "new-1-web", "Meta": meta}
        await asyncio.sleep(0.1)
        assert catalog.ids == {"new-1-web"}, "it may be that of a pod that is not known yet"


@pytest.mark.usefixtures("quick")
async def test_a_problem_is_reported_once_and_taken_back() -> None:
    api, catalog = Api(), Catalog()
    put_pod(api, "web-1", "web")

    def annotation() -> str:
        return str(api.objects["/api/v1/namespaces/shop/pods/web-1"]["metadata"]["annotations"].get(PROBLEM, ""))

    async with registering(api, catalog):
        await until(lambda: annotation().startswith("no Service of namespace shop selects this pod"))
        await until(lambda: any("/events/" in path for path in api.objects))
        put_service(api, "web")
        put_slice(api, "web", web_1=True)
        await until(lambda: catalog.ids == BOTH and annotation() == "")
    assert len([path for path in api.objects if "/events/" in path]) == 1


@pytest.mark.usefixtures("quick")
async def test_a_pod_that_can_not_be_handled_keeps_no_other_waiting(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    api, catalog = Api(), Catalog()
    put_service(api, "web")
    for name in ("bad-1", "web-1"):
        put_pod(api, name, "web")
    put_slice(api, "web", web_1=True, bad_1=True)
    usual = registration.register

    def register(pod: Any, *arguments: Any, **more: Any) -> Any:
        return 1 / 0 if pod.metadata.name == "bad-1" else usual(pod, *arguments, **more)

    api.put("/api/v1/namespaces/kube-system", metadata={"uid": "c1"})
    made = Registrar(api.client(), catalog)  # type: ignore[arg-type]
    async with running(made.follow()), running(made.act()):
        await until(lambda: len(catalog.ids) == 4)
        monkeypatch.setattr(registrar, "register", register)
        put_slice(api, "web", web_1=False, bad_1=False)
        await until(lambda: [each["Status"] for each in catalog.services.values()].count("critical") == 2)
    assert "pod shop/bad-1 can't be registered" in caplog.text


@pytest.mark.usefixtures("quick")
async def test_what_consul_refuses_is_reported_once_and_tried_again_when_it_changes() -> None:
    api, catalog = Api(), Catalog()
    catalog.refused = "web-1-web-sidecar-proxy"
    put_service(api, "web")
    for name in ("web-1", "web-2"):
        put_pod(api, name, "web")
    put_slice(api, "web", web_1=True, web_2=True)
    others = {"web-2-web", "web-2-web-sidecar-proxy"}
    async with registering(api, catalog):
        await until(lambda: any("/events/" in path for path in api.objects) and catalog.ids == others)
        asked = len(api.requests)
        await asyncio.sleep(0.2)
        assert len(api.requests) == asked, "nothing goes round in a circle"
        put_slice(api, "web", web_1=False, web_2=False)
        await until(lambda: len([path for path in api.objects if "/events/" in path]) == 2)
        catalog.refused = ""
        put_slice(api, "web", web_1=True, web_2=True)
        await until(lambda: catalog.ids == others | BOTH)


@pytest.mark.usefixtures("quick")
async def test_two_pods_do_not_share_an_id() -> None:
    """web-1 of the Service web, and web of a Service 1-web."""
    api, catalog = Api(), Catalog()
    put_service(api, "web")
    put_service(api, "1-web")
    put_pod(api, "web-1", "web")
    put_slice(api, "web", web_1=True)
    async with registering(api, catalog):
        await until(lambda: catalog.ids == BOTH)
        put_pod(api, "web", "1-web")
        put_slice(api, "1-web", web=True)
        await until(lambda: any("/events/" in path for path in api.objects))
        [event] = [each for path, each in api.objects.items() if "/events/" in path]
        assert "the ID 'web-1-web' is that of pod shop/web-1" in event["message"]
        assert {each["Service"] for each in catalog.services.values()} == {"web", "web-sidecar-proxy"}


@pytest.mark.usefixtures("quick")
async def test_endpoints_of_another_namespace_do_not_count() -> None:
    api, catalog = Api(), Catalog()
    put_service(api, "web")
    put_pod(api, "web-1", "web")
    put_slice(api, "web", web_1=True)
    async with registering(api, catalog):
        await until(lambda: catalog.ids == BOTH)
        path = "/apis/discovery.k8s.io/v1/namespaces/evil/endpointslices/web-1"
        target = {"kind": "Pod", "name": "web-1", "namespace": "shop"}
        endpoints = [{"addresses": ["10.1.0.7"], "conditions": {"ready": False}, "targetRef": target}]
        labels = {"kubernetes.io/service-name": "web"}
        api.put(path, metadata={"labels": labels}, addressType="IPv4", endpoints=endpoints)
        await asyncio.sleep(0.1)
        assert {each["Status"] for each in catalog.services.values()} == {"passing"}
        api.remove(path)
        await asyncio.sleep(0.1)
        assert catalog.ids == BOTH


POD = OwnPod("web-1", "shop", "u1", "node-1")


@pytest.mark.usefixtures("quick")
async def test_an_init_container_waits_and_says_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    catalog = Catalog()
    catalog.failing = True
    problem = tmp_path / "problem"
    waiting_for = asyncio.create_task(registered(catalog, POD, problem))  # type: ignore[arg-type]
    await until(lambda: "no leader" in caplog.text)
    catalog.failing = False
    await until(lambda: "it is not registered in Consul yet" in caplog.text)
    problem.write_text("no Service\n")
    await until(lambda: "waiting for pod shop/web-1: no Service" in caplog.text)
    meta = {"pod-name": "web-1", "k8s-namespace": "shop", "pod-uid": "another"}
    old = {"ID": "old", "Kind": "connect-proxy", "Meta": meta}
    catalog.services["node-1-virtual", "old"] = old
    catalog.services["node-1-virtual", "app"] = {"ID": "app", "Meta": meta | {"pod-uid": "u1"}}
    catalog.services["node-1-virtual", "new"] = old | {"ID": "new", "Meta": meta | {"pod-uid": "u1"}}
    assert await asyncio.wait_for(waiting_for, 20) == "new"


@pytest.mark.usefixtures("quick")
async def test_a_login_is_tried_until_it_works(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    catalog, account = Catalog(), tmp_path / "token"
    trying = asyncio.create_task(login(catalog, POD, "k8s", account))  # type: ignore[arg-type]
    await until(lambda: "can't log in with auth method 'k8s'" in caplog.text)
    account.write_text("jwt\n")
    assert await asyncio.wait_for(trying, 20) == "token of jwt"


def test_the_own_namespace_is_given_or_in_the_pods_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "OWN_NAMESPACE", tmp_path / "namespace")
    assert process.own_namespace("mesh") == "mesh"
    with pytest.raises(ValueError, match="name the namespace with --namespace"):
        process.own_namespace("")
    (tmp_path / "namespace").write_text("other\n")
    assert process.own_namespace("") == "other"


async def test_parts_run_until_a_signal_or_a_failure() -> None:
    async def ends() -> None:
        pass

    async def fails() -> None:
        await asyncio.sleep(0.01)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await process.until_signal(ends(), fails())

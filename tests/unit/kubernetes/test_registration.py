"""Tests of what a pod is registered as: IDs, ports, virtual address, readiness, and every problem."""

from __future__ import annotations

import json
from typing import Any

import pytest
from lightkube.resources.core_v1 import Pod, Service

from tests.unit.kubernetes.test_injection import SETTINGS, make_pod
from xds.kubernetes.annotations import PREFIX
from xds.kubernetes.injection import inject
from xds.kubernetes.registration import Outcome, is_managed, register, selects

READY = {"web": True}


def running(given: dict[str, str] | None = None, **container: Any) -> Any:
    pod = make_pod({"connect-inject": "true", **(given or {})}, container)
    pod["metadata"] |= {"namespace": "shop", "uid": "u1", "labels": {"app": "web"}}
    made = inject(pod, {}, SETTINGS).pod
    made["spec"]["nodeName"] = "node-1"
    made["status"] = {"podIP": "10.1.0.7", "hostIP": "10.0.0.1"}
    return Pod.from_dict(made)


def service(name: str = "web", ip: str | None = "10.96.0.7", **more: Any) -> Any:
    spec = {"selector": {"app": "web"}, "clusterIP": ip, "ports": [{"port": 80, "targetPort": "http"}], **more}
    return Service.from_dict({"metadata": {"name": name, "namespace": "shop"}, "spec": spec})


def bodies(outcome: Outcome) -> list[Any]:
    assert outcome.problem == ""
    return [json.loads(entry.body) for entry in outcome.entries]


def test_the_service_and_its_sidecar() -> None:
    given = {"service-tags": "a,$POD_NAME", "service-meta-team": "blue", "connect-service-upstreams": "db:1234:dc2"}
    check = {"livenessProbe": {"httpGet": {"path": "/live", "port": 8080}}}
    app, sidecar = bodies(register(running(given, **check), [service()], READY))
    assert (app["Node"], app["Address"], app["NodeMeta"]) == ("node-1-virtual", "10.0.0.1", {"synthetic-node": "true"})
    assert app["Service"] | {"Meta": None} == {
        "ID": "web-1-web", "Service": "web", "Port": 8080, "Address": "10.1.0.7", "Tags": ["a", "web-1"], "Meta": None,
        "TaggedAddresses": {"virtual": {"Address": "10.96.0.7", "Port": 80}},
    }  # fmt: skip
    assert app["Service"]["Meta"] == {
        "team": "blue", "pod-name": "web-1", "k8s-namespace": "shop", "pod-uid": "u1", "k8s-service-name": "web",
        "managed-by": "gossamer", "synthetic-node": "true", "gossamer-cluster": "",
    }  # fmt: skip
    assert app["Check"] == {
        "Node": "node-1-virtual", "CheckID": "shop/web-1-web", "Name": "Kubernetes Readiness Check",
        "Type": "kubernetes-readiness", "Status": "passing", "ServiceID": "web-1-web",
        "Output": "Kubernetes health checks passing",
    }  # fmt: skip
    assert (sidecar["Service"]["ID"], sidecar["Service"]["Kind"]) == ("web-1-web-sidecar-proxy", "connect-proxy")
    assert sidecar["Service"]["Port"] == 20000
    assert sidecar["Service"]["Proxy"] == {
        "DestinationServiceName": "web", "DestinationServiceID": "web-1-web", "Config": {}, "Mode": "transparent",
        "LocalServiceAddress": "127.0.0.1", "LocalServicePort": 8080,
        "Upstreams": [{
            "DestinationType": "service", "DestinationName": "db", "LocalBindPort": 1234, "Datacenter": "dc2",
        }],
        "Expose": {"Paths": [
            {"Path": "/live", "ListenerPort": 20300, "LocalPathPort": 8080, "Protocol": "http"},
        ]},
    }  # fmt: skip


def test_a_pod_that_is_not_ready_is_critical() -> None:
    for body in bodies(register(running(), [service()], {"web": False})):
        assert body["Check"]["Status"] == "critical"
        assert body["Check"]["Output"] == 'Pod "shop/web-1" is not ready'


def test_an_older_consul_has_the_mode_in_its_configuration() -> None:
    _, sidecar = bodies(register(running(), [service()], READY, legacy=True))
    assert sidecar["Service"]["Proxy"]["Config"] == {"mode": "transparent"}
    assert "Mode" not in sidecar["Service"]["Proxy"], "it refuses fields that it does not know"


def test_a_headless_service_has_no_virtual_address_and_stays_transparent() -> None:
    for ip in ("None", None, ""):
        app, sidecar = bodies(register(running(), [service(ip=ip)], READY))
        assert app["Service"]["TaggedAddresses"] == {}
        assert sidecar["Service"]["Proxy"]["Mode"] == "transparent"


@pytest.mark.parametrize(
    ("given", "ports", "expected"),
    [
        ({}, [{"port": 80, "targetPort": "http"}], (8080, 80)),
        ({}, [{"port": 1}, {"port": 80, "targetPort": 8080}], (8080, 80)),
        ({}, [{"port": 8080, "targetPort": 9}], (8080, 8080)),
        ({}, [{"port": 1}], (8080, 0)),
        ({"connect-service-port": "9000"}, [{"port": 80, "targetPort": 9000}], (9000, 80)),
    ],
)
def test_the_port_of_the_virtual_address_is_that_of_the_service(
    given: dict[str, str], ports: list[Any], expected: tuple[int, int]
) -> None:
    app, _ = bodies(register(running(given), [service(ports=ports)], READY))
    assert (app["Service"]["Port"], app["Service"]["TaggedAddresses"]["virtual"]["Port"]) == expected


def test_the_name_in_consul_can_be_another_one() -> None:
    app, sidecar = bodies(register(running({"connect-service": "shop-web"}), [service()], READY))
    assert (app["Service"]["ID"], app["Service"]["Meta"]["k8s-service-name"]) == ("web-1-shop-web", "web")
    assert sidecar["Service"]["Service"] == "shop-web-sidecar-proxy"


@pytest.mark.parametrize(
    ("given", "services", "words"),
    [
        ({}, [], "no Service of namespace shop selects this pod"),
        ({}, [service(selector={})], "no Service of namespace shop selects this pod"),
        ({}, [service("a"), service("b")], "the Services a, b select this pod, which has one sidecar"),
        ({"kubernetes-service": "c"}, [service("a")], "no Service 'c' of namespace shop selects this pod"),
        ({}, [service(ports=[{"port": 80, "targetPort": "nope"}])], "has the targetPort 'nope', which no container"),
    ],
)
def test_a_problem_says_what_to_change(given: dict[str, str], services: list[Any], words: str) -> None:
    outcome = register(running(given), services, {"a": True, "b": True, "web": True})
    assert outcome.entries == ()
    assert words in outcome.problem


def test_the_annotation_and_the_label_choose_among_services() -> None:
    chosen = register(running({"kubernetes-service": "b"}), [service("a"), service("b")], {"a": True, "b": True})
    assert bodies(chosen)[0]["Service"]["Service"] == "b"
    ignored = service("a")
    ignored.metadata.labels = {PREFIX + "service-ignore": "true"}
    assert not selects(ignored, running())
    assert bodies(register(running(), [ignored, service()], READY))[0]["Service"]["Service"] == "web"


def test_what_is_not_known_yet_is_no_problem() -> None:
    pod = running()
    assert register(pod, [service()], {}) == Outcome(), "its address is in no slice yet"
    pod.status.podIP = None
    assert register(pod, [service()], READY) == Outcome(), "it has no address yet"


def test_a_damaged_annotation_is_a_problem_of_its_pod() -> None:
    pod = running()
    pod.metadata.annotations["gossamer.io/exposed-paths"] = "[" * 100_000
    assert "is not what the webhook writes" in register(pod, [service()], READY).problem
    pod.metadata.annotations[PREFIX + "consul-dns"] = "?"
    assert "consul-dns" in register(pod, [service()], READY).problem


def test_with_acls_a_pod_is_the_service_of_its_account() -> None:
    pod = running()
    outcome = register(pod, [service()], READY, acls=True)
    assert "the ServiceAccount 'default' can't be the service 'web'" in outcome.problem
    pod.spec.serviceAccountName = "web"
    assert len(register(pod, [service()], READY, acls=True).entries) == 2


def test_a_regular_sidecars_own_port_is_not_the_applications() -> None:
    app, sidecar = bodies(register(running({"enable-consul-dataplane-as-sidecar": "false"}), [service()], READY))
    assert app["Service"]["Port"] == sidecar["Service"]["Proxy"]["LocalServicePort"] == 8080


def test_only_pods_of_gossamer_are_registered() -> None:
    pod = running()
    assert is_managed(pod)
    pod.metadata.labels[PREFIX + "connect-inject-managed-by"] = "consul-k8s-endpoints-controller"
    assert not is_managed(pod)

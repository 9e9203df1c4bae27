"""Tests of injection: the decision, what a pod gets in each mode, probes, and pods that are refused."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from xds.kubernetes import annotations as known
from xds.kubernetes.annotations import PREFIX
from xds.kubernetes.injection import EXPOSED_PATHS, RefusedPodError, inject, wants_sidecar
from xds.kubernetes.settings import InjectionSettings, Namespaces, Resources
from xds.mesh.addresses import HostPort

SETTINGS = InjectionSettings("gossamer:1", "http://consul:8500", (HostPort("gossamer.mesh.svc", 18000),))


def make_pod(
    given: dict[str, str] | None = None, container: dict[str, Any] | None = None, **spec: Any
) -> dict[str, Any]:
    app = {"name": "app", "image": "app", "ports": [{"name": "http", "containerPort": 8080}], **(container or {})}
    metadata = {"name": "web-1", "annotations": {PREFIX + name: value for name, value in (given or {}).items()}}
    return {"metadata": metadata, "spec": {"containers": [app], **spec}}


@pytest.mark.parametrize(
    ("namespace", "given", "default", "expected"),
    [
        ("shop", {}, False, False),
        ("shop", {}, True, True),
        ("shop", {"connect-inject": "true"}, False, True),
        ("shop", {"connect-inject": "false"}, True, False),
        ("kube-system", {"connect-inject": "true"}, True, False),
        ("denied", {"connect-inject": "true"}, True, False),
        ("other", {"connect-inject": "true"}, True, False),
        ("shop", {"connect-inject": "true", "connect-inject-status": "injected"}, True, False),
    ],
)
def test_the_decision(namespace: str, given: dict[str, str], default: bool, expected: bool) -> None:
    namespaces = Namespaces(frozenset({"shop", "denied"}), frozenset({"denied"}))
    settings = InjectionSettings("i", "c", (), inject=default, namespaces=namespaces)
    assert wants_sidecar(make_pod(given), namespace, settings) is expected


def test_a_pod_on_its_nodes_network_is_never_injected() -> None:
    settings = InjectionSettings("i", "c", (), inject=True)
    assert not wants_sidecar(make_pod(hostNetwork=True), "shop", settings)
    with pytest.raises(RefusedPodError, match="remove hostNetwork"):
        wants_sidecar(make_pod({"connect-inject": "true"}, hostNetwork=True), "shop", settings)


def test_the_paths_that_are_exposed_are_the_webhooks_only() -> None:
    pod = make_pod()
    pod["metadata"]["annotations"][EXPOSED_PATHS] = "[]"
    assert EXPOSED_PATHS not in inject(pod, {}, SETTINGS).pod["metadata"]["annotations"]


def test_equal_probes_share_a_port_and_a_path_begins_with_a_slash() -> None:
    checks = {what: {"httpGet": {"path": "live", "port": 8080}} for what in ("livenessProbe", "readinessProbe")}
    made = inject(make_pod(container=checks), {}, SETTINGS).pod
    app = made["spec"]["containers"][0]
    assert app["livenessProbe"]["httpGet"]["port"] == app["readinessProbe"]["httpGet"]["port"] == 20300
    [path] = json.loads(made["metadata"]["annotations"][EXPOSED_PATHS])
    assert path["Path"] == "/live"


def test_the_decision_needs_a_boolean() -> None:
    with pytest.raises(RefusedPodError, match="connect-inject: 'maybe' is not true or false"):
        wants_sidecar(make_pod({"connect-inject": "maybe"}), "shop", SETTINGS)


def test_a_transparent_pod_with_a_native_sidecar() -> None:
    pod = make_pod({"transparent-proxy-exclude-uids": "7"}, initContainers=[{"name": "own"}])
    before = copy.deepcopy(pod)
    made = inject(pod, {}, SETTINGS).pod
    assert pod == before, "the pod is not changed"
    init, sidecar, own = made["spec"]["initContainers"]
    assert own == {"name": "own"}, "it runs redirected"
    assert init["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN"]}
    assert init["securityContext"]["readOnlyRootFilesystem"]
    assert not init["securityContext"]["allowPrivilegeEscalation"]
    assert init["command"][-7:] == ["--", "--proxy-uid", "5995", "--proxy-inbound-port", "20000", "--exclude-uid", "7"]
    assert sidecar["restartPolicy"] == "Always"
    assert sidecar["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert sidecar["securityContext"]["runAsUser"] == 5995
    assert sidecar["command"][4:] == [
        "--node-name", "$(NODE_NAME)-virtual", "--consul", "http://consul:8500", "--xds", "gossamer.mesh.svc:18000",
        "--", "--concurrency", "2",
    ]  # fmt: skip
    assert made["metadata"]["annotations"][known.INJECT_STATUS] == "injected"
    assert made["metadata"]["labels"][known.MANAGED_BY] == "gossamer"
    assert made["metadata"]["annotations"][known.TRANSPARENT_STATUS] == "enabled"
    assert not wants_sidecar(made, "shop", SETTINGS), "a second call changes nothing"


def test_a_pod_that_is_not_transparent_needs_no_root() -> None:
    found = inject(make_pod({"transparent-proxy": "false", "consul-dns": "true"}), {}, SETTINGS)
    init, sidecar = found.pod["spec"]["initContainers"]
    assert "add" not in init["securityContext"]["capabilities"]
    assert init["securityContext"]["runAsNonRoot"]
    assert "--" not in init["command"]
    assert "--dns-port" not in sidecar["command"]
    assert known.TRANSPARENT_STATUS not in found.pod["metadata"]["annotations"]
    assert found.warnings == (f"annotation {PREFIX}consul-dns has no effect: the pod has no transparent proxy",)


def test_a_regular_sidecar_goes_on_for_the_grace_period() -> None:
    given = {
        "enable-consul-dataplane-as-sidecar": "false",
        "sidecar-proxy-lifecycle-shutdown-grace-period-seconds": "5",
    }
    spec = inject(make_pod(given), {}, SETTINGS).pod["spec"]
    assert [each["name"] for each in spec["initContainers"]] == ["gossamer-init"]
    sidecar, app = spec["containers"]
    assert app["name"] == "app"
    assert sidecar["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "5"]
    assert "restartPolicy" not in sidecar


@pytest.mark.parametrize("native", ["true", "false"])
def test_with_acls_a_pod_logs_in_and_out(native: str) -> None:
    settings = InjectionSettings("i", "c", (), auth_method="k8s")
    spec = inject(make_pod({"enable-consul-dataplane-as-sidecar": native}), {}, settings).pod["spec"]
    init, sidecar = spec["initContainers"][0], [*spec["initContainers"], *spec["containers"]][1]
    assert sidecar["name"] == "gossamer-sidecar"
    assert init["command"][init["command"].index("--auth-method") + 1] == "k8s"
    account = [each for each in init["volumeMounts"] if each["name"] == "gossamer-account"]
    assert len(account) == 1
    assert account[0] in sidecar["volumeMounts"], "it logs in at each start"
    assert "gossamer kubernetes login" in sidecar["command"][2]
    assert sidecar["command"][sidecar["command"].index("--token-file") + 1] == "/run/gossamer/envoy/token"
    stop = sidecar["lifecycle"]["preStop"]["exec"]["command"]
    assert "logout" in stop
    assert stop[2].startswith("sleep 0;" if native == "true" else "sleep 25;")


def test_resources_concurrency_and_arguments_of_envoy() -> None:
    settings = InjectionSettings("i", "c", (), sidecar=Resources(cpu_limit="1", memory_limit="64Mi"))
    given = {
        "sidecar-proxy-cpu-limit": "2",
        "sidecar-proxy-cpu-request": "0",
        "consul-envoy-proxy-concurrency": "4",
        "envoy-extra-args": "--log-level debug; rm",
    }
    _, sidecar = inject(make_pod(given), {}, settings).pod["spec"]["initContainers"]
    assert sidecar["resources"] == {"limits": {"cpu": "2", "memory": "64Mi"}, "requests": {"cpu": "0"}}
    assert sidecar["command"][-5:] == ["--concurrency", "4", "--log-level", "debug;", "rm"]
    assert "debug" not in sidecar["command"][2], "the script is constant"


def test_upstreams_are_found_by_variables() -> None:
    pod = make_pod({"connect-service-upstreams": "my-api:1234:dc2"}, initContainers=[{"name": "own"}])
    spec = inject(pod, {}, SETTINGS).pod["spec"]
    for container in (spec["containers"][0], spec["initContainers"][-1]):
        assert {"name": "MY_API_CONNECT_SERVICE_PORT", "value": "1234"} in container["env"]


def test_dns_goes_to_the_sidecar() -> None:
    init, sidecar = inject(make_pod(), {PREFIX + "consul-dns": "true"}, SETTINGS).pod["spec"]["initContainers"]
    for container in (init, sidecar):
        assert container["command"][container["command"].index("--dns-port") + 1] == "8600"


def test_probes_and_hooks_go_to_ports_of_the_sidecar() -> None:
    check = {"path": "/healthz?full=1", "port": "http"}
    container = {
        "livenessProbe": {"httpGet": check, "periodSeconds": 3},
        "readinessProbe": {"grpc": {"port": 9090, "service": "shop"}},
        "startupProbe": {"httpGet": {"path": "/other", "port": 1, "host": "elsewhere"}},
        "lifecycle": {"postStart": {"httpGet": {"port": 8081}}, "preStop": {"exec": {"command": ["x"]}}},
    }
    made = inject(make_pod(container=container), {}, SETTINGS).pod
    app = made["spec"]["containers"][0]
    assert app["livenessProbe"] == {"httpGet": {"path": "/healthz?full=1", "port": 20300}, "periodSeconds": 3}
    assert app["readinessProbe"] == {"grpc": {"port": 20400, "service": "shop"}}
    assert app["startupProbe"] == container["startupProbe"], "it goes to another host"
    assert app["lifecycle"]["postStart"] == {"httpGet": {"port": 20700}}
    assert json.loads(made["metadata"]["annotations"][EXPOSED_PATHS]) == [
        {"Path": "/healthz", "ListenerPort": 20300, "LocalPathPort": 8080, "Protocol": "http"},
        {"Path": "/grpc.health.v1.Health/Check", "ListenerPort": 20400, "LocalPathPort": 9090, "Protocol": "http2"},
        {"Path": "/", "ListenerPort": 20700, "LocalPathPort": 8081, "Protocol": "http"},
    ]
    command = made["spec"]["initContainers"][0]["command"]
    assert [command[n + 1] for n, part in enumerate(command) if part == "--exclude-inbound-port"] == [
        "20300", "20400", "20700",
    ]  # fmt: skip


def test_the_second_container_has_ports_of_its_own() -> None:
    pod = make_pod()
    pod["spec"]["containers"].append({"name": "b", "livenessProbe": {"httpGet": {"path": "/", "port": 1}}})
    made = inject(pod, {}, SETTINGS).pod
    assert made["spec"]["containers"][1]["livenessProbe"]["httpGet"]["port"] == 20301


@pytest.mark.parametrize(
    ("probe", "words"),
    [
        ({"httpGet": {"port": 1, "scheme": "HTTPS"}}, "livenessProbe uses HTTPS"),
        ({"tcpSocket": {"port": 1}}, "livenessProbe opens a TCP connection, which the sidecar accepts"),
    ],
)
def test_a_probe_that_can_not_be_exposed_stays_and_is_a_warning(probe: dict[str, Any], words: str) -> None:
    found = inject(make_pod(container={"livenessProbe": probe}), {}, SETTINGS)
    assert found.pod["spec"]["containers"][0]["livenessProbe"] == probe
    [warning] = found.warnings
    assert words in warning


def test_probes_stay_where_the_owner_says_so() -> None:
    probe = {"httpGet": {"port": 1}}
    pod = make_pod({"transparent-proxy-overwrite-probes": "false"}, {"livenessProbe": probe})
    made = inject(pod, {}, SETTINGS).pod
    assert made["spec"]["containers"][0]["livenessProbe"] == probe
    assert EXPOSED_PATHS not in made["metadata"]["annotations"]


@pytest.mark.parametrize(
    ("pod", "words"),
    [
        (make_pod({"consul-dns": "x"}), "consul-dns: 'x' is not true or false"),
        (make_pod(securityContext={"runAsUser": 5995}), "the pod runs as user 5995, which is that of the sidecar"),
        (make_pod(container={"securityContext": {"runAsUser": 5996}}), "container 'app' runs as user 5996"),
        (make_pod(container={"ports": [{"containerPort": 20000}]}), "container 'app' has port 20000"),
        (make_pod(container={"livenessProbe": {"httpGet": {"port": "web"}}}), "names the port 'web', which the"),
    ],
)
def test_a_pod_that_can_not_be_injected_is_refused(pod: dict[str, Any], words: str) -> None:
    with pytest.raises(RefusedPodError) as caught:
        inject(pod, {}, SETTINGS)
    assert words in str(caught.value)

"""Injection against a real API server: every annotation and error, certificates, restarts, rights.

There are no nodes: pods are created and stay pending. What the API server stored is what counts.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from lightkube.core.exceptions import ApiError
from lightkube.resources.admissionregistration_v1 import MutatingWebhookConfiguration
from lightkube.resources.core_v1 import Namespace, Pod, Secret

from tests.integration.cluster import (
    INJECT,
    INJECT_ACCOUNT,
    MANIFESTS,
    OWN,
    REGISTER_ACCOUNT,
    REGISTRATION,
    SECRET,
    SHOP,
    Cluster,
    open_cluster,
)
from tests.integration.kubernetes import HELM, MISSING, make_pod, program
from tests.integration.machine import ROOT
from xds.kubernetes import annotations as known
from xds.kubernetes.certificates import BUNDLE, CERTIFICATE
from xds.kubernetes.injection import EXPOSED_PATHS
from xds.lab.processes import CommandError, eventually, run_to_end

pytestmark = [pytest.mark.skipif(program() is None, reason=MISSING), pytest.mark.timeout(300)]

FORBIDDEN = 403


@pytest.fixture(scope="module")
async def cluster() -> AsyncIterator[Cluster]:
    async with AsyncExitStack() as stack:
        made = await open_cluster(stack)
        await made.serving()
        yield made


def names(containers: Any) -> list[str]:
    return [each.name for each in containers or ()]


async def test_a_pod_gets_a_sidecar_once_although_the_webhook_is_called_twice(cluster: Cluster) -> None:
    """Another webhook that changes the pod afterwards makes the API server call again (``reinvocationPolicy``)."""
    made = await cluster.create(make_pod("web", INJECT))
    assert names(made.spec.initContainers) == ["gossamer-init", "gossamer-sidecar"]
    assert made.spec.initContainers[1].restartPolicy == "Always"
    assert names(made.spec.containers) == ["app"]
    assert made.metadata.labels[known.MANAGED_BY] == "gossamer"
    again = await cluster.create(
        made.to_dict() | {"metadata": {"name": "web-2", "annotations": made.metadata.annotations}}
    )
    assert names(again.spec.initContainers) == ["gossamer-init", "gossamer-sidecar"]


async def test_a_pod_without_the_annotation_and_a_system_pod_stay_as_they_are(cluster: Cluster) -> None:
    made = await cluster.create(make_pod("plain"))
    assert not made.spec.initContainers
    system = await cluster.create(make_pod("system", INJECT), "kube-system")
    assert not system.spec.initContainers


EVERY = {
    known.TRANSPARENT: "true", known.OVERWRITE_PROBES: "true", known.EXCLUDE_INBOUND: "http, 9000",
    known.EXCLUDE_OUTBOUND: "5432", known.EXCLUDE_NETWORKS: "10.0.0.0/8,fd00::/8", known.EXCLUDE_USERS: "1000",
    known.DNS: "true", known.SERVICE: "web", known.SERVICE_PORT: "http",
    known.SERVICE_UPSTREAMS: "api:1234,db:1235:dc2,prepared_query:near:1236", known.KUBERNETES_SERVICE: "web",
    known.TAGS_OF_SERVICE: "a,b", known.CPU_LIMIT: "1", known.CPU_REQUEST: "100m", known.MEMORY_LIMIT: "128Mi",
    known.MEMORY_REQUEST: "64Mi", known.CONCURRENCY: "1", known.EXTRA_ARGUMENTS: "--log-level debug",
    known.GRACE_PERIOD: "5", known.NATIVE: "false",
}  # fmt: skip


async def test_every_annotation_is_accepted_by_the_api_server(cluster: Cluster) -> None:
    assert {known.INJECT, *EVERY} == set(known.ANNOTATIONS)
    given = {annotation.key: value for annotation, value in EVERY.items()} | INJECT
    probe = {"httpGet": {"path": "/healthz", "port": "http"}}
    pod = make_pod("every", given)
    pod["spec"]["containers"][0] |= {
        "livenessProbe": probe,
        "lifecycle": {"postStart": {"httpGet": {"path": "/started", "port": 8080}}},
    }
    made = await cluster.create(pod)
    sidecar, app = made.spec.containers
    assert sidecar.resources.limits == {"cpu": "1", "memory": "128Mi"}
    assert sidecar.resources.requests == {"cpu": "100m", "memory": "64Mi"}
    assert app.livenessProbe.httpGet.port == 20300
    assert EXPOSED_PATHS in made.metadata.annotations
    assert {each.name: each.value for each in app.env}["DB_CONNECT_SERVICE_PORT"] == "1235"
    command = made.spec.initContainers[0].command
    assert command[command.index("--") :] == [
        "--", "--proxy-uid", "5995", "--proxy-inbound-port", "20000",
        "--exclude-inbound-port", "20300", "--exclude-inbound-port", "20700",
        "--exclude-inbound-port", "8080", "--exclude-inbound-port", "9000", "--exclude-outbound-port", "5432",
        "--exclude-outbound-cidr", "10.0.0.0/8", "--exclude-outbound-cidr", "fd00::/8", "--exclude-uid", "1000",
        "--dns-port", "8600",
    ]  # fmt: skip


CHECKED = [each for each in known.ANNOTATIONS if each is not known.TAGS_OF_SERVICE]
"""All but that of tags, which takes any text."""


@pytest.mark.parametrize("annotation", CHECKED, ids=lambda each: each.name)
async def test_a_wrong_value_is_refused_with_what_was_expected(cluster: Cluster, annotation: known.Annotation) -> None:
    message = await cluster.refused(make_pod("wrong", INJECT | {annotation.key: "' ,,:?"}))
    assert 'admission webhook "inject.gossamer.io" denied the request: gossamer: ' in message
    assert f"annotation {annotation.key}: " in message


async def test_reserved_users_and_ports_are_refused(cluster: Cluster) -> None:
    pod = make_pod("reserved", INJECT, securityContext={"runAsUser": 5995})
    pod["spec"]["containers"][0]["ports"] = [{"containerPort": 15001}]
    message = await cluster.refused(pod)
    assert "the pod runs as user 5995, which is that of the sidecar" in message
    assert "container 'app' has port 15001" in message


async def test_a_label_of_the_namespace_counts_as_soon_as_it_is_there(cluster: Cluster) -> None:
    made = await cluster.client.get(Namespace, SHOP)

    async def transparent(name: str) -> bool:
        pod = await cluster.create(make_pod(name, INJECT))
        await cluster.client.delete(Pod, name, namespace=SHOP, grace_period=0)
        return known.TRANSPARENT_STATUS in pod.metadata.annotations

    assert await transparent("labeled-0")
    for value in ("false", None):
        patch = {"metadata": {"labels": {known.TRANSPARENT.key: value}}}
        await cluster.client.patch(Namespace, made.metadata.name, patch)
        numbers = iter(range(1000))
        expected = value is None
        await eventually(
            f"the label {value}",
            lambda: transparent(f"labeled-{value}-{next(numbers)}".lower()),  # noqa: B023 - awaited in this round
            until=expected.__eq__,
        )


async def test_what_the_processes_may_not_do(cluster: Cluster) -> None:
    """Their rights are those that they need: the webhook, which the network reaches, changes no pod."""
    webhook = cluster.kubernetes.client(await cluster.kubernetes.service_account_token(INJECT_ACCOUNT, OWN))
    registrar = cluster.kubernetes.client(await cluster.kubernetes.service_account_token(REGISTER_ACCOUNT, OWN))
    await cluster.create(make_pod("mine"))
    for attempt in (
        webhook.get(Secret, "other", namespace=OWN),
        webhook.get(Secret, SECRET, namespace=SHOP),
        webhook.get(Pod, "mine", namespace=SHOP),
        webhook.patch(Pod, "mine", {"metadata": {"labels": {"a": "b"}}}, namespace=SHOP),
        webhook.get(MutatingWebhookConfiguration, "other"),
        registrar.get(Secret, SECRET, namespace=OWN),
        registrar.get(MutatingWebhookConfiguration, REGISTRATION),
        registrar.delete(Pod, "mine", namespace=SHOP),
        registrar.get(Namespace, SHOP),
    ):
        with pytest.raises(ApiError) as caught:
            await attempt
        assert caught.value.status.code == FORBIDDEN
    await webhook.close()
    await registrar.close()


async def test_certificates_are_made_again_and_every_replica_presents_them(cluster: Cluster) -> None:
    """The Secret is deleted and the registration emptied, as by a mistake; both come back with a new authority."""
    before = await cluster.client.get(Secret, SECRET, namespace=OWN)
    await cluster.client.delete(Secret, SECRET, namespace=OWN)
    await cluster.webhooks[-1].stop()
    await cluster.start_webhook()
    await cluster.serving()
    after = await cluster.client.get(Secret, SECRET, namespace=OWN)
    assert after.data[BUNDLE] != before.data[BUNDLE]
    registered = await cluster.client.get(MutatingWebhookConfiguration, REGISTRATION)
    assert registered.webhooks[0].clientConfig.caBundle == after.data[BUNDLE]
    leaf = x509.load_pem_x509_certificate(base64.b64decode(after.data[CERTIFICATE]))
    named = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert named.get_values_for_type(x509.DNSName) == ["localhost", f"localhost.{OWN}", f"localhost.{OWN}.svc"]


async def test_without_the_webhook_no_pod_starts_and_nothing_else_stops(cluster: Cluster) -> None:
    await cluster.webhooks[-1].stop()
    assert "failed calling webhook" in await cluster.refused(make_pod("web-3", INJECT))
    await cluster.create(make_pod("system-2"), "kube-system")
    await cluster.start_webhook()
    await cluster.serving()


async def test_the_webhook_goes_on_when_the_api_server_restarts(cluster: Cluster) -> None:
    await cluster.kubernetes.apiserver.stop()
    await cluster.kubernetes.start_apiserver()
    await cluster.serving()
    patch = {"metadata": {"labels": {known.TRANSPARENT.key: "false"}}}
    await cluster.client.patch(Namespace, SHOP, patch)
    numbers = iter(range(1000))

    async def direct() -> bool:
        pod = await cluster.create(make_pod(f"after-{next(numbers)}", INJECT))
        return known.TRANSPARENT_STATUS not in pod.metadata.annotations

    await eventually("the label to be read after the restart", direct, within_s=60)
    await cluster.client.patch(Namespace, SHOP, {"metadata": {"labels": {known.TRANSPARENT.key: None}}})


async def test_the_api_server_accepts_the_manifests(cluster: Cluster, tmp_path: Path) -> None:
    """The registration of the webhook is there already, with the port of this test; another one is tried."""
    documents = [*yaml.safe_load_all(MANIFESTS.read_text())]
    [webhook] = [each for each in documents if each["kind"] == "MutatingWebhookConfiguration"]
    webhook["metadata"]["name"] = "another"
    (tmp_path / "tried.yaml").write_text(yaml.safe_dump_all(documents))
    found = program()
    assert found is not None
    tried = str(tmp_path / "tried.yaml")
    command = [found, "kubectl", "--kubeconfig", str(cluster.kubernetes.kubeconfig())]
    output = await run_to_end(
        *command, "apply", "--server-side", "--force-conflicts", "--dry-run=server", "--filename", tried
    )
    assert "deployment.apps/gossamer-inject serverside-applied (server dry run)" in output
    assert "Warning" not in output


@pytest.mark.skipif(not HELM.exists(), reason="no helm: run 'scripts/fetch-kubernetes'")
async def test_the_manifests_are_those_of_the_chart_and_its_values_are_checked(tmp_path: Path) -> None:
    await run_to_end(str(ROOT / "scripts" / "manifests"), str(tmp_path / "made.yaml"))
    assert (tmp_path / "made.yaml").read_text() == MANIFESTS.read_text(), "run scripts/manifests"
    chart = str(ROOT / "charts" / "gossamer")
    render = [str(HELM), "template", "gossamer", chart, "--kube-version", "1.34", "--set"]
    for wrong in ("connectInject.replicas=0", "server.nope=1", "connectInject.failurePolicy=Maybe"):
        with pytest.raises(CommandError, match="values don't meet the specifications"):
            await run_to_end(*render, wrong)
    values = "server.tokenSecret=consul,connectInject.sidecarProxy.resources.limits.memory=64Mi"
    rendered = await run_to_end(*render, values)
    assert "--sidecar-resource=memory-limit=64Mi" in rendered
    assert "secretName: consul" in rendered

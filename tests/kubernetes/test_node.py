"""The story of the product on Kubernetes: pods on a real node, from their creation to their end."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.kubernetes.images import GOSSAMER
from tests.kubernetes.node import CONSUL, Node
from xds.lab.network import temporary_folder
from xds.lab.processes import CommandError, eventually

pytestmark = pytest.mark.timeout(600)
WITHIN_S = 120.0
ASK = """
import sys, urllib.request
print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())
"""
KEEP_ASKING = """
import sys, time, urllib.request
failed, count = 0, int(sys.argv[2])
for _ in range(count):
    try:
        urllib.request.urlopen(sys.argv[1], timeout=10).read()
    except OSError as error:
        failed += 1
        print(error)
    time.sleep(0.02)
print(f"{failed} of {count} failed")
"""
ANNOTATIONS = {"consul.hashicorp.com/connect-inject": "true"}


def container(name: str, **more: Any) -> dict[str, Any]:
    """Return an application that only its sidecar reaches: it listens on loopback."""
    command = ["python", "-m", "xds.lab.application", name, "8080", "--address", "127.0.0.1", "--http"]
    made = {"name": name, "image": GOSSAMER, "imagePullPolicy": "Never", "command": command}
    return {**made, "ports": [{"name": "http", "containerPort": 8080}], **more}


def deployment(name: str, replicas: int = 1, **more: Any) -> list[dict[str, Any]]:
    """Return a Service and its Deployment."""
    labels = {"app": name}
    spec = {"containers": [container(name, **more)], "terminationGracePeriodSeconds": 10}
    template = {"metadata": {"labels": labels, "annotations": ANNOTATIONS}, "spec": spec}
    deployed = {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template}
    ports = [{"port": 80, "targetPort": "http"}]
    return [
        {
            "kind": "Service",
            "apiVersion": "v1",
            "metadata": {"name": name},
            "spec": {"selector": labels, "ports": ports},
        },
        {"kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"name": name}, "spec": deployed},
    ]


async def apply(node: Node, objects: list[dict[str, Any]], folder: Path) -> None:
    file = folder / "applied.json"
    file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
    await node.kubectl("apply", "--filename", str(file))


async def intention(action: str) -> None:
    """Replace the intention from web to api."""
    body = {"SourceName": "web", "DestinationName": "api", "SourceType": "consul", "Action": action}
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{CONSUL}/v1/connect/intentions") as response:
            for each in await response.json() or ():
                await session.delete(f"{CONSUL}/v1/connect/intentions/{each['ID']}")
        if action:
            await session.post(f"{CONSUL}/v1/connect/intentions", json=body)


@pytest.fixture(scope="module")
async def node() -> AsyncIterator[Node]:
    folder = temporary_folder()
    try:
        async with Node(folder, Path(os.environ["GOSSAMER_IMAGES"])) as made:
            check = {"httpGet": {"path": "/ready", "port": "http"}, "periodSeconds": 1}
            drain = {"preStop": {"exec": {"command": ["sleep", "4"]}}}
            shop = [*deployment("web"), *deployment("api", 2, readinessProbe=check, lifecycle=drain)]
            await apply(made, shop, folder)
            for name in ("web", "api"):
                await made.kubectl("rollout", "status", f"deployment/{name}", "--timeout", "120s")
            yield made
            if os.environ.get("HOLD"):
                sys.stdout.write(f"\nKUBECONFIG={made.kubernetes.kubeconfig()}; Ctrl-C ends the cluster\n")
                await asyncio.Event().wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def address(node: Node, service: str) -> str:
    return await node.kubectl("get", "service", service, "--output", "jsonpath={.spec.clusterIP}")


async def asked(node: Node, url: str) -> Any:
    """Return what web's application is answered, ``None`` where the connection is refused."""
    try:
        return json.loads(await node.run_in("web", "python", "-c", ASK, url))
    except CommandError:
        return None


async def test_web_reaches_api_by_its_cluster_ip_and_intentions_decide(node: Node) -> None:
    url = f"http://{await address(node, 'api')}/"
    found = await eventually("api to answer", lambda: asked(node, url), within_s=WITHIN_S)
    assert found["service"] == "api"
    await intention("deny")
    await eventually("api to be out of reach", lambda: asked(node, url), until=lambda answer: answer is None)
    await intention("")
    await eventually("api to answer again", lambda: asked(node, url))


async def test_an_application_is_reached_through_its_sidecar_only(node: Node) -> None:
    """The kubelet's probe passes, although the application listens on loopback; nothing else gets in in plain text."""
    pods = json.loads(await node.kubectl("get", "pods", "--selector", "app=api", "--output", "json"))["items"]
    for pod in pods:
        assert all(each["ready"] for each in pod["status"]["containerStatuses"])
        with pytest.raises(aiohttp.ClientError):
            async with aiohttp.ClientSession() as session:
                await session.get(f"http://{pod['status']['podIP']}:8080/", timeout=aiohttp.ClientTimeout(total=5))


async def test_a_rolling_update_under_load_loses_no_request(node: Node) -> None:
    url = f"http://{await address(node, 'api')}/"
    load = asyncio.create_task(node.run_in("web", "python", "-c", KEEP_ASKING, url, "600"))
    await node.kubectl("rollout", "restart", "deployment/api")
    await node.kubectl("rollout", "status", "deployment/api", "--timeout", "120s")
    assert "0 of 600 failed" in await load


async def test_a_pod_without_a_service_says_why_and_starts_when_there_is_one(node: Node, tmp_path: Path) -> None:
    metadata = {"name": "lone", "labels": {"app": "lone"}, "annotations": ANNOTATIONS}
    spec = {"containers": [container("lone")], "terminationGracePeriodSeconds": 1}
    await apply(node, [{"kind": "Pod", "apiVersion": "v1", "metadata": metadata, "spec": spec}], tmp_path)
    words = "no Service of namespace shop selects this pod"

    async def said() -> bool:
        described = await node.kubectl("describe", "pod", "lone")
        return words in described and words in node.logs("lone", "gossamer-init")

    await eventually("the Event and the log", said, within_s=WITHIN_S)
    await apply(node, deployment("lone")[:1], tmp_path)
    await node.kubectl("wait", "--for", "condition=Ready", "pod/lone", "--timeout", "120s")


async def test_a_job_with_a_native_sidecar_completes(node: Node, tmp_path: Path) -> None:
    url = f"http://{await address(node, 'api')}/"
    labels = {"app": "once"}
    once = container("once", command=["python", "-c", ASK, url])
    template = {
        "metadata": {"labels": labels, "annotations": ANNOTATIONS},
        "spec": {"containers": [once], "restartPolicy": "Never"},
    }
    job = {"kind": "Job", "apiVersion": "batch/v1", "metadata": {"name": "once"}, "spec": {"template": template}}
    await apply(node, [deployment("once")[0], job], tmp_path)
    await node.kubectl("wait", "--for", "condition=Complete", "job/once", "--timeout", "120s")

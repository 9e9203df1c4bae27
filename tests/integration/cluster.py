"""A Kubernetes API server with Gossamer as the chart installs it, but for Deployments: its processes run here.

Pods are not run. A test plays the kubelet and writes their status.
"""

from __future__ import annotations

import shutil
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightkube import codecs
from lightkube.core.exceptions import ApiError
from lightkube.models.core_v1 import ServicePort, ServiceSpec
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.core_v1 import Namespace, Node, Pod, Service

from tests.integration.helpers import free_port
from tests.integration.kubernetes import Kubernetes, make_pod
from tests.integration.machine import ROOT
from xds.kubernetes import annotations as known
from xds.lab import binaries
from xds.lab.commands import gossamer
from xds.lab.network import temporary_folder
from xds.lab.processes import Process, eventually

OWN, SHOP, SECRET, LEASE = "gossamer", "shop", "gossamer-webhook", "gossamer-register"
INJECT_ACCOUNT, REGISTER_ACCOUNT, REGISTRATION = "gossamer-inject", "gossamer-register", "gossamer"
NODE, HOST = "node-1", "10.0.0.1"
MANIFESTS = ROOT / "deploy" / "kubernetes.yaml"
INSTALLED = (
    "Namespace", "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding",
    "MutatingWebhookConfiguration",
)  # fmt: skip
INJECT = {known.INJECT.key: "true"}


class Cluster:
    """An API server with the webhook, which has the rights of its ServiceAccount only."""

    def __init__(self, kubernetes: Kubernetes, folder: Path, stack: AsyncExitStack) -> None:
        self.kubernetes = kubernetes
        self.client = kubernetes.client()
        self.webhooks: list[Process] = []
        self.port = free_port()
        self._addresses = 0
        self.folder = folder
        self._stack = stack

    async def prepare(self) -> None:
        """Create what the manifests have, but for Deployments, since no pod runs here; and a node.

        The API server calls the webhook at its port of loopback.
        """
        for document in yaml.safe_load_all(MANIFESTS.read_text()):
            if document["kind"] in INSTALLED:
                for webhook in document.get("webhooks", ()):
                    webhook["clientConfig"] = {"url": f"https://localhost:{self.port}/mutate"}
                await self.client.create(codecs.from_dict(document))
        await self.client.create(Namespace(metadata=ObjectMeta(name=SHOP)))
        await self.client.create(Node(metadata=ObjectMeta(name=NODE)))

    async def start(self, name: str, *arguments: str) -> Process:
        """Start ``gossamer kubernetes`` with the token of its ServiceAccount."""
        account = INJECT_ACCOUNT if arguments[0] == "inject" else REGISTER_ACCOUNT
        token = await self.kubernetes.service_account_token(account, OWN)
        config = self.folder / f"{name}.kubeconfig"
        config.write_text(yaml.safe_dump(self.kubernetes.config(token)))
        process = await Process.start(
            name, gossamer("kubernetes", *arguments), self.folder / f"{name}.log", {"KUBECONFIG": str(config)}
        )
        self._stack.push_async_callback(process.stop)
        return process

    async def start_webhook(self) -> Process:
        """Start a replica of the webhook."""
        process = await self.start(
            f"webhook-{len(self.webhooks)}",
            *("inject", "--image", "gossamer:1", "--consul", "http://consul:8500"),
            *("--xds", "gossamer.gossamer.svc:18000", "--listen", f"127.0.0.1:{self.port}"),
            *("--namespace", OWN, "--service", "localhost"),
        )
        self.webhooks.append(process)
        return process

    async def serving(self) -> None:
        """Wait until pods can be created."""

        async def admits() -> bool:
            for process in self.webhooks:
                if process.running:
                    process.alive()
            try:
                await self.create(make_pod("probe"))
            except ApiError as error:
                if "failed calling webhook" in str(error):
                    return False
                raise
            await self.client.delete(Pod, "probe", namespace=SHOP, grace_period=0)
            return True

        await eventually("the webhook", admits, within_s=60, every_s=0.2)

    async def create(self, pod: dict[str, Any], namespace: str = SHOP) -> Any:
        """Create a pod. Return what the API server stored."""
        return await self.client.create(Pod.from_dict(pod), namespace=namespace)

    async def refused(self, pod: dict[str, Any]) -> str:
        """Return the message with which the creation of a pod is refused."""
        with pytest.raises(ApiError) as caught:
            await self.create(pod)
        return str(caught.value)

    async def start_consul(self, url: str, *arguments: str) -> Process:
        """Start an empty Consul at ``url``, a free port of loopback."""
        ports = ("-dns-port", "-server-port", "-serf-lan-port", "-serf-wan-port", "-grpc-port")
        given = [f"-http-port={url.rpartition(':')[2]}", *(f"{flag}={free_port()}" for flag in ports)]
        command = [binaries.consul(), "agent", "-dev", "-bind=127.0.0.1", *given, *arguments]
        process = await Process.start("consul", command, self.folder / "consul.log")
        self._stack.push_async_callback(process.stop)
        return process

    # -- the kubelet's part -------------------------------------------------------------------------------------------

    async def run(
        self,
        name: str,
        *,
        app: str = "",
        account: str = "default",
        namespace: str = SHOP,
        ready: bool = True,
        **annotations: str,
    ) -> Any:
        """Create a pod with a sidecar on the node, as if it ran there with an address of its own."""
        given = INJECT | {f"{known.PREFIX}{key.replace('_', '-')}": value for key, value in annotations.items()}
        pod = make_pod(name, given, nodeName=NODE, serviceAccountName=account)
        pod["metadata"]["labels"] = {"app": app or name}
        await self.create(pod, namespace)
        self._addresses += 1
        address = f"10.1.{self._addresses // 250}.{self._addresses % 250}"
        return await self.set_ready(name, ready=ready, address=address, namespace=namespace)

    async def set_ready(self, name: str, *, ready: bool, address: str = "", namespace: str = SHOP) -> Any:
        """Write the status of a pod."""
        status: dict[str, Any] = {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": str(ready)}, {"type": "PodScheduled", "status": "True"}],
        }
        if address:
            status |= {"podIP": address, "podIPs": [{"ip": address}], "hostIP": HOST, "hostIPs": [{"ip": HOST}]}
        return await self.client.patch(Pod.Status, name, {"status": status}, namespace=namespace)

    async def serve(self, name: str, *, app: str = "", headless: bool = False, namespace: str = SHOP) -> Any:
        """Create a Service."""
        spec = ServiceSpec(
            selector={"app": app or name},
            ports=[ServicePort(port=80, targetPort="http")],
            clusterIP="None" if headless else None,
        )
        return await self.client.create(Service(metadata=ObjectMeta(name=name, namespace=namespace), spec=spec))

    async def delete(self, name: str, namespace: str = SHOP) -> None:
        """Delete a pod."""
        await self.client.delete(Pod, name, namespace=namespace, grace_period=0)


async def open_cluster(stack: AsyncExitStack) -> Cluster:
    """Start an API server with what the manifests install and the webhook, until ``stack`` is closed."""
    folder = temporary_folder()
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    kubernetes = await stack.enter_async_context(Kubernetes(folder))
    made = Cluster(kubernetes, folder, stack)
    stack.push_async_callback(made.client.close)
    await made.prepare()
    await made.start_webhook()
    return made

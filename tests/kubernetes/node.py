"""One node of a Kubernetes, with its API server: containerd, kubelet and kube-proxy.

It has to run in mount, PID and network namespaces of its own, whose end removes everything. The kubelet's changes of
the machine's settings end in files over these. Consul, ``gossamer serve``, the webhook and the registration run as
processes of the node; what the pods get is the image.
"""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import yaml

from tests.integration.cluster import OWN, Cluster
from tests.integration.engine import TOOLS
from tests.integration.kubernetes import Kubernetes, program
from tests.kubernetes.images import GOSSAMER, PAUSE
from xds.lab import binaries
from xds.lab.commands import gossamer
from xds.lab.processes import CommandError, Process, eventually, run_to_end

ADDRESS, NAME = "10.99.0.1", "node1"
SERVICES, PODS = "10.96.0.0/16", "10.244.0.0/24"
CONSUL, XDS = f"http://{ADDRESS}:8500", f"{ADDRESS}:18000"
CGROUP = "gossamer-node"
SETTINGS = (
    "vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)  # fmt: skip
"""Settings of the whole machine that the kubelet writes."""
NETWORK = {
    "cniVersion": "1.0.0",
    "name": "bridge",
    "plugins": [
        {
            "type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": True, "hairpinMode": True,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": PODS}]], "routes": [{"dst": "0.0.0.0/0"}]},
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}  # fmt: skip
KUBELET: dict[str, Any] = {
    "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
    "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
    "authorization": {"mode": "AlwaysAllow"},
    "cgroupDriver": "cgroupfs", "cgroupRoot": f"/{CGROUP}", "failCgroupV1": False, "failSwapOn": False,
    "evictionHard": {"memory.available": "50Mi", "nodefs.available": "0%", "imagefs.available": "0%"},
    "imageGCHighThresholdPercent": 100, "localStorageCapacityIsolation": False, "syncFrequency": "5s",
}  # fmt: skip
PROXY: dict[str, Any] = {
    "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "mode": "nftables",
    "clusterCIDR": PODS, "hostnameOverride": NAME, "conntrack": {"maxPerCore": 0},
}  # fmt: skip


class Node:
    """The node and its cluster, running while the ``async with`` block does.

    Args:
        folder: for everything that they write.
        images: file with the images (`tests.kubernetes.images`).
    """

    def __init__(self, folder: Path, images: Path) -> None:
        self._folder = folder
        self._images = images
        self._stack = AsyncExitStack()
        self._environment = {
            **os.environ,
            "PATH": os.pathsep.join(
                [f"{TOOLS}/usr/bin", f"{TOOLS}/usr/sbin", os.environ["PATH"], "/usr/sbin", "/sbin"]
            ),
        }

    async def __aenter__(self) -> Node:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self._stack.aclose()

    async def _start(self) -> None:
        _prepare(self._folder)
        (self._folder / "api").mkdir()
        self.kubernetes = await self._stack.enter_async_context(Kubernetes(self._folder / "api", ADDRESS))
        cluster = Cluster(self.kubernetes, self._folder, self._stack)
        self.client = cluster.client
        self._stack.push_async_callback(self.client.close)
        await cluster.prepare()
        config = ("--kubeconfig", str(self.kubernetes.kubeconfig()))
        await self._part("kube-scheduler", *config, "--leader-elect=false", "--authentication-skip-lookup")
        await self._start_containerd()
        await self._part(
            "kubelet", *config, "--config", self._write("kubelet.yaml", yaml.safe_dump(self._kubelet())),
            "--hostname-override", NAME, "--node-ip", ADDRESS, "--root-dir", str(self._folder / "kubelet"),
        )  # fmt: skip
        proxy = PROXY | {"clientConnection": {"kubeconfig": config[1]}}
        await self._part("kube-proxy", "--config", self._write("proxy.yaml", yaml.safe_dump(proxy)))
        await self._process("consul", binaries.consul(), "agent", "-dev", "-bind", ADDRESS, "-client", "0.0.0.0")
        await self._process(
            "serve", *gossamer("serve", "--consul", CONSUL, "--listen", XDS, "--insecure"),
            "--virtual-ip-range", SERVICES,
        )  # fmt: skip
        await cluster.start(
            "webhook", "inject", "--image", GOSSAMER, "--image-pull-policy", "Never", "--consul", CONSUL, "--xds", XDS,
            "--listen", f"127.0.0.1:{cluster.port}", "--namespace", OWN, "--service", "localhost",
        )  # fmt: skip
        await cluster.start("register", "register", "--consul", CONSUL, "--namespace", OWN)
        await eventually("the node", self._is_ready, within_s=120, every_s=0.5)
        await cluster.serving()

    async def _is_ready(self) -> bool:
        try:
            return "True" in await self.kubectl(
                "get", "node", NAME, "--output", "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
            )
        except CommandError:  # the kubelet has not registered it yet
            return False

    def _kubelet(self) -> dict[str, Any]:
        return KUBELET | {"containerRuntimeEndpoint": f"unix://{self._folder}/containerd.sock"}

    async def _start_containerd(self) -> None:
        (self._folder / "cni").mkdir()
        self._write("cni/10-bridge.conflist", json.dumps(NETWORK))
        self._write(
            "containerd.toml",
            f"""version = 2
root = "{self._folder}/containerd/root"
state = "{self._folder}/containerd/state"
[grpc]
  address = "{self._folder}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{TOOLS}/usr/lib/cni"
    conf_dir = "{self._folder}/cni"
""",
        )
        await self._process("containerd", "containerd", "--config", str(self._folder / "containerd.toml"))

        async def answers() -> bool:
            try:
                return bool(await self.ctr("version"))
            except CommandError:
                return False

        await eventually("containerd", answers, within_s=60)
        await self.ctr("images", "import", str(self._images))

    def _write(self, name: str, text: str) -> str:
        (self._folder / name).write_text(text)
        return str(self._folder / name)

    async def _part(self, part: str, *arguments: str) -> Process:
        found = program()
        assert found is not None
        return await self._process(part, found, part, *arguments)

    async def _process(self, name: str, *command: str) -> Process:
        log = self._folder / f"{name}.log"
        process = await Process.start(name, command, log, self._environment, folder=self._folder)
        self._stack.push_async_callback(process.stop)
        return process

    async def kubectl(self, *arguments: str) -> str:
        """Run kubectl in the namespace ``shop``. Return what it printed.

        Raises:
            CommandError: it failed.
        """
        found = program()
        assert found is not None
        config = ("--kubeconfig", str(self.kubernetes.kubeconfig()), "--namespace", "shop")
        return await run_to_end(found, "kubectl", *config, *arguments, environment=self._environment)

    async def ctr(self, *arguments: str) -> str:
        """Run ``ctr`` of containerd. Return what it printed.

        Raises:
            CommandError: it failed.
        """
        where = ("--address", f"{self._folder}/containerd.sock", "--namespace", "k8s.io")
        return await run_to_end("ctr", *where, *arguments, environment=self._environment)

    @staticmethod
    def logs(pod: str, container: str) -> str:
        """Return the log of a container, from the node's files."""
        found = sorted(Path("/var/log/pods").glob(f"shop_{pod}_*/{container}/*.log"))
        return "".join(file.read_text() for file in found)

    async def run_in(self, container: str, *command: str) -> str:
        """Run a command in the first container of this name. Return what it printed.

        Raises:
            CommandError: it failed.
        """
        found = await self.ctr("containers", "ls", "--quiet", f'labels."io.kubernetes.container.name"=={container}')
        return await self.ctr("tasks", "exec", "--exec-id", os.urandom(4).hex(), found.split()[0], *command)


def _prepare(folder: Path) -> None:
    """Prepare this machine's namespaces: the node's network, its settings, folders and cgroups."""
    logs = folder / "logs"
    names = folder / "netns"
    logs.mkdir()
    names.mkdir()
    Path("/var/log/pods").mkdir(parents=True, exist_ok=True)
    Path("/run/netns").mkdir(exist_ok=True)
    steps = [
        "mount --make-rshared /",
        f"mount --bind {logs} /var/log/pods",
        f"mount --bind {names} /run/netns",
        "mount --make-shared /run/netns",
        "ip link set lo up",
        "ip link add node0 type bridge",
        f"ip address add {ADDRESS}/24 dev node0",
        "ip link set node0 up",
        f"ip route add {SERVICES} dev node0",
        "sysctl -qw net.ipv4.ip_forward=1",
    ]
    for setting in SETTINGS:
        copy = folder / setting.replace("/", "-")
        copy.write_text(Path("/proc/sys", setting).read_text())
        steps.append(f"mount --bind {copy} /proc/sys/{setting}")
    subprocess.run(["sh", "-ec", "\n".join(steps)], check=True)
    for hierarchy in Path("/sys/fs/cgroup").iterdir():
        made = hierarchy / CGROUP
        if hierarchy.is_dir():
            made.mkdir(exist_ok=True)
            for file in ("cpuset.cpus", "cpuset.mems"):
                if (made / file).exists():
                    (made / file).write_text((hierarchy / file).read_text())

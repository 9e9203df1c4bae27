"""A real Kubernetes API server with etcd and its controllers, on loopback; no nodes, so no pod runs.

``scripts/fetch-kubernetes`` provides the programs. Everything is in a folder of its own and ends with the process.
"""

from __future__ import annotations

import base64
import datetime as dt
import ipaddress
import json
import os
import secrets
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx2
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from lightkube import AsyncClient, KubeConfig
from lightkube.models.authentication_v1 import TokenRequestSpec
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.core_v1 import Namespace, ServiceAccount, ServiceAccountToken

from tests.integration.helpers import free_port
from xds.lab.processes import Process, eventually

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gossamer"
ETCD, HELM = CACHE / "etcd", CACHE / "helm"
MISSING = "no Kubernetes: run 'scripts/fetch-kubernetes', which says what it lacks"
ADMIN, USER_TOKEN = "system:masters", "admin"


def program() -> str | None:
    """Return the program that has all parts of Kubernetes, ``None`` where there is none or no etcd."""
    given = os.environ.get("KUBERNETES_BIN")
    found = [Path(given)] if given else sorted(CACHE.glob("kubernetes-*"))
    return str(found[-1]) if found and found[-1].exists() and ETCD.exists() else None


class Kubernetes:
    """API server and controllers, running while the ``async with`` block does.

    Args:
        folder: for everything that they write.
        address: where the API server listens.
    """

    def __init__(self, folder: Path, address: str = "127.0.0.1") -> None:
        self._folder = folder
        self._address = address
        self._stack = AsyncExitStack()
        self._token = secrets.token_hex(16)
        self.port = 0

    async def __aenter__(self) -> Kubernetes:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self._stack.aclose()

    async def _start(self) -> None:
        _write_keys(self._folder, self._address)
        (self._folder / "tokens.csv").write_text(f"{self._token},{USER_TOKEN},{USER_TOKEN},{ADMIN}\n")
        self.etcd_port, self.port = free_port(), free_port()
        await self.start_etcd()
        await self.start_apiserver()
        self.kubeconfig().write_text(yaml.safe_dump(self.config()))
        await self._run(
            "kube-controller-manager",
            *("--kubeconfig", str(self.kubeconfig()), "--service-account-private-key-file", "sa.key"),
            *("--root-ca-file", "ca.crt", "--leader-elect=false", "--authentication-skip-lookup"),
            *("--secure-port", str(free_port()), "--node-monitor-grace-period", "3600s"),
        )
        client = self.client()

        async def usable() -> bool:
            try:
                return bool(await client.get(ServiceAccount, "default", namespace="default"))
            except httpx2.HTTPError:
                return False

        await eventually("the default service account", usable, within_s=120)
        await client.close()

    async def start_etcd(self) -> Process:
        """Start etcd, on the data that is there."""
        url = f"http://127.0.0.1:{self.etcd_port}"
        command = [str(ETCD), "--data-dir", "etcd", "--listen-client-urls", url, "--advertise-client-urls", url]
        command += ["--listen-peer-urls", f"http://127.0.0.1:{free_port()}", "--unsafe-no-fsync"]
        self.etcd = await self._process("etcd", command)
        return self.etcd

    async def compact(self) -> None:
        """Have etcd forget the history of all objects."""
        url = f"http://127.0.0.1:{self.etcd_port}/v3/kv"
        async with httpx2.AsyncClient() as client:
            found = await client.post(f"{url}/range", json={"key": "AA=="})
            revision = found.json()["header"]["revision"]
            (await client.post(f"{url}/compaction", json={"revision": revision})).raise_for_status()

    async def start_apiserver(self) -> Process:
        """Start the API server, and wait until it is ready."""
        self.apiserver = await self._run(
            "kube-apiserver",
            *("--etcd-servers", f"http://127.0.0.1:{self.etcd_port}", "--bind-address", self._address),
            *("--secure-port", str(self.port), "--service-cluster-ip-range", "10.96.0.0/16"),
            *("--advertise-address", self._address),
            *("--tls-cert-file", "api.crt", "--tls-private-key-file", "api.key", "--client-ca-file", "ca.crt"),
            *("--service-account-issuer", "https://kubernetes.default.svc", "--token-auth-file", "tokens.csv"),
            *("--service-account-signing-key-file", "sa.key", "--service-account-key-file", "sa.pub"),
            *("--authorization-mode", "RBAC", "--allow-privileged=true"),
        )
        client = self.client()

        async def ready() -> bool:
            self.apiserver.alive()
            try:
                return bool(await client.get(Namespace, "default"))
            except httpx2.HTTPError:
                return False

        await eventually("the API server", ready, within_s=120)
        await client.close()
        return self.apiserver

    async def service_account_token(self, name: str, namespace: str) -> str:
        """Return a token of a ServiceAccount, as a pod gets it."""
        client = self.client()
        spec = TokenRequestSpec(audiences=[], expirationSeconds=3600)
        request = ServiceAccountToken(metadata=ObjectMeta(), spec=spec)
        token: str = (await client.create(request, name, namespace=namespace)).status.token
        await client.close()
        return token

    def authority(self) -> str:
        """Return the certificate authority of the API server, PEM."""
        return (self._folder / "ca.crt").read_text()

    def kubeconfig(self) -> Path:
        """Return the path of the administrator's kubeconfig."""
        return self._folder / "kubeconfig"

    def client(self, token: str = "") -> Any:
        """Return a lightkube client of the API server, as the administrator or with ``token``."""
        return AsyncClient(KubeConfig.from_dict(self.config(token)))

    def config(self, token: str = "") -> dict[str, Any]:
        authority = base64.b64encode((self._folder / "ca.crt").read_bytes()).decode()
        cluster = {"server": f"https://{self._address}:{self.port}", "certificate-authority-data": authority}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "here", "cluster": cluster}],
            "users": [{"name": "user", "user": {"token": token or self._token}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "user"}}],
            "current-context": "here",
        }

    async def _run(self, part: str, *arguments: str) -> Process:
        found = program()
        assert found is not None
        return await self._process(part, [found, part, *arguments])

    async def _process(self, name: str, command: list[str]) -> Process:
        process = await Process.start(name, command, self._folder / f"{name}.log", folder=self._folder)
        self._stack.push_async_callback(process.stop)
        return process


def _write_keys(folder: Path, address: str) -> None:
    """Write the API server's certificate, its authority, and the key of service account tokens."""
    now = dt.datetime.now(dt.UTC)
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])

    def builder(subject: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        made = x509.CertificateBuilder().subject_name(subject).issuer_name(name).public_key(public)
        made = made.serial_number(x509.random_serial_number()).not_valid_before(now - dt.timedelta(hours=1))
        return made.not_valid_after(now + dt.timedelta(days=1))

    authority = builder(name, authority_key.public_key()).add_extension(
        x509.BasicConstraints(ca=True, path_length=None), critical=True
    )
    server = builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kube-apiserver")]), key.public_key())
    alternatives = [x509.IPAddress(ipaddress.ip_address(address)), x509.DNSName("kubernetes.default.svc")]
    server = server.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    pem = serialization.Encoding.PEM
    for file, made in (("ca.crt", authority), ("api.crt", server)):
        (folder / file).write_bytes(made.sign(authority_key, hashes.SHA256()).public_bytes(pem))
    tokens = rsa.generate_private_key(65537, 2048)
    plain = serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    (folder / "api.key").write_bytes(key.private_bytes(pem, *plain))
    (folder / "sa.key").write_bytes(tokens.private_bytes(pem, *plain))
    (folder / "sa.pub").write_bytes(
        tokens.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def make_pod(name: str, annotations: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    """Return a pod with one container, ``app``, on port 8080 (``http``)."""
    container = {"name": "app", "image": "app", "ports": [{"name": "http", "containerPort": 8080}]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "annotations": annotations or {}, "labels": {"app": name}},
        "spec": {"containers": [container]} | spec,
    }


def shown(found: Any) -> str:
    """Return an object as readable text, for messages of tests."""
    return json.dumps(found, indent=1)

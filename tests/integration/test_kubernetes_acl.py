"""ACLs of pods: a pod logs in to a real Consul with its ServiceAccount's token, which a real API server reviews."""

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
from lightkube.models.rbac_v1 import PolicyRule, RoleRef, Subject
from lightkube.resources.core_v1 import Pod, ServiceAccount
from lightkube.resources.rbac_authorization_v1 import ClusterRole, ClusterRoleBinding

from tests.integration.cluster import LEASE, NODE, OWN, SHOP, Cluster, open_cluster
from tests.integration.helpers import free_port
from tests.integration.kubernetes import MISSING, program
from xds.kubernetes.containers import PROBLEM
from xds.lab.commands import gossamer
from xds.lab.processes import CommandError, Process, eventually, run_to_end

pytestmark = [pytest.mark.skipif(program() is None, reason=MISSING), pytest.mark.timeout(200)]
MASTER, METHOD, REVIEWER = "4a17c5a1-0c0a-4f5b-8f4f-7a3f6a3f9d11", "kubernetes", "consul-auth"
CONFIGURATION = f"""
acl {{
  enabled = true
  default_policy = "deny"
  tokens {{ master = "{MASTER}" }}
}}
"""
WITHIN_S = 60.0


class Secured:
    """A cluster and a Consul with ACLs, in which pods log in."""

    def __init__(self, cluster: Cluster, stack: AsyncExitStack) -> None:
        self.cluster = cluster
        self.url = f"http://127.0.0.1:{free_port()}"
        self.folder = cluster.folder
        self._stack = stack

    async def call(self, method: str, path: str, body: Any = None, token: str = MASTER) -> Any:
        headers = {"X-Consul-Token": token}
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.request(method, self.url + path, json=body, headers=headers) as response,
            ):
                if response.status != 200:
                    raise ConnectionError(f"{path}: {response.status} {await response.text()}")
                return await response.json(content_type=None)
        except aiohttp.ClientError as error:
            raise ConnectionError(str(error)) from error

    async def start_consul(self) -> None:
        """Start Consul, and teach it to ask the API server about ServiceAccounts."""
        (self.folder / "acl.hcl").write_text(CONFIGURATION)
        process = await self.cluster.start_consul(self.url, f"-config-file={self.folder / 'acl.hcl'}")
        client = self.cluster.client
        reviewer = [Subject(kind="ServiceAccount", name=REVIEWER, namespace=OWN)]
        await client.create(ServiceAccount(metadata=ObjectMeta(name=REVIEWER, namespace=OWN)))
        rules = [
            PolicyRule(apiGroups=["authentication.k8s.io"], resources=["tokenreviews"], verbs=["create"]),
            PolicyRule(apiGroups=[""], resources=["serviceaccounts"], verbs=["get"]),
        ]
        await client.create(ClusterRole(metadata=ObjectMeta(name=REVIEWER), rules=rules))
        role = RoleRef(apiGroup="rbac.authorization.k8s.io", kind="ClusterRole", name=REVIEWER)
        await client.create(ClusterRoleBinding(metadata=ObjectMeta(name=REVIEWER), roleRef=role, subjects=reviewer))
        method = {
            "Name": METHOD,
            "Type": "kubernetes",
            "Config": {
                "Host": f"https://127.0.0.1:{self.cluster.kubernetes.port}",
                "CACert": self.cluster.kubernetes.authority(),
                "ServiceAccountJWT": await self.cluster.kubernetes.service_account_token(REVIEWER, OWN),
            },
        }

        async def made() -> bool:
            process.alive()
            await self.call("PUT", "/v1/acl/auth-method", method)
            return True

        await eventually("the auth method", made, within_s=WITHIN_S)
        rule = {
            "AuthMethod": METHOD,
            "BindType": "service",
            "BindName": "${serviceaccount.name}",
            "Selector": "serviceaccount.name!=default",
        }
        await self.call("PUT", "/v1/acl/binding-rule", rule)

    async def account(self, name: str) -> Path:
        """Create a ServiceAccount, and return a file with a token of it, as the kubelet writes it."""
        await self.cluster.client.create(ServiceAccount(metadata=ObjectMeta(name=name, namespace=SHOP)))
        return await self.token_of(name)

    async def token_of(self, name: str) -> Path:
        file = self.folder / f"{name}.token"
        file.write_text(await self.cluster.kubernetes.service_account_token(name, SHOP))
        return file

    async def init(self, pod: Any, account: Path) -> Process:
        """Start the init container of a pod."""
        own = {"POD_NAME": pod.metadata.name, "POD_NAMESPACE": SHOP, "POD_UID": pod.metadata.uid, "NODE_NAME": NODE}
        at = f"{self.folder}/{pod.metadata.name}"
        flags = ("--id-file", f"{at}.id")
        command = gossamer(
            "kubernetes", "init", "--consul", self.url, "--auth-method", METHOD, "--account-file", str(account), *flags
        )
        log = self.folder / f"{pod.metadata.name}.init.log"
        process = await Process.start("init", command, log, {**os.environ, **own})
        self._stack.push_async_callback(process.stop)
        return process


@pytest.fixture(scope="module")
async def secured() -> AsyncIterator[Secured]:
    async with AsyncExitStack() as stack:
        cluster = await open_cluster(stack)
        made, folder = Secured(cluster, stack), cluster.folder
        await made.start_consul()
        (folder / "token").write_text(MASTER)
        await cluster.start(
            "register", "register", "--consul", made.url, "--token-file", str(folder / "token"), "--namespace", OWN,
            "--lease", LEASE, "--acls",
        )  # fmt: skip
        await cluster.serving()
        yield made


async def test_a_pod_logs_in_as_the_service_of_its_account_and_out(secured: Secured) -> None:
    account = await secured.account("web")
    await secured.cluster.serve("web")
    pod = await secured.cluster.run("web-1", app="web", account="web")
    init = await secured.init(pod, account)
    async with asyncio.timeout(WITHIN_S):
        assert await init.ended() == 0, init.tail()
    assert (secured.folder / "web-1.id").read_text() == "web-1-web-sidecar-proxy\n"
    tokens = await secured.call("GET", "/v1/acl/tokens")
    assert not [each for each in tokens if each.get("AuthMethod")], "the init container logged out"
    # What the sidecar does at each start.
    login = secured.folder / "web-1.login"
    files = ("--account-file", str(account), "--login-file", str(login))
    own = ("--pod-name", "web-1", "--pod-namespace", SHOP)
    for _ in range(2):
        await run_to_end(
            *gossamer("kubernetes", "login", "--consul", secured.url, "--auth-method", METHOD, *files, *own)
        )
    token = login.read_text().strip()
    found = await secured.call("GET", "/v1/acl/token/self", token=token)
    assert [each["ServiceName"] for each in found["ServiceIdentities"]] == ["web"]
    assert f'"{SHOP}/web-1"' in found["Description"]
    logout = gossamer("kubernetes", "logout", "--consul", secured.url, "--token-file", str(login))
    await run_to_end(*logout)
    with pytest.raises(ConnectionError, match="ACL not found"):
        await secured.call("GET", "/v1/acl/token/self", token=token)
    with pytest.raises(CommandError, match="ACL not found"):
        await run_to_end(*logout)


async def test_another_account_is_reported_and_may_not_log_in(secured: Secured) -> None:
    await secured.cluster.serve("api")
    pod = await secured.cluster.run("api-1", app="api")

    async def problem() -> str:
        found = await secured.cluster.client.get(Pod, "api-1", namespace=SHOP)
        return str((found.metadata.annotations or {}).get(PROBLEM, ""))

    words = await eventually("the problem", problem, within_s=WITHIN_S)
    assert words.startswith("the ServiceAccount 'default' can't be the service 'api'")
    init = await secured.init(pod, await secured.token_of("default"))

    async def log() -> str:
        return init.tail()

    expected = f"can't log in with auth method '{METHOD}'"
    await eventually("the init container's log", log, until=lambda text: expected in text, within_s=WITHIN_S)
    await init.stop()

"""Runs a real Consul agent on a lab host, and registers services with it as an operator would."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from xds.lab import binaries
from xds.lab.network import Host
from xds.lab.processes import Process, eventually
from xds.mesh.names import SIDECAR_SUFFIX
from xds.sources.consul.client import Consul, ConsulError, Reply
from xds.sources.consul.settings import ConsulSettings

MANAGEMENT_TOKEN = "8a6d0b4e-1f6a-4d0e-9c57-2f4f3c0f7a11"  # noqa: S105 - of a throw-away Consul
HTTP_PORT = 8500


async def version() -> tuple[int, int]:
    """Return Consul's version, major and minor."""
    process = await asyncio.create_subprocess_exec(binaries.consul(), "version", stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    found = re.search(rb"Consul v(\d+)\.(\d+)", output)
    if found is None:
        raise binaries.MissingError(f"{binaries.consul()} version printed no version: {output!r}")
    return int(found[1]), int(found[2])


class LabConsul:
    """A development-mode Consul server: Connect on, state in memory.

    It is reached from the lab's hosts at ``url`` and from this process through a Unix socket. With ``second_of``, a
    server of dc1, it is dc2's and federated with that.
    """

    def __init__(
        self,
        host: Host,
        folder: Path,
        *,
        acl: bool,
        default_policy: str = "deny",
        second_of: LabConsul | None = None,
    ) -> None:
        self.host = host
        self.url = f"http://{host.address}:{HTTP_PORT}"
        self.token = MANAGEMENT_TOKEN if acl else ""
        self.release = (0, 0)
        self._folder = folder
        self._acl = acl
        self._default_policy = default_policy
        self._first = second_of
        self._socket = folder / "consul.sock"
        self.client = Consul(ConsulSettings(address=f"unix://{self._socket}", token=self.token))
        self.process: Process | None = None
        self._accessors: dict[str, str] = {}
        """The tokens that were made here, and by what each is deleted."""
        self._made: list[str] = []
        """Namespaces that were made, deleted ones included."""

    @property
    def transparent(self) -> bool:
        """Whether this Consul knows transparent proxies (1.10) and gives virtual IPs itself (1.11)."""
        return self.release >= (1, 11)

    async def start(self) -> None:
        """Start it and wait until it can be used."""
        self.release = await version()
        config = self._folder / "consul.json"
        config.write_text(json.dumps(self._config()))
        command = [binaries.consul(), "agent", "-dev", "-config-file", str(config)]
        self._socket.unlink(missing_ok=True)
        self.process = await Process.start("consul", self.host.command(*command), self._folder / "consul.log")

        async def usable() -> bool:
            assert self.process is not None
            self.process.alive()
            try:
                return bool((await self.client.read("/v1/connect/ca/roots")).data["Roots"])
            except ConsulError:
                return False

        await eventually("Consul to elect itself and make a CA", usable)

    def _config(self) -> dict[str, Any]:
        address = self.host.address
        config: dict[str, Any] = {
            "bind_addr": address,
            "addresses": {"http": f"{address} unix://{self._socket}"},
            "ports": {"http": HTTP_PORT, "grpc": -1, "dns": -1},
            "datacenter": "dc1" if self._first is None else "dc2",
            "primary_datacenter": "dc1",
            "retry_join_wan": [] if self._first is None else [self._first.host.address],
            "connect": {"enabled": True},
            "limits": {"http_max_conns_per_client": 2000},
            "log_level": "warn",
            "disable_update_check": True,
        }
        if self._acl:
            management = "initial_management" if self.release >= (1, 11) else "master"
            config["acl"] = {
                "enabled": True,
                "default_policy": self._default_policy,
                "tokens": {management: MANAGEMENT_TOKEN, "agent": MANAGEMENT_TOKEN},
            }
        return config

    def serve_arguments(self) -> list[str]:
        """Return the arguments of ``gossamer serve`` for this catalog."""
        return ["--consul", self.url]

    def lookup_arguments(self, node: str) -> list[str]:
        """Return the arguments of ``gossamer sidecar`` for a service that is registered on ``node``."""
        return ["--consul", self.url, "--node-name", node]

    async def stop(self) -> None:
        """Stop it."""
        if self.process is not None:
            await self.process.stop()

    async def close(self) -> None:
        """Stop it for good."""
        await self.stop()
        await self.client.close()

    # -- what an operator does --------------------------------------------------------------------------------------

    async def put(self, path: str, body: Any, method: str = "PUT") -> Any:
        """Write something.

        Raises:
            ConsulError: Consul refuses it.
        """
        send = {"PUT": self.client.http.put, "POST": self.client.http.post, "DELETE": self.client.http.delete}[method]
        headers = {"X-Consul-Token": self.token} if self.token else {}
        data = json.dumps(body) if body is not None else ""
        return await send(lambda answer: answer.body and json.loads(answer.body), path, data=data, headers=headers)

    async def register(
        self, node: str, address: str, service: Mapping[str, Any], checks: list[Any] | None = None
    ) -> None:
        """Put a service instance into the catalog."""
        body = {"Node": node, "Address": address, "Service": service, "Checks": checks or [], "SkipNodeUpdate": False}
        await self.put("/v1/catalog/register", body)

    async def deregister(self, node: str, service_id: str) -> None:
        """Take a service instance out of the catalog."""
        await self.put("/v1/catalog/deregister", {"Node": node, "ServiceID": service_id})

    async def check(self, node: str, address: str, service_id: str, status: str) -> None:
        """Set a check of an instance: ``passing``, ``warning`` or ``critical``."""
        check = {
            "Node": node,
            "CheckID": f"service:{service_id}",
            "Name": "health",
            "ServiceID": service_id,
            "Status": status,
        }
        await self.put(
            "/v1/catalog/register", {"Node": node, "Address": address, "SkipNodeUpdate": True, "Check": check}
        )

    async def intention(self, source: str, destination: str, action: str | None) -> None:
        """Set an intention, or take it away with ``None``."""
        if self.release >= (1, 9):
            await self._exact_intention(source, destination, action)
            return
        found = await self.client.read("/v1/connect/intentions")
        for entry in found.data or ():
            if (entry["SourceName"], entry["DestinationName"]) == (source, destination):
                await self.put(f"/v1/connect/intentions/{entry['ID']}", None, method="DELETE")
        if action is not None:
            body = {"SourceName": source, "DestinationName": destination, "SourceType": "consul", "Action": action}
            await self.put("/v1/connect/intentions", body, method="POST")

    async def _exact_intention(self, source: str, destination: str, action: str | None) -> None:
        path = "/v1/connect/intentions/exact"
        query = [("source", source), ("destination", destination)]
        headers = {"X-Consul-Token": self.token} if self.token else {}
        if action is None:
            await self.client.http.delete(lambda _: None, path, params=query, headers=headers)
        else:
            body = json.dumps({"SourceType": "consul", "Action": action})
            await self.client.http.put(lambda _: None, path, params=query, data=body, headers=headers)

    async def entry(self, entry: Mapping[str, Any]) -> None:
        """Write a config entry, in place of the one of its kind and name where there is one."""
        await self.put("/v1/config", entry)

    async def remove_entry(self, kind: str, name: str) -> None:
        """Take a config entry away."""
        await self.put(f"/v1/config/{kind}/{name}", None, method="DELETE")

    async def rotate_ca(self) -> None:
        """Make a new root; the old one signs it, and every leaf is made anew within half a minute."""
        key = ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
        config = {"PrivateKey": key.decode(), "RootCert": "", "LeafCertTTL": "72h"}
        await self.put("/v1/connect/ca/configuration", {"Provider": "consul", "Config": config})

    async def make_token(self, rules: str) -> str:
        """Make a token with these ACL rules."""
        name = f"policy-{secrets.token_hex(8)}"
        policy = await self.put("/v1/acl/policy", {"Name": name, "Rules": rules})
        token = await self.put("/v1/acl/token", {"Policies": [{"ID": policy["ID"]}]})
        self._accessors[token["SecretID"]] = token["AccessorID"]
        self._made.append(token["SecretID"])
        return str(token["SecretID"])

    def credentials(self) -> dict[str, str]:
        """Return every token that exists or existed, by its purpose."""
        made = {f"token {number} that was made": token for number, token in enumerate(self._made)}
        return made | ({"the management token": self.token} if self.token else {})

    async def delete_token(self, secret: str) -> None:
        """Delete a token that `make_token` made."""
        await self.put(f"/v1/acl/token/{self._accessors.pop(secret)}", None, method="DELETE")

    async def token_for(self, service: str) -> str:
        """Return a token that may act as this service only; an empty one where there are no ACLs."""
        if not self.token:
            return ""
        rules = f"""
            service "{service}" {{ policy = "write" }}
            service "{service}{SIDECAR_SUFFIX}" {{ policy = "write" }}
            node_prefix "" {{ policy = "read" }}
        """
        return await self.make_token(rules)

    async def virtual_ips(self, service: str) -> list[str]:
        """Return the addresses that the instances of a service have in Consul's answers."""
        reply: Reply = await self.client.read(f"/v1/health/connect/{service}")
        found = {
            tagged["Address"]: None
            for entry in reply.data
            for tag, tagged in (entry["Service"].get("TaggedAddresses") or {}).items()
            if tag in ("virtual", "consul-virtual")
        }
        return list(found)

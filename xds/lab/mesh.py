"""Runs a whole mesh on one machine: a catalog, Gossamer, and hosts that each run an application and its sidecar."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp

from xds.lab import binaries, commands
from xds.lab.catalog import Catalog
from xds.lab.commands import ADMIN_PORT, APPLICATION_PORT, ENVOY_ADMIN_PORT, ENVOY_UID, PUBLIC_PORT, XDS_PORT, here
from xds.lab.consul import LabConsul
from xds.lab.mesh_file import MeshFile
from xds.lab.network import Host, Network, temporary_folder
from xds.lab.processes import Process, eventually, run_to_end
from xds.mesh.names import CONNECT_PROXY, SIDECAR_SUFFIX


@dataclass(slots=True)
class Member:
    """A host of the mesh: an application, its sidecar, and the redirection that joins them."""

    service: str
    host: Host
    node: str
    instance: str
    token: str = ""
    speaks: str = "tcp"
    sidecar_arguments: tuple[str, ...] = ()
    sidecar_id: str = ""
    registered: dict[str, Any] = field(default_factory=dict)
    processes: dict[str, Process] = field(default_factory=dict)


class LeakError(Exception):
    """Credential that a run wrote where others can read it; the message says which and where."""


class Lab:
    """A mesh. An asynchronous context manager: leaving it stops every process and removes every namespace.

    Args:
        mesh_file: whether the mesh is in a file, in place of a Consul.
        acl: whether Consul enforces ACLs, with ``default_policy``.
        serve_arguments: further arguments of ``gossamer serve``.
        serve_rules: the ACL rules of its token; the management token where none are given.
        folder: where everyone's logs and files go; a temporary one where none is given.
    """

    def __init__(
        self,
        *,
        mesh_file: bool = False,
        acl: bool = False,
        default_policy: str = "deny",
        serve_arguments: tuple[str, ...] = (),
        serve_rules: str = "",
        folder: Path | None = None,
    ) -> None:
        self._mesh_file = mesh_file
        self._acl = acl
        self._default_policy = default_policy
        self._serve_arguments = serve_arguments
        self._serve_rules = serve_rules
        self._serve_token = ""
        self._exit = AsyncExitStack()
        self.network = Network()
        self.members: list[Member] = []
        self._given_folder = folder
        self.folder = Path()
        self.gossamer: Process | None = None
        self.catalog: Catalog
        self.control: Host

    @property
    def consul(self) -> LabConsul:
        """The Consul of a lab that has one."""
        assert isinstance(self.catalog, LabConsul)
        return self.catalog

    async def __aenter__(self) -> Lab:
        binaries.check_tools()
        try:
            await self._start()
        except BaseException:
            await self._exit.aclose()
            raise
        return self

    async def _start(self) -> None:
        if self._given_folder is not None:
            self.folder = self._given_folder
        else:
            self.folder = temporary_folder()
            self._exit.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self._exit.enter_context(self.network)
        self.control = self.network.host("control")
        if self._mesh_file:
            self.catalog = MeshFile(self.folder, self._default_policy)
        else:
            self.catalog = LabConsul(self.control, self.folder, acl=self._acl, default_policy=self._default_policy)
        self._exit.push_async_callback(self.catalog.close)
        await self.catalog.start()
        if not self._mesh_file:
            rules = self._serve_rules
            self._serve_token = await self.consul.make_token(rules) if rules else self.consul.token
        self._exit.push_async_callback(self.stop_gossamer)
        await self.start_gossamer()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # No file that a run wrote may contain a credential.
            leaks = await self._leaks() if error is None else []
        finally:
            await self._exit.aclose()
        if leaks:
            raise LeakError(f"credentials were written: {'; '.join(leaks)}")

    async def _leaks(self) -> list[str]:
        """Return where a token or a private key stands in a log of Gossamer or Envoy, or in an admin answer."""
        written: dict[str, str] = {}
        for log in self.folder.glob("*.log"):
            if log.name != "consul.log":
                written[log.name] = await asyncio.to_thread(log.read_text, errors="replace")
        if self.gossamer is not None and self.gossamer.running:
            for path in ("/ready", "/metrics", "/v1/sidecars"):
                _, found = await get(self.control, ADMIN_PORT, path)
                written[path] = str(found)
        secrets = {"a private key": "PRIVATE KEY-----", **self.catalog.credentials()}
        return [f"{what} in {where}" for where, text in written.items() for what, one in secrets.items() if one in text]

    # -- the control plane ------------------------------------------------------------------------------------------

    async def start_gossamer(self) -> None:
        """Start ``gossamer serve`` and wait until it is ready."""
        command = here([*commands.serve(self.catalog.serve_arguments(), self.control.address), *self._serve_arguments])
        environment = {"CONSUL_HTTP_TOKEN": self._serve_token, "CONSUL_HTTP_ADDR": ""}
        log = self.folder / "gossamer.log"
        self.gossamer = await Process.start("gossamer", self.control.command(*command), log, environment)

        async def ready() -> bool:
            assert self.gossamer is not None
            self.gossamer.alive()
            status, _ = await get(self.control, ADMIN_PORT, "/ready")
            return status == 200

        await eventually("gossamer to be ready", ready)

    async def stop_gossamer(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Stop it."""
        if self.gossamer is not None:
            await self.gossamer.stop(how)

    async def sidecars(self) -> dict[str, Any]:
        """Return the content of ``/v1/sidecars``, by sidecar ID."""
        _, found = await get(self.control, ADMIN_PORT, "/v1/sidecars")
        return {sidecar["id"]: sidecar for sidecar in found}

    async def stat(self, member: Member, name: str) -> int:
        """Return a counter or gauge of a member's Envoy; 0 where it has none of that name."""
        _, text = await get(member.host, ENVOY_ADMIN_PORT, f"/stats?filter=^{name}$")
        return int(str(text).rpartition(":")[2] or 0)

    # -- members ----------------------------------------------------------------------------------------------------

    def host(self, name: str) -> Host:
        """Add a host outside the mesh."""
        return self.network.host(name)

    async def run(self, name: str, host: Host, *command: str, uid: int | None = None, **environment: str) -> Process:
        """Run a program on a host until the lab ends."""
        log = self.folder / f"{name}.log"
        process = await Process.start(name, host.command(*command, uid=uid), log, environment)
        self._exit.push_async_callback(process.stop)
        return process

    async def application(
        self,
        name: str,
        host: Host,
        port: int = APPLICATION_PORT,
        address: str = "127.0.0.1",
        *,
        speaks: str = "tcp",
        calls: Sequence[str] = (),
    ) -> Process:
        """Run the lab's application, and wait until it listens."""
        command = here(commands.application(name, port, speaks=speaks, calls=calls, address=address))
        process = await self.run(f"{name}-app-{port}", host, *command)

        async def listening() -> bool:
            process.alive()
            made = host.socket()
            try:
                await asyncio.get_running_loop().sock_connect(made, (address, port))
            finally:
                made.close()
            return True

        await eventually(f"{name} to listen", listening)
        return process

    async def member(
        self,
        service: str,
        *,
        virtual_ip: str | None = None,
        instance: str = "1",
        token: str = "",
        redirect: tuple[str, ...] = (),
        start: bool = True,
        register: bool = True,
        config: dict[str, Any] | None = None,
        proxy: dict[str, Any] | None = None,
        meta: dict[str, str] | None = None,
        speaks: str = "tcp",
        tagged: dict[str, tuple[str, int]] | None = None,
        sidecar: tuple[str, ...] = (),
        on: Host | None = None,
    ) -> Member:
        """Add a host with an application and its sidecar, and run them where ``start`` says so.

        Args:
            service: the name in the catalog; the application says ``service-instance``.
            virtual_ip: tagged ``virtual``, as Kubernetes does; a newer Consul gives one by itself as well.
            instance: tells instances of one service apart.
            token: what its sidecar presents; the management token where Consul has ACLs and none is given.
            redirect: further arguments of ``gossamer redirect-traffic``.
            start: run application, sidecar and redirection.
            register: put it into the catalog.
            config: further keys of ``Proxy.Config``.
            proxy: further keys of ``Proxy``.
            meta: of the sidecar's registration.
            speaks: what its application does: tcp, http or grpc.
            tagged: further tagged addresses, with their ports.
            sidecar: further arguments of ``gossamer sidecar``.
            on: a host that there is already, in place of a new one.
        """
        host = on or self.network.host(f"{service}-{instance}")
        if not token:
            token = await self.catalog.token_for(service) if self._mesh_file else self.consul.token
        member = Member(service, host, f"node-{service}-{instance}", instance, token, speaks, sidecar)
        member.sidecar_id = f"{service}-{instance}{SIDECAR_SUFFIX}"
        tagged_addresses: dict[str, Any] = {}
        if virtual_ip:
            tagged_addresses["virtual"] = {"Address": virtual_ip, "Port": APPLICATION_PORT}
        tagged_addresses |= {tag: {"Address": ip, "Port": port} for tag, (ip, port) in (tagged or {}).items()}
        mode: dict[str, Any] = {"Mode": "transparent"} if self.catalog.transparent else {}
        stand_in = {} if self.catalog.transparent else {"mode": "transparent"}
        member.registered = {
            "Kind": CONNECT_PROXY,
            "ID": member.sidecar_id,
            "Service": f"{service}{SIDECAR_SUFFIX}",
            "Address": host.address,
            "Port": PUBLIC_PORT if on is None else PUBLIC_PORT + 1,
            "TaggedAddresses": tagged_addresses,
            "Meta": meta or {},
            "Proxy": {
                "DestinationServiceName": service,
                "DestinationServiceID": f"{service}-{instance}",
                "LocalServiceAddress": "127.0.0.1",
                "LocalServicePort": APPLICATION_PORT,
                "Config": {**stand_in, **(config or {})},
                **mode,
                **(proxy or {}),
            },
        }
        self.members.append(member)
        if register:
            await self.register(member)
        if start:
            await self.start(member, redirect)
        return member

    async def register(self, member: Member) -> None:
        """Put a member's application and sidecar into the catalog."""
        application = {
            "ID": f"{member.service}-{member.instance}",
            "Service": member.service,
            "Address": member.host.address,
            "Port": APPLICATION_PORT,
        }
        await self.catalog.register(member.node, member.host.address, application)
        await self.catalog.register(member.node, member.host.address, member.registered)

    async def deregister(self, member: Member) -> None:
        """Take a member out of the catalog."""
        await self.catalog.deregister(member.node, member.sidecar_id)
        await self.catalog.deregister(member.node, f"{member.service}-{member.instance}")

    async def start(self, member: Member, redirect: tuple[str, ...] = ()) -> None:
        """Run a member's application, redirection and sidecar, each with the command an operator would type."""
        await self.application(f"{member.service}-{member.instance}", member.host, speaks=member.speaks)
        await self.redirect(member, *redirect)
        await self.start_sidecar(member)

    def redirect_command(self, member: Member, *more: str) -> list[str]:
        """Return the command that redirects a member's traffic."""
        return here([*commands.redirect(netns=member.host.path, exclude_inbound=[ENVOY_ADMIN_PORT]), *more])

    async def redirect(self, member: Member, *more: str) -> None:
        """Redirect a member's traffic."""
        await run_to_end(*self.redirect_command(member, *more))

    async def start_sidecar(self, member: Member, admin_port: int = ENVOY_ADMIN_PORT, xds_port: int = XDS_PORT) -> None:
        """Run a member's sidecar. It asks the catalog who it is, then Gossamer for everything else."""
        command = here(
            commands.sidecar(
                member.sidecar_id,
                self.catalog.lookup_arguments(member.node),
                xds=self.control.address,
                port=xds_port,
                admin=f"{member.host.address}:{admin_port}",
                envoy=binaries.envoy(),
                more=member.sidecar_arguments,
            )
        )
        environment = {"CONSUL_HTTP_TOKEN": member.token, "CONSUL_HTTP_ADDR": ""}
        log = self.folder / f"{member.sidecar_id}.log"
        process = await Process.start(member.sidecar_id, member.host.command(*command, uid=ENVOY_UID), log, environment)
        member.processes["sidecar"] = process
        self._exit.push_async_callback(process.stop)

    async def served(self, *members: Member) -> None:
        """Wait until each of these sidecars has its listeners and has acknowledged everything."""
        for member in members:

            async def settled(member: Member = member) -> bool:
                member.processes["sidecar"].alive()
                sidecar = (await self.sidecars()).get(member.sidecar_id)
                if sidecar is None or not sidecar["served"]:
                    return False
                listeners = sidecar["resources"]["listeners"]
                return bool(listeners["acknowledged"]) and listeners["acknowledged"] == listeners["sent"]

            await eventually(f"{member.sidecar_id} to be served", settled)

    async def virtual_ip(self, member: Member) -> str:
        """Return the first virtual IP of a member's service."""
        return (await self.catalog.virtual_ips(member.service))[0]


async def get(host: Host, port: int, path: str, address: str = "") -> tuple[int, Any]:
    """Send a GET request to a server on one of the hosts, at its own address by default.

    Returns:
        The status, and JSON decoded or anything else as text.
    """
    connector = aiohttp.TCPConnector(socket_factory=lambda info: host.socket(info[0], info[1]), force_close=True)
    async with (
        aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=10)) as session,
        session.get(f"http://{address or host.address}:{port}{path}") as answer,
    ):
        if answer.content_type == "application/json":
            return answer.status, await answer.json()
        return answer.status, await answer.text()

"""Runs the steps of ``gossamer demo``: a small shop in a mesh, and its reaction to failures."""

from __future__ import annotations

import asyncio
import signal
import ssl
import time
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any

from cryptography import x509

from xds.lab.application import Held, RefusedError, ask, who_answers
from xds.lab.commands import ADMIN_PORT, APPLICATION_PORT, PUBLIC_PORT
from xds.lab.mesh import Lab, Member
from xds.lab.mesh_file import MeshFile
from xds.lab.narrator import Narrator
from xds.lab.network import Host
from xds.lab.processes import eventually
from xds.lab.shop import PORT, Shop, open_shop


class Traffic:
    """New connections from ``host`` to ``url``, one after the other, as long as its ``async with`` block runs."""

    def __init__(self, host: Host, url: str) -> None:
        self._host = host
        self._url = url
        self._task: asyncio.Task[None] | None = None
        self.answered: Counter[str] = Counter()
        self.failed = 0

    async def __aenter__(self) -> Traffic:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                self.answered[(await ask(self._host, self._url))["service"]] += 1
            except (RefusedError, TimeoutError):
                self.failed += 1

    async def more(self, count: int) -> None:
        """Wait for ``count`` more dials, answered or not."""
        wanted = self.answered.total() + self.failed + count

        async def seen() -> bool:
            return self.answered.total() + self.failed >= wanted

        await eventually(f"{count} more dials", seen)


class Tour:
    """Demo: runs its steps and prints them.

    Args:
        consul: take the tour on a real Consul, in place of a mesh file.
        hold: leave the mesh up at the end until interrupted, and say what to try.
        folder: where logs and the mesh file go.
    """

    def __init__(self, *, consul: bool, hold: bool, folder: Path) -> None:
        self._consul = consul
        self._hold = hold
        self._folder = folder
        self._narrator = Narrator()
        self.held = False
        """Whether the tour is over, went as expected, and the mesh is kept running."""
        self._lab: Lab
        self._shop: Shop

    async def run(self) -> bool:
        """Run the whole tour.

        Raises:
            MissingError: this machine lacks something that it needs.
            NetworkError: the kernel refuses the network that it needs.
        """
        where = "a Consul with ACLs on" if self._consul else "a mesh file and no Consul"
        self._narrator.say(f"Starting gossamer serve on {where}; whatever no intention allows is denied ...")
        async with Lab(mesh_file=not self._consul, acl=self._consul, folder=self._folder) as lab:
            self._lab = lab
            self._narrator.say("Starting a shop: five hosts, each with an application, an Envoy and redirection ...")
            async with self._narrator.patience("starting"):
                self._shop = await open_shop(lab)
            self._introduce()
            web = self._shop.members["web-1"]
            await self._dial_by_virtual_ip(web)
            await self._denied(web)
            await self._past_the_mesh(web)
            await self._who_carried_it(web)
            async with Held(web.host, self._shop.url("api")) as held:
                await self._hold_connection(held)
                await self._change_intention(web, held, None)
                await self._change_intention(web, held, "allow")
                await self._rotate(web, held)
                await self._lose_instance(web, held)
                await self._lose_control_plane(web, held)
            ok = self._narrator.summary()
            if self._hold:
                self.held = ok
                await self._leave_up()
        return ok

    def _introduce(self) -> None:
        for name, member in self._shop.members.items():
            address = self._shop.addresses[member.service]
            self._narrator.say(f"  {name:<11} on host {member.host.address}, virtual IP {address}")
        self._narrator.say("  web calls api, api calls payments and db; db speaks plain TCP, the others HTTP")

    # -- steps ------------------------------------------------------------------------------------------------------

    async def _dial_by_virtual_ip(self, web: Member) -> None:
        url = self._shop.url("api")
        self._narrator.begin("web dials api by its virtual IP", f"web$ curl {url}", "api, payments and db answer")
        answer = await ask(web.host, url)
        called = {name: _name(each) for name, each in answer.get("calls", {}).items()}
        seen = f"{answer['service']}, which called {', '.join(called.values())}"
        self._narrator.end(seen, ok=set(called.values()) == {"payments-1", "db-1"})

    async def _denied(self, web: Member) -> None:
        address = self._shop.addresses["db"]
        self._narrator.begin(
            "web dials db, which no intention allows", f"web$ nc {address} {PORT}", "refused, and db never hears of it"
        )
        seen = await who_answers(web.host, address, PORT)
        self._narrator.end(seen or "refused", ok=seen is None)

    async def _past_the_mesh(self, web: Member) -> None:
        host = self._shop.members["db-1"].host
        self._narrator.begin(
            "web dials db's host itself, past the mesh",
            f"web$ nc {host.address} {APPLICATION_PORT}",
            "refused: db's sidecar wants a certificate",
        )
        seen = await who_answers(web.host, host.address, APPLICATION_PORT, say="hello")
        self._narrator.end(seen or "refused", ok=seen is None)

    async def _who_carried_it(self, web: Member) -> None:
        self._narrator.begin(
            "who carried it",
            f"curl http://{self._lab.control.address}:{ADMIN_PORT}/v1/sidecars",
            "mutual TLS, one upstream for web, without configuration",
        )
        apis = [self._shop.members[name] for name in ("api-1", "api-2")]
        handshakes = sum([await self._lab.stat(api, r"listener\..*\.ssl\.handshake") for api in apis])
        clusters = (await self._lab.sidecars())[web.sidecar_id]["resources"]["clusters"]["sent"]
        given = [name for name in clusters if name.startswith("vip:")]
        identity = (await certificate(self._lab.control, apis[0].host.address))[0].rpartition(".consul/")[2]
        self._narrator.end(
            f"{handshakes} TLS handshakes at api's sidecars, .../{identity}; web was given {', '.join(given)}",
            ok=handshakes > 0 and given == [f"vip:{self._shop.addresses['api']}"] and identity.endswith("/svc/api"),
        )

    async def _hold_connection(self, held: Held) -> None:
        self._narrator.begin(
            "web holds a connection to api open from now on",
            f"web$ curl --keepalive {self._shop.url('api')}",
            "every answer of api counts the requests on it",
        )
        answer = await held.ask()
        ok = await held.still_open()
        self._narrator.end(f"{answer['service']} answered {held.requests} requests on it", ok=ok)

    async def _change_intention(self, web: Member, held: Held, action: str | None) -> None:
        if action is None:
            what, expected = (
                "the intention goes, under the open connection",
                "new dials are refused, the open one lives",
            )
        else:
            what, expected = "the intention is back", "new dials are answered, no process was restarted"
        self._narrator.begin(what, self._edit("web", "api", action), expected)
        took = await self._until_followed(web, action)
        verb = "refused" if action is None else "answered"
        lives, ok = await self._lives(held)
        self._narrator.end(f"{verb} after {took * 1000:.0f} ms; {lives}", ok=ok)

    async def _rotate(self, web: Member, held: Held) -> None:
        how = "a new root by Consul's API" if self._consul else "gossamer ca rotate --mesh mesh.yaml"
        self._narrator.begin(
            "every certificate is replaced, root and all, under traffic",
            how,
            "new handshakes show the new authority, no dial fails, the open connection lives",
        )
        members = list(self._shop.members.values())
        before = {member.sidecar_id: await self._issuer(member) for member in members}
        async with (
            Traffic(web.host, self._shop.url("api")) as traffic,
            self._narrator.patience("certificates on their way"),
        ):
            await traffic.more(5)
            await self._lab.catalog.rotate_ca()
            for member in members:
                await eventually(
                    f"{member.sidecar_id} to show a new certificate",
                    lambda member=member: self._issuer(member),  # type: ignore[misc]
                    until=lambda issuer, member=member: issuer != before[member.sidecar_id],  # type: ignore[misc]
                    within_s=120,
                )
            await traffic.more(20)
        lives, ok = await self._lives(held)
        issuers = {await self._issuer(member) for member in members}
        self._narrator.end(
            f"{traffic.answered.total()} dials answered, {traffic.failed} failed; all signed by {', '.join(issuers)};"
            f" {lives}",
            ok=traffic.failed == 0 and len(issuers) == 1 and ok,
        )

    async def _lose_instance(self, web: Member, held: Held) -> None:
        kept = (await held.ask())["service"]
        lost = "api-2" if kept == "api-1" else "api-1"
        member = self._shop.members[lost]
        self._narrator.begin(
            f"{lost} is lost",
            f"kill -9 its application and its Envoy; its check turns critical in {self._named()}",
            f"{kept} answers everything from then on",
        )
        async with self._traffic(web) as traffic, self._narrator.patience("dialing"):
            for process in member.processes.values():
                await process.stop(signal.SIGKILL)
            node, host = member.node, member.host.address
            await self._lab.catalog.check(node, host, member.sidecar_id, "critical")

            async def settled() -> bool:
                failed, answers = traffic.failed, traffic.answered[kept]
                await traffic.more(20)
                return traffic.failed == failed and traffic.answered[kept] >= answers + 20

            await eventually(f"{kept} to answer everything", settled)
        lives, ok = await self._lives(held)
        self._narrator.end(f"{kept} answers everything, {traffic.failed} dials failed until then; {lives}", ok=ok)

    async def _lose_control_plane(self, web: Member, held: Held) -> None:
        self._narrator.begin(
            "the control plane is killed and comes back, under traffic",
            "kill -9 gossamer; gossamer serve ...",
            "no dial fails; afterwards changes are followed again",
        )
        assert self._lab.gossamer is not None
        async with self._traffic(web) as traffic, self._narrator.patience("coming back"):
            await self._lab.stop_gossamer(signal.SIGKILL)
            await traffic.more(20)
            await self._lab.start_gossamer()
            left = [member for member in self._shop.members.values() if member.processes["sidecar"].running]
            await self._lab.served(*left)
            await traffic.more(20)
        denied = await self._until_followed(web, None)
        allowed = await self._until_followed(web, "allow")
        lives, ok = await self._lives(held)
        self._narrator.end(
            f"{traffic.answered.total()} dials answered, {traffic.failed} failed; then an intention went and came back,"
            f" followed after {denied * 1000:.0f} and {allowed * 1000:.0f} ms; {lives}",
            ok=traffic.failed == 0 and ok,
        )

    # -- what the steps share ---------------------------------------------------------------------------------------

    async def _until_followed(self, web: Member, action: str | None) -> float:
        """Set the intention from web to api; the seconds until a dial shows it."""
        began = time.monotonic()
        await self._lab.catalog.intention("web", "api", action)

        async def answered() -> bool:
            try:
                return bool(await ask(web.host, self._shop.url("api")))
            except RefusedError:
                return False

        await eventually("the intention to take effect", answered, until=lambda seen: seen == (action is not None))
        return time.monotonic() - began

    def _traffic(self, web: Member) -> Traffic:
        return Traffic(web.host, self._shop.url("api"))

    async def _lives(self, held: Held) -> tuple[str, bool]:
        ok = await held.still_open()
        return f"the open connection answered request {held.requests}" if ok else "the open connection is gone", ok

    async def _issuer(self, member: Member) -> str:
        return (await certificate(self._lab.control, member.host.address))[1]

    def _edit(self, source: str, destination: str, action: str | None) -> str:
        if self._consul:
            verb = "delete" if action is None else f"create -{action}"
            return f"consul intention {verb} {source} {destination}"
        mark = "-" if action is None else "+"
        return f"vi mesh.yaml   {mark} Sources: [{{Name: {source}, Action: allow}}]   (of {destination})"

    def _named(self) -> str:
        return "Consul" if self._consul else "mesh.yaml"

    async def _leave_up(self) -> None:
        """Print what can be tried, and wait to be interrupted."""
        lab, say = self._lab, self._narrator.say
        enter = (
            "nsenter --user --preserve-credentials --net --target" if _in_user_namespace() else "nsenter --net --target"
        )
        say("\nThe mesh stays up until Ctrl-C. In another terminal, as the user who started this:")
        for name, outcome in (("web-1", "allowed"), ("payments-1", "denied: the connection is reset")):
            pid = self._shop.members[name].processes["sidecar"].pid
            say(f"  {name}'s host ({outcome}):  {enter} {pid} curl -sS {self._shop.url('api')}")
        say("  one api is still lost: its instance is critical")
        assert lab.gossamer is not None
        admin = f"http://{lab.control.address}:{ADMIN_PORT}/v1/sidecars"
        say(f"  who was sent what:  {enter} {lab.gossamer.pid} curl -s {admin}")
        if isinstance(lab.catalog, MeshFile):
            say(f"  the mesh, to edit:  /proc/{lab.gossamer.pid}/root{lab.catalog.settings.mesh}")
        say(f"  everybody's logs:   /proc/{lab.gossamer.pid}/root{lab.folder}/")
        await asyncio.Event().wait()


async def certificate(host: Host, address: str) -> tuple[str, str]:
    """Return what the sidecar at ``address`` presents to a client: its SPIFFE ID, and the name of the root that signed
    it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # inspected, not verified
    made = host.socket()
    try:
        async with asyncio.timeout(10):
            await asyncio.get_running_loop().sock_connect(made, (address, PUBLIC_PORT))
            _, writer = await asyncio.open_connection(sock=made, ssl=context, server_hostname="sidecar")
    except BaseException:
        made.close()
        raise
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    found = x509.load_der_x509_certificate(shown)
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    uri = names.get_values_for_type(x509.UniformResourceIdentifier)[0]
    return uri, found.issuer.rfc4514_string()


def _name(answer: Any) -> str:
    return str(answer["service"]) if isinstance(answer, dict) else str(answer)


def _in_user_namespace() -> bool:
    return Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]

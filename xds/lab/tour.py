"""What ``gossamer demo`` shows: the main job, step by step, each with what is done, expected and seen."""

from __future__ import annotations

import time
from dataclasses import dataclass

import click

from xds.lab.application import dial, who_answers
from xds.lab.consul import LabConsul
from xds.lab.mesh import APPLICATION_PORT, Lab, Member
from xds.lab.processes import eventually

API_IP = "240.0.0.11"
WEB_IP = "240.0.0.10"
PORT = 80


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was tried."""

    what: str
    expected: str
    seen: str
    ok: bool


class Tour:
    """Runs the demo and prints it."""

    def __init__(self, *, keep_logs: bool) -> None:
        self._keep_logs = keep_logs
        self._steps: list[Step] = []
        self._address = ""
        """The virtual IP of api."""

    async def run(self) -> bool:
        """The whole tour; whether everything was as expected.

        Raises:
            MissingError: this machine lacks something that it needs.
            NetworkError: the kernel refuses the network that it needs.
        """
        click.echo("Starting a Consul with ACLs on and default deny, and a gossamer serve beside it ...")
        async with Lab(acl=True, keep_logs=self._keep_logs) as lab:
            release = ".".join(map(str, lab.consul.release))
            click.echo(f"  Consul {release} at {lab.consul.url}, logs in {lab.folder}")
            click.echo("Starting two hosts, each with an application, an Envoy and the kernel's redirection ...")
            # A Consul before 1.11 gives no virtual IPs: there the registration carries them.
            tagged = (None, None) if lab.consul.transparent else (WEB_IP, API_IP)
            web = await lab.member("web", virtual_ip=tagged[0], token=await _token(lab.consul, "web"))
            api = await lab.member("api", virtual_ip=tagged[1], token=await _token(lab.consul, "api"))
            self._address = await lab.virtual_ip(api)
            await lab.served(web, api)
            for member in (web, api):
                click.echo(f"  {member.service} on {member.host.address}, its sidecar {member.sidecar_id}")
            await self._show(lab, web, api)
        self._summary()
        return all(step.ok for step in self._steps)

    async def _show(self, lab: Lab, web: Member, api: Member) -> None:
        self._begin("no intention: web dials the virtual IP of api", f"web$ nc {self._address} {PORT}")
        seen = await who_answers(web.host, self._address, PORT)
        self._end("refused", seen or "refused", ok=seen is None)

        self._begin("an intention allows web to call api", "consul intention create -allow web api")
        took = await self._until(lab, web, "allow")
        self._end("api-1 answers within a second", f"api-1 answered after {took * 1000:.0f} ms", ok=took < 1)

        self._begin("who carried it", f"GET {lab.control.address}:18001/v1/sidecars")
        handshakes = await lab.stat(api, r"listener\..*\.ssl\.handshake")
        allowed = await lab.stat(api, r".*connect_authz.*\.allowed")
        upstreams = (await lab.sidecars())[web.sidecar_id]["resources"]["clusters"]["sent"]
        names = ", ".join(name for name in upstreams if name.startswith("vip:"))
        self._end(
            "mutual TLS, let in by the intention, no upstream configured",
            f"{handshakes} TLS handshakes at api's sidecar, {allowed} let in; web was given {names}",
            ok=handshakes > 0 and allowed > 0 and names == f"vip:{self._address}",
        )

        self._begin("past the mesh: web's host has no other way in", f"web$ nc {api.host.address} {APPLICATION_PORT}")
        seen = await who_answers(web.host, api.host.address, APPLICATION_PORT, say="hello")
        self._end("refused: api's sidecar wants a certificate", seen or "refused", ok=seen is None)

        self._begin("a connection is held open while the intention goes", "consul intention delete web api")
        async with await dial(web.host, self._address, PORT) as held:
            took = await self._until(lab, web, None)
            echoed = await held.echo("still here")
        self._end(
            "new dials refused within a second, the held one lives",
            f"refused after {took * 1000:.0f} ms; the held one echoed {echoed!r}",
            ok=took < 1 and echoed == "still here",
        )

        self._begin("the intention is back", "consul intention create -allow web api")
        took = await self._until(lab, web, "allow")
        self._end("api-1 answers again", f"after {took * 1000:.0f} ms, no process restarted", ok=took < 1)

    async def _until(self, lab: Lab, web: Member, action: str | None) -> float:
        """Set the intention; the seconds until a dial shows it."""
        wanted = None if action is None else "api-1"
        began = time.monotonic()
        await lab.consul.intention("web", "api", action)

        async def seen() -> bool:
            return await who_answers(web.host, self._address, PORT) == wanted

        await eventually("the intention to take effect", seen)
        return time.monotonic() - began

    def _begin(self, what: str, how: str) -> None:
        self._what = what
        click.echo(f"\n{len(self._steps) + 1}. {what}\n   {click.style(how, dim=True)}")

    def _end(self, expected: str, seen: str, *, ok: bool) -> None:
        self._steps.append(Step(self._what, expected, seen, ok))
        verdict = click.style("as expected", fg="green") if ok else click.style("NOT AS EXPECTED", fg="red", bold=True)
        click.echo(f"   expected: {expected}\n   seen:     {seen}  [{verdict}]")

    def _summary(self) -> None:
        width = max(len(step.what) for step in self._steps)
        click.echo("\n" + "-" * (width + 8))
        for step in self._steps:
            click.echo(f"{step.what:<{width}}  {'ok' if step.ok else 'FAILED'}")


async def _token(consul: LabConsul, service: str) -> str:
    """A token that may be this service and nothing else."""
    rules = f"""
        service "{service}" {{ policy = "write" }}
        service "{service}-sidecar-proxy" {{ policy = "write" }}
        node_prefix "" {{ policy = "read" }}
    """
    return await consul.make_token(rules)

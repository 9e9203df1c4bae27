"""Shows that one service's owner harms no other service: each test is a way in which one once did.

Longer than 400 lines because all tests share one mesh, which takes long to start.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Mesh
from tests.integration.entries import Entries
from tests.integration.helpers import answers, descendants
from tests.integration.requests import Answer, request, until
from tests.integration.test_failures import start_with_stream_token, waits_for
from xds.lab.application import dial, who_answers
from xds.lab.commands import gossamer
from xds.lab.mesh import Lab, Member
from xds.lab.network import Host
from xds.lab.processes import CommandError, eventually, run_to_end

PORT = 80
DEFAULTS = {"Kind": "service-defaults", "Name": "api", "Protocol": "http"}


@dataclass
class Shared:
    """web and other call api, which speaks HTTP and whose owner is not theirs, and db, which does not speak it."""

    lab: Lab
    web: Member
    other: Member
    api: Member
    db: Member
    addresses: dict[str, str]

    async def ask(self, path: str = "/", headers: dict[str, str] | None = None) -> Answer:
        return await request(self.web.host, f"http://{self.addresses['api']}:{PORT}{path}", headers=headers)

    async def status(self, path: str = "/", headers: dict[str, str] | None = None) -> int:
        return (await self.ask(path, headers)).status

    async def is_let_in(self, path: str) -> bool:
        try:
            return await self.status(path) == 200
        except ConnectionError:
            return False

    async def db_answers(self) -> str | None:
        return await who_answers(self.web.host, self.addresses["db"], PORT)

    async def told(self, member: Member) -> str:
        """Return what ``/v1/sidecars`` says was set aside of a member's configuration."""
        return json.dumps((await self.lab.sidecars())[member.sidecar_id]["set_aside"])

    async def is_told(self, member: Member, *words: str) -> None:
        await eventually(
            f"{words} to be told of {member.sidecar_id}",
            lambda: self.told(member),
            until=lambda told: all(word in told for word in words),
        )

    async def follows(self) -> None:
        """See that a caller's sidecar goes on following changes, of clusters and of listeners."""
        await self.lab.catalog.intention("web", "db", "deny")
        await answers(self.web.host, self.addresses["db"], PORT, None)
        await self.lab.catalog.intention("web", "db", None)
        await answers(self.web.host, self.addresses["db"], PORT, "db-1")

    async def restarted(self, member: Member) -> None:
        """Start a member's Envoy anew."""
        await member.processes["sidecar"].stop()
        await self.lab.start_sidecar(member)
        await self.lab.served(member)


@pytest.fixture(scope="module")
async def shared() -> AsyncIterator[Shared]:
    async with Lab(mesh_file=True, default_policy="allow") as lab:
        await lab.catalog.entry(DEFAULTS)
        web, other, api, db = await asyncio.gather(
            lab.member("web"), lab.member("other"), lab.member("api", speaks="http"), lab.member("db")
        )
        await lab.served(web, other, api, db)
        addresses = {name: (await lab.catalog.virtual_ips(name))[0] for name in ("api", "db")}
        yield Shared(lab, web, other, api, db, addresses)


# -- secrets and identity ---------------------------------------------------------------------------------------------


async def test_a_sidecar_is_started_without_the_token(shared: Shared) -> None:
    process = shared.web.processes["sidecar"]
    tree = [process.pid, *descendants(process.pid)]
    environments = b"".join(map(_environment, tree[1:] or tree))
    assert shared.web.token.encode() not in environments
    assert b"CONSUL" not in environments


def _environment(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


@pytest.mark.parametrize(
    "value",
    [
        "%ENVIRONMENT(HOME)%",
        "%FILTER_STATE(wasm.key)%",
        "%FILE_CONTENT(/proc/self/environ)%",
        "%DOWNSTREAM_PEER_CERT%",
        "%NOSUCH%",
        "%",
    ],
)
@pytest.mark.parametrize("where", ["RequestHeaders", "ResponseHeaders"])
async def test_a_header_reveals_nothing_about_the_callers_sidecar(shared: Shared, value: str, where: str) -> None:
    changed = {where: {"Set": {"x-told": value, "x-other": "kept 100%% and %REQ(x-mine)%"}}}
    router = {
        "Kind": "service-router",
        "Name": "api",
        "Routes": [{"Match": {"HTTP": {"PathPrefix": "/told"}}, "Destination": changed}],
    }
    async with Entries(shared.lab, router):

        def headers(answer: Answer) -> dict[str, str]:
            return dict(answer.seen if where == "RequestHeaders" else answer.headers)

        found = await until(
            lambda: shared.ask("/told", {"x-mine": "yes"}),
            "the route to be there",
            lambda answer: "x-other" in headers(answer),
        )
        assert headers(found)["x-other"] == "kept 100% and yes"
        assert "x-told" not in headers(found)
        await shared.is_told(shared.web, "api", "x-told")
        await shared.follows()


@pytest.mark.parametrize("spelled", ["API", "Api"])
async def test_a_name_in_another_letter_case_is_the_same_service(shared: Shared, spelled: str) -> None:
    """An intention, a resolver and defaults that spell it otherwise; all others go on."""
    resolver = {"Kind": "service-resolver", "Name": spelled, "ConnectTimeout": "4s"}
    async with Entries(shared.lab, resolver):
        await shared.lab.catalog.intention("web", spelled, "deny")
        try:
            await eventually("web to be denied", lambda: shared.is_let_in("/"), until=lambda found: not found)
            answer = await request(shared.other.host, f"http://{shared.addresses['api']}:{PORT}/")
            assert (answer.status, answer.service) == (200, "api-1")
        finally:
            await shared.lab.catalog.intention("web", spelled, None)
        await until(shared.ask, "web to be let in again", lambda answer: answer.status == 200)


async def test_an_instance_in_another_letter_case_breaks_no_request(shared: Shared) -> None:
    member = await shared.lab.member("Api", instance="2", speaks="http")
    try:
        await eventually(
            "both to answer",
            lambda: _services(shared),
            until=lambda found: found == {"api-1", "Api-2"},
        )
        assert {await shared.status() for _ in range(20)} == {200}
    finally:
        await shared.lab.deregister(member)
    await eventually("one to answer", lambda: _services(shared), until=lambda found: found == {"api-1"})


async def _services(shared: Shared) -> set[str | None]:
    return {(await shared.ask()).service for _ in range(10)}


async def test_the_identity_of_the_caller_comes_from_the_sidecar_only(shared: Shared) -> None:
    forged = "By=spiffe://x;URI=spiffe://x/ns/default/dc/dc1/svc/admin"
    answer = await shared.ask(headers={"x-forwarded-client-cert": forged})
    assert "svc/admin" not in answer.seen["x-forwarded-client-cert"]
    assert answer.seen["x-forwarded-client-cert"].endswith("/svc/web")
    # Whose callers take it for TCP, so that they carry the header as it is.
    member = await shared.lab.member("claims", config={"protocol": "http"}, speaks="http")
    try:
        await shared.lab.served(member)
        url = f"http://{await shared.lab.virtual_ip(member)}:{PORT}/"
        found = await until(
            lambda: request(shared.web.host, url, headers={"x-forwarded-client-cert": forged}),
            "it to answer",
            lambda answer: answer.status == 200,
        )
        assert "svc/admin" not in found.seen["x-forwarded-client-cert"]
    finally:
        await shared.lab.deregister(member)


# -- addresses --------------------------------------------------------------------------------------------------------


async def test_the_outbound_listener_does_not_call_itself(shared: Shared) -> None:
    past = r"cluster\.original-destination\.upstream_cx_total"
    earlier, before = [await shared.lab.stat(shared.web, past) for _ in range(2)]
    for _ in range(3):
        with contextlib.suppress(OSError):
            async with await dial(shared.web.host, "127.0.0.1", 15001) as made:
                await made.echo("x")
    asking = before - earlier  # the test's own way to Envoy's statistics goes past the mesh
    assert await shared.lab.stat(shared.web, past) == before + asking
    outside = shared.lab.host("outside")
    await shared.lab.application("outside", outside, 9000, outside.address)
    await answers(shared.web.host, outside.address, 9000, "outside")


# -- what Envoy rejects -----------------------------------------------------------------------------------------------


def resolver(**balancer: Any) -> dict[str, Any]:
    return {"Kind": "service-resolver", "Name": "api", "LoadBalancer": balancer}


async def test_a_ring_size_that_envoy_rejects_blocks_nothing_else(shared: Shared) -> None:
    async with Entries(shared.lab, resolver(Policy="ring_hash", RingHashConfig={"MaximumRingSize": 512})):
        await shared.is_told(shared.web, "api", "RingHashConfig")
        await shared.follows()
        await shared.restarted(shared.web)
        await shared.follows()
    await until(shared.ask, "api to answer again", lambda answer: answer.status == 200)


@pytest.mark.parametrize(
    "logs",
    [
        {"TextFormat": "%NOSUCH%"},
        {"TextFormat": "%REQ(:no/name)%"},
        {"JSONFormat": '{"a": ["%METADATA(NONE:x)%"]}'},
        {"Type": "file", "Path": "/nowhere/at/all.log"},
    ],
    ids=["operator", "argument", "json", "path"],
)
async def test_access_logs_that_can_not_be_written_leave_the_listeners_followed(
    shared: Shared, logs: dict[str, Any]
) -> None:
    entry = {"Kind": "proxy-defaults", "Name": "global", "AccessLogs": {"Enabled": True, **logs}}
    async with Entries(shared.lab, entry):
        await shared.is_told(shared.db, "AccessLogs")
        await shared.follows()
        await shared.restarted(shared.db)
        await shared.follows()


async def test_an_interval_of_0_counts_as_absent(shared: Shared) -> None:
    checked = {"PassiveHealthCheck": {"Interval": "0s", "MaxFailures": 3}}
    entry = {"Kind": "service-defaults", "Name": "web", "UpstreamConfig": {"Defaults": checked}}
    async with Entries(shared.lab, entry):
        await shared.restarted(shared.web)
        await answers(shared.web.host, shared.addresses["db"], PORT, "db-1")
        await shared.follows()


def lua(script: str, required: bool = False) -> dict[str, Any]:
    return {"Name": "builtin/lua", "Required": required, "Arguments": {"Listener": "inbound", "Script": script}}


async def test_a_rejected_part_is_left_out_and_a_denial_is_enforced_meanwhile(shared: Shared) -> None:
    """A script that can't be compiled slips through every check, and has Envoy reject the whole public listener."""
    permissions = [
        {"Action": "deny", "HTTP": {"PathPrefix": "/secret"}},
        {"Action": "allow", "HTTP": {"PathPrefix": "/"}},
    ]
    source = {"Name": "web", "Permissions": permissions}
    denial = {"Kind": "service-intentions", "Name": "api", "Sources": [source]}
    await shared.lab.catalog.entry({**DEFAULTS, "EnvoyExtensions": [lua("this is not lua")]})
    try:
        await shared.is_told(shared.api, "EnvoyExtensions")
        await shared.lab.catalog.entry(denial)
        await until(lambda: shared.ask("/secret"), "web to be denied", lambda answer: answer.status == 403)
        await shared.restarted(shared.api)
        await until(lambda: shared.ask("/secret"), "it to be so after a restart", lambda answer: answer.status == 403)
        assert await shared.status("/else") == 200
    finally:
        await shared.lab.catalog.remove_entry("service-intentions", "api")
        await shared.lab.catalog.entry(DEFAULTS)
    await eventually("it to be well", lambda: shared.told(shared.api), until=lambda told: "Extensions" not in told)


async def test_a_cluster_that_envoy_rejects_is_removed_and_everything_else_stays_current(shared: Shared) -> None:
    """A patch of web's own makes the cluster of db one that Envoy does not take."""
    patch = {
        "ResourceFilter": {
            "ResourceType": "cluster",
            "TrafficDirection": "outbound",
            "Services": [{"Name": "db"}],
        },
        "Op": "add",
        "Path": "/outlier_detection/interval",
        "Value": "0s",
    }
    extension = {"Name": "builtin/property-override", "Arguments": {"Patches": [patch]}}
    member = await shared.lab.member("late", start=False, register=False)
    async with Entries(shared.lab, {"Kind": "service-defaults", "Name": "web", "EnvoyExtensions": [extension]}):
        await shared.is_told(shared.web, "rejected")
        await answers(shared.web.host, shared.addresses["db"], PORT, None)
        assert await shared.status() == 200
        await shared.lab.register(member)
        await shared.lab.start(member)
        await answers(shared.web.host, await shared.lab.virtual_ip(member), PORT, "late-1")
        await shared.lab.deregister(member)
    await answers(shared.web.host, shared.addresses["db"], PORT, "db-1")


async def test_a_public_listener_that_can_not_be_read_lets_no_request_in(shared: Shared) -> None:
    """Not even on the connection that stands between the sidecars."""
    registered = dict(shared.api.registered)
    assert await shared.status() == 200
    config = {**registered["Proxy"]["Config"], "envoy_public_listener_json": "{"}
    shared.api.registered["Proxy"] = {**registered["Proxy"], "Config": config}
    try:
        await shared.lab.register(shared.api)
        await shared.is_told(shared.api, "envoy_public_listener_json", "denied")
        await until(shared.ask, "requests to be denied", lambda answer: answer.status in (403, 503))
    finally:
        shared.api.registered = registered
        await shared.lab.register(shared.api)
    await until(shared.ask, "requests to be let in", lambda answer: answer.status == 200)


# -- what callers send ------------------------------------------------------------------------------------------------


async def test_large_headers_pass_both_sidecars(shared: Shared) -> None:
    large = {f"x-large-{number}": "x" * 7000 for number in range(10)}
    assert await shared.status(headers=large) == 431
    async with Entries(
        shared.lab, {"Kind": "proxy-defaults", "Name": "global", "Config": {"max_request_headers_kb": 96}}
    ):
        # The lab's application is as strict as Envoy without it: it answers 400 by itself.
        await until(
            lambda: shared.ask(headers=large), "the application to be reached", lambda answer: answer.status != 431
        )


@pytest.mark.parametrize("host", ["Host: api\r\n", ""], ids=["host", "no host"])
async def test_http_1_0_is_answered(shared: Shared, host: str) -> None:
    answer = await raw(shared.web.host, shared.addresses["api"], f"GET / HTTP/1.0\r\n{host}\r\n".encode())
    assert answer.split(b" ")[1] == b"200", answer[:200]


async def raw(host: Host, address: str, message: bytes) -> bytes:
    """Send bytes, and return what comes back until the connection is closed."""
    made = host.socket()
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(20):
            await loop.sock_connect(made, (address, PORT))
            await loop.sock_sendall(made, message)
            found = b""
            while data := await loop.sock_recv(made, 65536):
                found += data
            return found
    finally:
        made.close()


# -- limits -----------------------------------------------------------------------------------------------------------


def many_routes() -> dict[str, Any]:
    match = [{"Match": {"HTTP": {"PathExact": f"/{number}"}}} for number in range(10_000)]
    return {"Kind": "service-router", "Name": "api", "Routes": match}


def large_expressions() -> dict[str, Any]:
    expression = f"/{'(a|b|[c-z]{1,50})' * 20}"
    match = [{"Match": {"HTTP": {"PathRegex": f"{expression}{number}"}}} for number in range(300)]
    return {"Kind": "service-router", "Name": "api", "Routes": match}


def large_rings() -> dict[str, Any]:
    rings = resolver(Policy="ring_hash", RingHashConfig={"MinimumRingSize": 8_000_000, "MaximumRingSize": 8_000_000})
    return {**rings, "Subsets": {f"s{number}": {"Filter": "Service.ID != x"} for number in range(8)}}


@pytest.mark.parametrize(
    ("make", "quota"), [(many_routes, "routes"), (large_expressions, "expressions"), (large_rings, "ring")]
)
async def test_a_service_above_a_quota_is_set_aside_alone(
    shared: Shared, make: Callable[[], dict[str, Any]], quota: str
) -> None:
    async with Entries(shared.lab, make()):
        await shared.is_told(shared.web, "api", f"quota {quota}")
        await shared.follows()
    await until(shared.ask, "api to answer again", lambda answer: answer.status == 200)


# -- beside a Consul --------------------------------------------------------------------------------------------------


@dataclass
class Beside:
    """web calls api, at a virtual IP that api claims."""

    lab: Lab
    web: Member
    api: Member
    address: str

    async def told(self) -> str:
        return json.dumps((await self.lab.sidecars())[self.web.sidecar_id]["set_aside"])


@pytest.fixture(scope="module")
async def beside() -> AsyncIterator[Beside]:
    async with Lab(default_policy="allow") as lab:
        web = await lab.member("web", virtual_ip="240.0.9.10")
        api = await lab.member("api", virtual_ip="240.0.9.11")
        await lab.served(web, api)
        yield Beside(lab, web, api, "240.0.9.11")


@pytest.mark.parametrize("address", ["fe80::1%zz", "010.1.2.3", "240.0.9.12 ", "::ffff:240.0.9.12", "x"])
async def test_an_address_that_envoy_rejects_blocks_no_caller(beside: Beside, address: str) -> None:
    lab = beside.lab
    number = str(len(lab.members))
    odd = await lab.member("odd", virtual_ip=address, start=False, instance=number)
    try:
        await eventually("it to be reported", beside.told, until=lambda told: "odd" in told)
        late = await lab.member("late", virtual_ip="240.0.9.20", instance=number)
        await answers(beside.web.host, "240.0.9.20", PORT, f"late-{number}")
        await lab.deregister(late)
        await answers(beside.web.host, "240.0.9.20", PORT, None)
        await answers(beside.web.host, beside.address, PORT, "api-1")
    finally:
        await lab.deregister(odd)


async def test_no_service_can_take_over_an_address_or_a_port_of_it(beside: Beside) -> None:
    """Not while its owner rolls out new instances either, which are younger than the thief's."""
    lab = beside.lab
    evil = await lab.member("evil", tagged={"virtual": (beside.address, 8443)})
    try:
        await lab.served(evil)
        await eventually(
            "the conflict to be reported", beside.told, until=lambda told: '"evil"' in told and beside.address in told
        )
        second = await lab.member("api", virtual_ip=beside.address, instance="2")
        await lab.served(second)
        await lab.deregister(beside.api)
        for port in (PORT, 8443):
            await answers(beside.web.host, beside.address, port, "api-2")
        await lab.register(beside.api)
        await lab.deregister(second)
        for port in (PORT, 8443):
            await answers(beside.web.host, beside.address, port, "api-1")
    finally:
        await lab.deregister(evil)


async def test_an_address_that_consul_assigns_next_can_not_be_claimed_in_advance() -> None:
    async with Lab(default_policy="allow") as lab:  # of its own: a Consul in use assigns freed addresses first
        if not lab.consul.transparent:
            pytest.skip("this Consul assigns no virtual IPs: it is older than 1.11")
        web = await lab.member("web")
        claimed = str(ipaddress.ip_address(await lab.virtual_ip(web)) + 2)
        evil = await lab.member("evil", tagged={"virtual": (claimed, PORT)})  # itself assigned the one between
        await lab.served(web, evil)
        await answers(web.host, claimed, PORT, "evil-1")
        victim = await lab.member("victim")
        await lab.served(victim)
        assert await lab.virtual_ip(victim) == claimed
        await answers(web.host, claimed, PORT, "victim-1")

        async def told() -> str:
            return json.dumps((await lab.sidecars())[web.sidecar_id]["set_aside"])

        await eventually("the conflict to be reported", told, until=lambda text: claimed in text)


async def test_an_intention_in_another_letter_case_is_for_the_same_service(beside: Beside) -> None:
    await beside.lab.consul.intention("web", "API", "deny")
    try:
        await answers(beside.web.host, beside.address, PORT, None)
    finally:
        await beside.lab.consul.intention("web", "API", None)
    await answers(beside.web.host, beside.address, PORT, "api-1")


async def test_a_token_that_was_deleted_opens_no_stream(denying: Mesh) -> None:
    lab = denying.lab
    token = await lab.consul.token_for("web")
    member = await lab.member("web", instance="deleted", virtual_ip="240.9.0.10", token=token)
    await lab.served(member)
    await answers(member.host, denying.api_ip, PORT, "api-1")
    await lab.consul.delete_token(token)
    late = await lab.member("web", instance="late", start=False)
    await start_with_stream_token(lab, late, token)
    await eventually(
        "the refusal",
        lambda: waits_for(denying, late),
        until=lambda text: "may not act for service" in text,
    )
    assert (await lab.sidecars())[late.sidecar_id]["resources"]["secrets"]["sent"] == {}
    for each in (member, late):
        await lab.deregister(each)


@pytest.mark.parametrize("flag", ["--listen", "--admin"])
async def test_a_server_without_authentication_refuses_to_listen_beyond_loopback(beside: Beside, flag: str) -> None:
    host = beside.lab.control
    command = [*gossamer("serve"), "--consul", beside.lab.consul.url, flag, f"{host.address}:0"]
    other = "--admin" if flag == "--listen" else "--listen"
    with pytest.raises(CommandError, match="--insecure"):
        await run_to_end(*host.command(*command, other, "127.0.0.1:0"))

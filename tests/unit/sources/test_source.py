"""Answers that a real Consul gives only on bad days: what they must not do to what was read before.

The server here plays Consul's part, because no Consul can be made to answer like this on demand. How a real one is read
is for the integration tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from xds.mesh import mesh
from xds.mesh.facts import CONTROL_PLANE_LEAF, CONTROL_PLANE_SERVICE, Leaf, LeafKey, LeafRefused
from xds.mesh.intentions import Action, Intention
from xds.mesh.mesh import Batch, Demand, Key, Kind, Mesh
from xds.sources.consul import chains
from xds.sources.consul.client import Consul, ConsulError
from xds.sources.consul.config_entry_watches import FOLLOWED
from xds.sources.consul.settings import ConsulSettings
from xds.sources.consul.source import ConsulSource

ROOTS = {"TrustDomain": "td.consul", "Roots": [{"ID": "1", "RootCert": "root", "Active": True}]}
AGENT = {"Config": {"Datacenter": "dc1"}, "DebugConfig": {"ACLsEnabled": True, "ACLDefaultPolicy": "deny"}}
DENY_DB = {"SourceName": "*", "DestinationName": "db", "Action": "deny"}


class PretendConsul:
    """Answers by path, blocking as Consul does. ``say`` changes an answer and wakes whoever waits for it."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, Any, dict[str, str]]] = {}
        self.index = 10
        self.judges_by_itself = False
        self.changed = asyncio.Event()
        self.tokens: list[tuple[str, str | None]] = []
        self.asked: list[tuple[str, bool]] = []
        """Every path that was asked for, and whether to be answered at a change only."""
        self.say("/v1/connect/intentions", [DENY_DB])
        self.say("/v1/connect/intentions/match", {})
        self.say("/v1/catalog/services", {"web": [], "db": []})
        for kind in FOLLOWED:
            self.say(f"/v1/config/{kind}", [])
        self.say("/v1/config/service-splitter", "invalid config entry kind: service-splitter", status=500)
        self.say("/v1/config/mesh", [{"Kind": "mesh", "TransparentProxy": {"MeshDestinationsOnly": True}}])
        self.say("/v1/connect/ca/roots", ROOTS)
        self.say("/v1/agent/self", AGENT)
        self.say("/v1/catalog/datacenters", ["dc1"])
        self.allow("service", "write", "web")

    def say(self, path: str, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.index += 1
        self.answers[path] = (status, body, headers or {})
        self.changed.set()
        self.changed = asyncio.Event()

    def allow(self, kind: str, access: str, name: str, allowed: bool = True) -> None:
        body = [{"Resource": kind, "Access": access, "Segment": name, "Allow": allowed}]
        self.say("/v1/internal/acl/authorize", body)

    async def answer(self, request: web.Request) -> web.Response:
        self.tokens.append((request.path, request.headers.get("X-Consul-Token")))
        self.asked.append((request.path, "index" in request.query))
        while int(request.query.get("index", "0")) >= self.index:
            await self.changed.wait()
        if self.judges_by_itself and request.path.endswith("/authorize"):
            asked = await request.json()
            if len(asked) > 64:
                return web.Response(status=400, text="Refusing to process more than 64 authorizations at once")
            return web.json_response([one | {"Allow": True} for one in asked])
        status, body, headers = self.answers.get(request.path, (404, None, {}))
        if status != 200:
            return web.Response(status=status, text=str(body))
        return web.json_response(body, headers={"X-Consul-Index": str(self.index), **headers})


class Reading:
    """A source that reads the pretended Consul, and what came of it."""

    def __init__(self, consul: PretendConsul, url: str) -> None:
        self.consul = consul
        self.mesh = Mesh()
        self.batch = asyncio.Event()
        self.client = Consul(ConsulSettings(address=url))
        self.watches = 0
        self.source = ConsulSource(self.client, self._take, default_allow=None, on_watches=self._count)
        self.task = asyncio.create_task(self.source.run())

    def _take(self, batch: Batch) -> None:
        self.mesh.apply(batch)
        self.batch.set()

    def _count(self, watches: int) -> None:
        self.watches = watches

    async def until_trouble(self, name: str) -> str:
        await self.until_true(lambda: name in self.source.troubles())
        return self.source.troubles()[name]

    async def until_true(self, what: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not what():
                assert not self.task.done(), self.task.exception()
                await asyncio.sleep(0.01)

    async def until(self, key: Key, kind: type) -> Any:
        async with asyncio.timeout(20):
            while not isinstance(self.mesh._facts.get(key), kind):
                self.batch.clear()
                await self.batch.wait()
        return self.mesh._facts[key]


@pytest.fixture
async def reading() -> AsyncIterator[Reading]:
    consul = PretendConsul()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", consul.answer)
    async with TestServer(app) as server:
        made = Reading(consul, str(server.make_url("/")).rstrip("/"))
        async with asyncio.timeout(20):
            while made.mesh.missing():
                made.batch.clear()
                await made.batch.wait()
        yield made
        made.task.cancel()
        await asyncio.gather(made.task, return_exceptions=True)
        await made.client.close()


@pytest.mark.parametrize(
    ("path", "name", "key"),
    [
        ("/v1/connect/intentions", "intentions", mesh.INTENTIONS),
        ("/v1/catalog/services", "catalog", mesh.SERVICE_NAMES),
        ("/v1/config/mesh", "mesh entries", mesh.CONFIG_ENTRIES),
        ("/v1/connect/ca/roots", "CA roots", mesh.ROOTS),
    ],
)
@pytest.mark.parametrize("status", [404, 403, 500, 301])
async def test_an_error_is_never_taken_for_an_empty_answer(
    reading: Reading, path: str, name: str, key: Key, status: int
) -> None:
    before = reading.mesh._facts[key]
    reading.consul.say(path, "No cluster leader", status=status)
    assert str(status) in await reading.until_trouble(name)
    assert reading.mesh._facts[key] == before


@pytest.mark.parametrize(
    "path", ["/v1/connect/intentions", "/v1/catalog/services", "/v1/config/mesh", "/v1/connect/ca/roots"]
)
@pytest.mark.parametrize("body", [7, "text", [7], [{"unexpected": None}], {"Roots": None}])
async def test_a_malformed_answer_ends_no_stream(reading: Reading, path: str, body: Any) -> None:
    reading.consul.say(path, body)
    reading.consul.say("/v1/connect/ca/roots", ROOTS | {"TrustDomain": "moved.consul"}) if "ca" not in path else None
    await asyncio.sleep(0.3)
    assert not reading.task.done()


async def test_the_removal_of_intentions_is_accepted_only_with_a_token_that_may_read_all(reading: Reading) -> None:
    reading.consul.answers["/v1/connect/intentions/match"] = (403, "Permission denied", {})
    reading.consul.say("/v1/connect/intentions", [])
    assert "403" in await reading.until_trouble("intentions")
    assert reading.mesh.intentions == (Intention("*", "db", Action.DENY),)


async def test_a_first_list_of_intentions_is_checked_too() -> None:
    consul = PretendConsul()
    consul.say("/v1/connect/intentions/match", "Permission denied", status=403)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", consul.answer)
    async with TestServer(app) as server:
        reading = Reading(consul, str(server.make_url("/")).rstrip("/"))
        await reading.until_trouble("intentions")
        assert reading.mesh.intentions is None
        reading.task.cancel()
        await asyncio.gather(reading.task, return_exceptions=True)
        await reading.client.close()


async def test_the_removal_of_services_is_accepted_only_with_a_token_that_may_read_them(reading: Reading) -> None:
    reading.consul.allow("service", "read", "db", allowed=False)
    reading.consul.say("/v1/catalog/services", {"web": []})
    assert "service:read on 'db'" in await reading.until_trouble("catalog")
    assert reading.mesh.service_names == frozenset({"web", "db"})


async def test_a_chain_that_can_not_be_read_is_logged_once(
    reading: Reading, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(chains, "RETRY_S", 0.01)
    reading.consul.say("/v1/health/connect/web", [])
    reading.consul.say("/v1/discovery-chain/web", "no", status=403)
    reading.source.demand(Demand(services=frozenset({"web"})))
    tries = ("/v1/discovery-chain/web", None)
    await reading.until_true(lambda: reading.consul.tokens.count(tries) >= 5)
    assert len([r for r in caplog.records if "discovery chain of web" in r.message]) == 1


async def test_the_removal_of_many_services_at_once_is_accepted(reading: Reading) -> None:
    """Consul judges no more than 64 permissions in one request."""
    many = [f"service-{number}" for number in range(150)]
    reading.consul.say("/v1/catalog/services", {name: [] for name in ["web", "db", *many]})
    await reading.until_true(lambda: len(reading.mesh.service_names or ()) == 152)
    reading.consul.judges_by_itself = True
    reading.consul.say("/v1/catalog/services", {"web": [], "new": []})
    await reading.until_true(lambda: reading.mesh.service_names == frozenset({"web", "new"}))


async def test_a_401_of_something_else_than_consul_allows_nothing(reading: Reading) -> None:
    reading.consul.say("/v1/internal/acl/authorize", "<html>log in</html>", status=401)
    with pytest.raises(ConsulError, match="401"):
        await reading.client.check_may_write_service("web", "any")
    reading.consul.say("/v1/internal/acl/authorize", "ACL support disabled", status=401)
    await reading.client.check_may_write_service("web", "any")


async def test_an_answer_that_consul_marks_as_filtered_is_refused(reading: Reading) -> None:
    reading.consul.say("/v1/config/mesh", [], headers={"X-Consul-Results-Filtered-By-ACLs": "true"})
    await reading.until_trouble("mesh entries")
    assert reading.mesh.config_entries is not None
    assert reading.mesh.config_entries.mesh.destinations_only


async def test_the_acl_default_in_a_header_does_not_override_what_the_agent_says_of_intentions(
    reading: Reading,
) -> None:
    reading.consul.say("/v1/connect/intentions", [], headers={"X-Consul-Default-ACL-Policy": "allow"})
    await reading.until_true(lambda: not reading.mesh.intentions)
    assert reading.mesh.default_allow is False


@pytest.mark.parametrize("about", [{}, {"Config": {"Datacenter": "dc1"}, "DebugConfig": None}, [], None])
async def test_an_agent_without_a_default_leaves_the_known_one(reading: Reading, about: Any) -> None:
    reading.consul.say("/v1/agent/self", about)
    with pytest.raises((KeyError, TypeError, AttributeError)):
        await reading.source._agent.read()
    assert reading.mesh.default_allow is False
    assert reading.mesh.datacenter == "dc1"


async def test_a_sidecar_without_a_token_is_anonymous_and_not_the_agent(reading: Reading) -> None:
    key = LeafKey("web", "")
    reading.consul.say(
        "/v1/agent/connect/ca/leaf/web", {"Service": "web", "CertPEM": "c", "PrivateKeyPEM": "k", "SerialNumber": "1"}
    )
    reading.source.demand(Demand(leaves=frozenset({key})))
    assert (await reading.until(Key(Kind.LEAF, key), Leaf)).serial_number == "1"
    used = {token for path, token in reading.consul.tokens if "leaf" in path or "authorize" in path}
    assert used == {"anonymous"}


@pytest.mark.parametrize(
    ("token", "certified", "words"),
    [
        ("", False, "the sidecar presents no token, and needs service:write on 'web'"),
        ("t", False, "the token that the sidecar presents needs service:write on 'web'"),
        ("", True, "Gossamer's own token needs service:write on 'web'"),
    ],
)
async def test_a_missing_permission_is_reported_with_its_token(
    reading: Reading, token: str, certified: bool, words: str
) -> None:
    key = LeafKey("web", token, certified)
    reading.consul.allow("service", "write", "web", allowed=False)
    reading.source.demand(Demand(leaves=frozenset({key})))
    assert (await reading.until(Key(Kind.LEAF, key), LeafRefused)).reason == words


async def test_the_control_planes_own_certificate_is_reported_as_missing_until_it_exists(reading: Reading) -> None:
    reading.client.token = "own"
    reading.consul.allow("service", "write", CONTROL_PLANE_SERVICE, allowed=False)
    reading.source.demand(Demand(leaves=frozenset({CONTROL_PLANE_LEAF})))
    said = await reading.until_trouble("certificate of the xDS port")
    assert said.startswith("Gossamer's own token needs service:write on 'gossamer'; xDS is served over TLS")
    assert """add 'service "gossamer" { policy = "write" }' to the policy""" in said
    leaf = {"Service": CONTROL_PLANE_SERVICE, "CertPEM": "c", "PrivateKeyPEM": "k", "SerialNumber": "1"}
    reading.consul.say(f"/v1/agent/connect/ca/leaf/{CONTROL_PLANE_SERVICE}", leaf)
    reading.client.token = "another"  # the token file was replaced
    reading.consul.allow("service", "write", CONTROL_PLANE_SERVICE)
    await reading.until(Key(Kind.LEAF, CONTROL_PLANE_LEAF), Leaf)
    await reading.until_true(lambda: not reading.source.troubles())
    assert ("/v1/agent/connect/ca/leaf/gossamer", "another") in reading.consul.tokens


async def test_a_certificate_of_another_service_is_refused(reading: Reading) -> None:
    key = LeafKey("web", "t")
    reading.consul.say("/v1/agent/connect/ca/leaf/web", {"Service": "db", "CertPEM": "c", "PrivateKeyPEM": "k"})
    reading.source.demand(Demand(leaves=frozenset({key})))
    assert "'db'" in (await reading.until(Key(Kind.LEAF, key), LeafRefused)).reason


async def test_names_that_would_change_the_path_of_a_request_are_left_out(reading: Reading) -> None:
    reading.consul.say("/v1/catalog/services", {"web": [], "db": [], "web/../db": [], "a?b": [], "..": [], "later": []})
    await reading.until_true(lambda: "later" in (reading.mesh.service_names or ()))
    assert reading.mesh.service_names == frozenset({"web", "db", "later"})


async def test_everything_ends_with_the_source(reading: Reading) -> None:
    before = asyncio.all_tasks()
    reading.source.demand(Demand(frozenset({"web", "db", "not-there"}), frozenset({LeafKey("web", "t")})))
    await asyncio.sleep(0.1)
    assert reading.watches == 3 + len(FOLLOWED) + 3 + 1
    reading.task.cancel()
    await asyncio.gather(reading.task, return_exceptions=True)
    left = {
        t for t in asyncio.all_tasks() - before if "PretendConsul" not in repr(t) and "RequestHandler" not in repr(t)
    }
    assert not left


async def test_a_kind_of_entry_that_this_consul_does_not_know_is_empty(reading: Reading) -> None:
    assert reading.consul.answers["/v1/config/service-splitter"][0] == 500
    assert reading.mesh.config_entries is not None
    assert reading.source.troubles() == {}


async def test_a_kind_that_had_entries_is_not_unknown_all_at_once(reading: Reading) -> None:
    reading.consul.say("/v1/config/mesh", "invalid config entry kind: mesh", status=500)
    assert "invalid config entry kind" in await reading.until_trouble("mesh entries")
    assert reading.mesh.config_entries is not None
    assert reading.mesh.config_entries.mesh.destinations_only


def entry_of(service: str) -> dict[str, Any]:
    """Return Consul's description of an instance of ``service`` that has a sidecar."""
    return {
        "Node": {"Node": "n", "Address": "10.0.0.1"},
        "Service": {
            "Kind": "connect-proxy",
            "ID": f"{service}-1-sidecar-proxy",
            "Service": f"{service}-sidecar-proxy",
            "Port": 20000,
            "TaggedAddresses": {"consul-virtual": {"Address": "240.0.0.1", "Port": 20000}},
            "Proxy": {"DestinationServiceName": service},
        },
        "Checks": [],
    }


@pytest.mark.parametrize("size", [20, 60])
async def test_each_service_is_read_with_one_request_and_one_blocking_query(reading: Reading, size: int) -> None:
    services = [f"s-{number}" for number in range(size)]
    names: dict[str, list[str]] = {"web": [], "db": []}
    names |= {name: [] for service in services for name in (service, f"{service}-sidecar-proxy")}
    for service in services:
        reading.consul.say(f"/v1/health/connect/{service}", [entry_of(service)])
        target = f"{service}.default.default.dc1"
        compiled = {
            "ServiceName": service,
            "Datacenter": "dc1",
            "StartNode": "resolver",
            "Nodes": {
                "resolver": {"Type": "resolver", "Name": target, "Resolver": {"Default": True, "Target": target}}
            },
            "Targets": {target: {"Service": service, "Datacenter": "dc1"}},
        }
        reading.consul.say(f"/v1/discovery-chain/{service}", {"Chain": compiled})
    reading.consul.say("/v1/catalog/services", names)
    await reading.until_true(lambda: reading.mesh.service_names == frozenset(names))
    reading.consul.asked.clear()
    wanted = frozenset(names) - {"web", "db"}
    reading.source.demand(Demand(services=wanted))
    await reading.until_true(lambda: all(reading.mesh.instances(n) and reading.mesh.chain(n) for n in wanted))

    def waiting() -> list[str]:
        return [path for path, blocks in reading.consul.asked if blocks and path.startswith("/v1/health/connect/")]

    await reading.until_true(lambda: len(waiting()) >= size)
    asked = [path for path, _ in reading.consul.asked]
    assert len([path for path in asked if path.startswith("/v1/discovery-chain/")]) <= 8, "plain ones are told"
    assert not [path for path in asked if path.endswith("-sidecar-proxy")], "nobody is reached by such a name"
    assert len(asked) <= 2 * size + 16 + 20
    first_to_wait = reading.consul.asked.index((waiting()[0], True))
    read_before = {path for path, blocks in reading.consul.asked[:first_to_wait] if not blocks}
    assert {f"/v1/health/connect/{service}" for service in services} <= read_before, "all are read before any waits"
    for service in services:
        chain = reading.mesh.chain(service)
        assert chain is not None
        assert [target.service for target in chain.targets.values()] == [service]

"""Tests of settings beside routes and intentions: limits, timeouts, logs, TLS, JSON of users, plain text."""

from __future__ import annotations

import asyncio
import contextlib
import json
import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.integration.entries import Entries
from tests.integration.requests import Answer, request, until
from xds.lab.application import dial, who_answers
from xds.lab.mesh import Lab, Member, get
from xds.lab.mesh_file import MeshFile
from xds.lab.network import SUBNET, Host
from xds.lab.processes import eventually
from xds.sources.file.state import StateFolder

PORT = 80
PROBED = 21500
PROBER = f"{SUBNET}.200"


@dataclass
class Set:
    """web calls api, which speaks HTTP, and db, which does not."""

    lab: Lab
    web: Member
    api: Member
    db: Member
    addresses: dict[str, str]

    async def ask(self, path: str = "/") -> Answer:
        return await request(self.web.host, f"http://{self.addresses['api']}:{PORT}{path}")

    async def db_answers(self) -> str | None:
        return await who_answers(self.web.host, self.addresses["db"], PORT)

    async def defaults(self, service: str, **settings: Any) -> None:
        """Return the service-defaults of a service."""
        protocol = "http" if service == "api" else "tcp"
        entry = {"Kind": "service-defaults", "Name": service, "Protocol": protocol, **settings}
        await self.lab.catalog.entry(entry)


@pytest.fixture(scope="module")
async def made() -> AsyncIterator[Set]:
    async with Lab(mesh_file=True, serve_arguments=("--probe-source", f"{PROBER}/32")) as lab:
        await lab.catalog.entry({"Kind": "service-defaults", "Name": "api", "Protocol": "http"})
        for destination in ("api", "db"):
            await lab.catalog.intention("web", destination, "allow")
        web, api, db = await asyncio.gather(
            lab.member("web"),
            lab.member("api", speaks="http", redirect=("--exclude-inbound-port", str(PROBED))),
            lab.member("db"),
        )
        await lab.served(web, api, db)
        addresses = {name: (await lab.catalog.virtual_ips(name))[0] for name in ("api", "db")}
        yield Set(lab, web, api, db, addresses)


async def test_the_request_timeout_of_the_application_is_kept(made: Set) -> None:
    await made.defaults("api", LocalRequestTimeoutMs=300)
    await until(lambda: made.ask("/?wait=2"), "the timeout", lambda found: found.status == 504)
    await made.defaults("api")
    await until(lambda: made.ask("/?wait=1"), "no timeout", lambda found: found.status == 200)


async def test_inbound_connections_are_limited(made: Set) -> None:
    await made.defaults("db", MaxInboundConnections=1)

    async def second_is_refused() -> bool:
        async with await dial(made.web.host, made.addresses["db"], PORT) as first:
            assert await first.echo("x") == "x"
            counted = await made.db_answers() is None and await made.lab.stat(
                made.db, r"connection_limit\.inbound_connection_limit\.limited_connections"
            )
            return bool(counted)

    await eventually("the limit", second_is_refused)
    await made.defaults("db")
    await eventually("no limit", made.db_answers, until=lambda found: found == "db-1")


async def test_a_caller_can_limit_itself(made: Set) -> None:
    limits = {"Overrides": [{"Name": "api", "Limits": {"MaxConcurrentRequests": 1}}]}

    async def some_are_refused() -> bool:
        answers = await asyncio.gather(*(made.ask("/?wait=0.3") for _ in range(6)))
        return 503 in {answer.status for answer in answers}

    await made.defaults("web", UpstreamConfig=limits)
    await eventually("the limit", some_are_refused)
    await made.defaults("web")
    await eventually("no limit", some_are_refused, until=lambda found: not found)


async def test_a_failing_instance_is_ejected_for_a_while(made: Set) -> None:
    check = {"MaxFailures": 2, "Interval": "100ms", "EnforcingConsecutive5xx": 100, "MaxEjectionPercent": 100}
    await made.defaults("web", UpstreamConfig={"Defaults": {"PassiveHealthCheck": {**check, "BaseEjectionTime": "1s"}}})

    async def ejected() -> bool:
        for _ in range(3):
            await made.ask("/?status=500")
        return (await made.ask()).status == 503

    await eventually("the ejection", ejected)
    await made.defaults("web")
    await until(made.ask, "it to be back", lambda found: found.status == 200)


async def test_access_logs_are_written(made: Set) -> None:
    log = made.lab.folder / "access.log"
    log.touch()
    log.chmod(0o666)
    logs = {"Enabled": True, "Type": "file", "Path": str(log)}
    async with Entries(made.lab, {"Kind": "proxy-defaults", "Name": "global", "AccessLogs": logs}):

        async def logged() -> set[str]:
            await made.ask("/logged")
            await made.db_answers()
            lines = [json.loads(line) for line in log.read_text().splitlines()]
            return {line.get("path") or "tcp" for line in lines}

        await eventually("the logs", logged, until=lambda found: {"/logged", "tcp"} <= found)


async def test_a_trace_continues_through_the_sidecar(made: Set) -> None:
    collector = made.lab.host("traces")
    await made.lab.application("traces", collector, 4317, collector.address, speaks="grpc")
    kind = "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig"
    target = {"google_grpc": {"target_uri": f"{collector.address}:4317", "stat_prefix": "traces"}, "timeout": "1s"}
    provider = {
        "name": "envoy.tracers.opentelemetry",
        "typed_config": {"@type": kind, "grpc_service": target, "service_name": "api"},
    }
    tracing = json.dumps({"provider": provider, "random_sampling": {"value": 100}})
    config = made.api.registered["Proxy"].setdefault("Config", {})
    config["envoy_listener_tracing_json"] = tracing
    await made.lab.register(made.api)
    await until(made.ask, "the trace", lambda found: "traceparent" in found.seen)

    assert await made.lab.stat(made.api, r"http\.public_listener\.tracing\.random_sampling") > 0
    del config["envoy_listener_tracing_json"]
    await made.lab.register(made.api)
    await until(made.ask, "no trace", lambda found: "traceparent" not in found.seen)


async def test_only_the_exposed_path_is_reachable_and_only_for_probe_sources(made: Set) -> None:
    prober, stranger = made.lab.network.host("prober", PROBER), made.lab.host("nosy")

    async def probe(path: str, host: Host = prober) -> int:
        try:
            return (await request(host, f"http://{made.api.host.address}:{PROBED}{path}")).status
        except ConnectionError:
            return 0

    paths = [{"Path": path, "LocalPathPort": 8080, "ListenerPort": PROBED} for path in ("/health-z", "/healthz")]
    await made.defaults("api", Expose={"Paths": paths})
    await eventually("the path", lambda: probe("/healthz"), until=lambda status: status == 200)
    assert await probe("/health-z?verbose=1") == 200
    assert await probe("/healthz/../secret") == 404
    assert await probe("/secret") == 404
    assert await probe("/healthz", stranger) == 0, "only from where it should be probed"
    assert (await made.ask()).status == 200
    await made.defaults("api")
    await eventually("it to be closed", lambda: probe("/healthz"), until=lambda status: status == 0)


async def test_an_instance_that_may_be_dialed_directly_is_reached_through_the_mesh(made: Set) -> None:
    api = f"http://{made.api.host.address}:8080/"

    async def direct() -> str:
        try:
            return (await request(made.web.host, api)).seen.get("x-forwarded-client-cert", "")
        except ConnectionError:
            return ""

    assert await direct() == "", "past the mesh there is no way in"
    await made.defaults("api", TransparentProxy={"DialedDirectly": True})
    await made.defaults("db", TransparentProxy={"DialedDirectly": True})
    await eventually("the identity of who asks", direct, until=lambda found: "/svc/web" in found)

    async def database() -> str | None:
        return await who_answers(made.web.host, made.db.host.address, 8080, within_s=3, say="x")

    await eventually("db", database, until=lambda found: found == "db-1")
    assert await who_answers(made.web.host, made.db.host.address, 8081, within_s=3, say="x") is None, "another port"

    async def secret() -> int:
        return (await request(made.web.host, f"{api}secret")).status

    permissions = [
        {"Action": "deny", "HTTP": {"PathExact": "/secret"}},
        {"Action": "allow", "HTTP": {"PathPrefix": "/"}},
    ]
    sources = [{"Name": "web", "Permissions": permissions}]
    async with Entries(made.lab, {"Kind": "service-intentions", "Name": "api", "Sources": sources}):
        await eventually("the denial of a request", secret, until=lambda status: status == 403)
        assert "/svc/web" in await direct()
    await made.lab.catalog.intention("web", "db", "deny")
    await eventually("the denial", database, until=lambda found: found is None)
    await made.lab.catalog.intention("web", "db", "allow")
    await made.defaults("api")
    await made.defaults("db")
    await eventually("it to be as it was", made.db_answers, until=lambda found: found == "db-1")


async def test_an_old_tls_version_is_refused_if_the_mesh_entry_says_so(made: Set) -> None:
    tls = {"Incoming": {"TLSMinVersion": "TLSv1_3"}, "Outgoing": {"TLSMaxVersion": "TLSv1_2"}}
    async with Entries(made.lab, {"Kind": "mesh", "TLS": tls}):
        await eventually("no common version", made.db_answers, until=lambda found: found is None)
        outgoing = {"TLSMaxVersion": "TLSv1_3"}
        await made.lab.catalog.entry({"Kind": "mesh", "TLS": {"Incoming": tls["Incoming"], "Outgoing": outgoing}})
        await eventually("TLS 1.3", made.db_answers, until=lambda found: found == "db-1")
        versions = await get(made.db.host, 19000, "/stats?filter=ssl.versions")
        assert "TLSv1.3" in str(versions[1])


async def test_permissive_admits_callers_outside_the_mesh_only_while_the_mesh_entry_allows_it(made: Set) -> None:
    outside = made.lab.host("outside")

    async def seen() -> str | None:
        with contextlib.suppress(OSError):
            return await who_answers(outside, made.db.host.address, 8080, within_s=3, say="x")
        return None

    assert await seen() is None
    await made.defaults("db", MutualTLSMode="permissive")
    async with Entries(made.lab, {"Kind": "mesh", "AllowEnablingPermissiveMutualTLS": True}):
        await eventually("it to be let in", seen, until=lambda found: found == "db-1")
        assert await made.db_answers() == "db-1", "the mesh still comes by mutual TLS"
        await made.defaults("api", MutualTLSMode="permissive")
    await eventually("it to be shut out again", seen, until=lambda found: found is None)
    await made.defaults("db")
    await made.defaults("api")


OWN = {
    "name": "mine",
    "address": {"socket_address": {"address": "0.0.0.0", "port_value": 20000}},
    "filter_chains": [
        {
            "filters": [
                {
                    "name": "envoy.filters.network.tcp_proxy",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                        "stat_prefix": "mine",
                        "cluster": "local_app",
                    },
                }
            ]
        }
    ],
}


async def test_a_listener_from_a_user_is_protected_or_refused(made: Set) -> None:
    config = made.db.registered["Proxy"].setdefault("Config", {})
    outside = made.lab.host("stranger")
    config["envoy_public_listener_json"] = json.dumps(OWN)
    await made.lab.register(made.db)

    async def counted() -> int:
        await made.db_answers()
        return await made.lab.stat(made.db, r"tcp\.mine\.downstream_cx_total")

    await eventually("the listener to be used", counted)
    assert await made.db_answers() == "db-1"
    assert await who_answers(outside, made.db.host.address, 20000, within_s=3, say="x") is None
    await made.lab.catalog.intention("web", "db", "deny")
    await eventually("the denial", made.db_answers, until=lambda found: found is None)
    await made.lab.catalog.intention("web", "db", "allow")

    config["envoy_public_listener_json"] = json.dumps({**OWN, "default_filter_chain": OWN["filter_chains"][0]})  # type: ignore[index]
    await made.lab.register(made.db)

    async def refused() -> str:
        return json.dumps((await made.lab.sidecars())[made.db.sidecar_id]["set_aside"])

    await eventually("the refusal", refused, until=lambda found: "default_filter_chain" in found)
    await eventually("nobody to be let in", made.db_answers, until=lambda found: found is None)
    del config["envoy_public_listener_json"]
    await made.lab.register(made.db)
    await eventually("it to be as it was", made.db_answers, until=lambda found: found == "db-1")


async def test_an_upstream_with_a_listener_and_a_cluster_from_a_user(made: Set) -> None:
    assert isinstance(made.lab.catalog, MeshFile)
    trust_domain = StateFolder(made.lab.catalog.settings.state).authority(datetime.now(UTC)).trust_domain
    name = f"db.default.dc1.internal.{trust_domain}"
    own: dict[str, Any] = json.loads(json.dumps(OWN))
    own["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": 9191}
    own["filter_chains"][0]["filters"][0]["typed_config"] |= {"cluster": name, "stat_prefix": "passed_to"}
    cluster = {"name": name, "type": "EDS", "connect_timeout": "1.5s", "alt_stat_name": "passed_on"}
    config = {"envoy_listener_json": json.dumps(own), "envoy_cluster_json": json.dumps(cluster)}
    made.web.registered["Proxy"]["Upstreams"] = [{"DestinationName": "db", "LocalBindPort": 9191, "Config": config}]
    await made.lab.register(made.web)
    await eventually(
        "the answer, by mutual TLS",
        lambda: who_answers(made.web.host, "127.0.0.1", 9191),
        until=lambda who: who == "db-1",
    )
    assert await made.lab.stat(made.web, r"tcp\.passed_to\.downstream_cx_total") > 0
    assert await made.lab.stat(made.web, r"cluster\.passed_on\.upstream_cx_total") > 0
    del made.web.registered["Proxy"]["Upstreams"]
    await made.lab.register(made.web)


async def test_an_upstream_on_a_unix_socket(made: Set) -> None:
    path = Path("/tmp") / f"gossamer-{made.lab.folder.name}.sock"
    upstream = {"DestinationName": "api", "LocalBindSocketPath": str(path), "LocalBindSocketMode": "0666"}
    made.web.registered["Proxy"]["Upstreams"] = [upstream]
    try:
        await made.lab.register(made.web)
        found = await until(
            lambda: request(made.web.host, "http://api/", unix=str(path)), "api", lambda found: found.service == "api-1"
        )
        assert found.status == 200
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
    finally:
        del made.web.registered["Proxy"]["Upstreams"]
        await made.lab.register(made.web)
        path.unlink(missing_ok=True)


def extension(name: str, *, required: bool = True, **arguments: Any) -> dict[str, Any]:
    return {"Name": f"builtin/{name}", "Required": required, "Arguments": arguments}


async def test_extensions_are_inserted(made: Set) -> None:
    script = "function envoy_on_response(handle) handle:headers():add('x-lua', 'was here') end"
    collector = made.lab.host("collector")
    await made.lab.application("collector", collector, 4317, collector.address, speaks="grpc")
    grpc = {"GrpcService": {"Target": {"URI": f"{collector.address}:4317"}}, "BufferFlushInterval": "0.1s"}
    await made.defaults(
        "api",
        EnvoyExtensions=[
            extension("lua", Listener="inbound", Script=script),
            extension("otel-access-logging", Listener="inbound", Config=grpc),
            extension("aws/lambda", required=False),
        ],
    )
    await until(made.ask, "the script", lambda found: found.headers.get("x-lua") == "was here")

    async def logged() -> int:
        await made.ask()
        return await made.lab.stat(made.api, r"cluster\.otel_access_logging\.upstream_rq_total")

    await eventually("the collector to be told", logged)
    told = json.dumps((await made.lab.sidecars())[made.api.sidecar_id]["set_aside"])
    assert "builtin/aws/lambda': unknown extension" in told

    limit = extension("http/localratelimit", MaxTokens=2, TokensPerFill=1, FillInterval=60)
    await made.defaults("api", EnvoyExtensions=[limit])
    await until(made.ask, "the limit", lambda found: found.status == 429)
    await made.defaults("api")
    await until(made.ask, "no limit", lambda found: found.status == 200 and "x-lua" not in found.headers)


async def test_a_property_is_overridden_for_one_upstream(made: Set) -> None:
    chosen = {"ResourceType": "route", "TrafficDirection": "outbound", "Services": [{"Name": "api"}]}
    header = [{"header": {"key": "x-patched", "value": "yes"}}]
    patch = {"ResourceFilter": chosen, "Op": "add", "Path": "/response_headers_to_add", "Value": header}
    await made.defaults("web", EnvoyExtensions=[extension("property-override", Patches=[patch])])
    await until(made.ask, "the patch", lambda found: found.headers.get("x-patched") == "yes")
    await made.defaults("web")
    await until(made.ask, "no patch", lambda found: "x-patched" not in found.headers)


async def test_a_required_extension_that_is_unknown_is_an_error_and_nothing_else_changes(made: Set) -> None:
    await made.defaults("api", LocalRequestTimeoutMs=100, EnvoyExtensions=[extension("wasm")])

    async def waits() -> str:
        return str((await made.lab.sidecars())[made.api.sidecar_id]["set_aside"])

    await eventually("the error", waits, until=lambda found: "builtin/wasm': unknown extension" in found)
    assert (await made.ask("/?wait=0.5")).status == 200, "it keeps what it has"
    await made.defaults("api")
    await eventually("it to be well again", waits, until=lambda found: "wasm" not in found)

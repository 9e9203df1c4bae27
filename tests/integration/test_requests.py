"""Intentions on HTTP requests, tokens, gRPC and load balancing, on a mesh file: an older Consul can hold none of it."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp import web
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from tests.integration.entries import Entries
from tests.integration.requests import Answer, request, until
from xds.lab.mesh import Lab, Member
from xds.lab.processes import eventually, run_to_end

PORT = 80


@dataclass
class Asked:
    """web and job call api, of which there are two, and rpc."""

    lab: Lab
    web: Member
    job: Member
    api: tuple[Member, Member]
    addresses: dict[str, str]

    async def ask(self, path: str = "/", method: str = "GET", by: str = "web", **headers: str) -> Answer:
        caller = self.web if by == "web" else self.job
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await request(caller.host, f"http://{self.addresses['api']}:{PORT}{path}", method, named)

    async def status(self, path: str = "/", method: str = "GET", by: str = "web", **headers: str) -> int:
        return (await self.ask(path, method, by, **headers)).status


@pytest.fixture(scope="module")
async def asked() -> AsyncIterator[Asked]:
    async with Lab(mesh_file=True) as lab:
        for name, protocol in (("api", "http"), ("rpc", "grpc")):
            await lab.catalog.entry({"Kind": "service-defaults", "Name": name, "Protocol": protocol})
        for destination in ("api", "rpc"):
            await lab.catalog.intention("web", destination, "allow")
        members = await asyncio.gather(
            lab.member("web"),
            lab.member("job"),
            lab.member("api", instance="1", speaks="http"),
            lab.member("api", instance="2", speaks="http"),
            lab.member("rpc", speaks="grpc"),
        )
        await lab.served(*members)
        addresses = {name: (await lab.catalog.virtual_ips(name))[0] for name in ("api", "rpc")}
        yield Asked(lab, members[0], members[1], (members[2], members[3]), addresses)


def intentions(*sources: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"Kind": "service-intentions", "Name": "api", "Sources": list(sources), **more}


async def test_permissions_decide_in_order_by_path_header_and_method_for_each_source(asked: Asked) -> None:
    web = {
        "Name": "web",
        "Permissions": [
            {"Action": "deny", "HTTP": {"PathPrefix": "/admin"}},
            {"Action": "allow", "HTTP": {"PathPrefix": "/", "Methods": ["GET"]}},
            {"Action": "allow", "HTTP": {"PathExact": "/write", "Header": [{"Name": "x-role", "Prefix": "ed"}]}},
        ],
    }
    job = {"Name": "job", "Permissions": [{"Action": "allow", "HTTP": {"PathRegex": "/jobs/[0-9]+"}}]}
    async with Entries(asked.lab, intentions(web, job)):
        await until(lambda: asked.ask("/jobs/1", by="job"), "the job", lambda found: found.status == 200)
        assert await asked.status("/admin/x") == 403
        assert await asked.status("/x/../admin") == 403, "what a path means is settled first"
        assert await asked.status("/fine") == 200
        assert await asked.status("/write", "PUT") == 403
        assert await asked.status("/write", "PUT", x_role="editor") == 200
        assert await asked.status("/jobs/x", by="job") == 403
        assert await asked.status("/fine", by="job") == 403


async def test_without_an_intention_a_request_is_answered_with_403(asked: Asked) -> None:
    """job has no upstream then, so its own sidecar refuses; web's requests are refused by the other side."""
    async with Entries(asked.lab, intentions({"Name": "job", "Permissions": [{"Action": "deny"}]})):
        await until(lambda: asked.ask(by="job"), "the denial", lambda found: found.status == 403)


async def test_permissions_on_a_tcp_service_deny_and_are_reported(asked: Asked) -> None:
    entry = intentions({"Name": "web", "Permissions": [{"Action": "allow", "HTTP": {"PathPrefix": "/"}}]})
    defaults = {"Kind": "service-defaults", "Name": "api", "Protocol": "tcp"}

    async def problems() -> str:
        sidecars = await asked.lab.sidecars()
        return json.dumps(sidecars[asked.api[0].sidecar_id]["set_aside"])

    async with Entries(asked.lab, entry):
        await asked.lab.catalog.entry(defaults)
        await eventually("the report", problems, until=lambda found: "can't be seen with protocol 'tcp'" in found)
        await asked.lab.catalog.entry({**defaults, "Protocol": "http"})
        await until(asked.ask, "http again", lambda found: found.status == 200)
    assert "can't be seen" not in await problems()


class Issuer:
    """Signs tokens with a key that the mesh knows."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())

    def keys(self) -> dict[str, Any]:
        """Return the public keys that verify its tokens."""
        numbers = self._key.public_key().public_numbers()
        x, y = (_encoded(number.to_bytes(32, "big")) for number in (numbers.x, numbers.y))
        return {"keys": [{"kty": "EC", "crv": "P-256", "alg": "ES256", "kid": "1", "x": x, "y": y}]}

    def entry(self, **more: Any) -> dict[str, Any]:
        """Its config entry, which holds the keys unless ``more`` says where they are."""
        local = {"JWKS": base64.b64encode(json.dumps(self.keys()).encode()).decode()}
        return {
            "Kind": "jwt-provider",
            "Name": "okta",
            "Issuer": "https://okta",
            "JSONWebKeySet": {"Local": local},
            **more,
        }

    def token(self, **claims: Any) -> str:
        said = {"iss": "https://okta", "exp": int(time.time()) + 600, **claims}
        parts = ({"alg": "ES256", "kid": "1", "typ": "JWT"}, said)
        text = ".".join(_encoded(json.dumps(part).encode()) for part in parts)
        r, s = decode_dss_signature(self._key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{text}.{_encoded(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


async def test_a_token_is_required_and_its_claims_are_checked(asked: Asked) -> None:
    issuer, stranger = Issuer(), Issuer()
    admin = {"Providers": [{"Name": "okta", "VerifyClaims": [{"Path": ["perms", "role"], "Value": "admin"}]}]}
    entry = intentions(
        {
            "Name": "web",
            "Permissions": [
                {"Action": "allow", "HTTP": {"PathPrefix": "/admin"}, "JWT": admin},
                {"Action": "deny", "HTTP": {"PathPrefix": "/admin"}},
                {"Action": "allow", "HTTP": {"PathPrefix": "/"}},
            ],
        },
        JWT={"Providers": [{"Name": "okta"}]},
    )

    def bearer(by: Issuer, **claims: Any) -> dict[str, str]:
        return {"authorization": f"Bearer {by.token(**claims)}"}

    async with Entries(asked.lab, issuer.entry(), entry):
        await until(asked.ask, "a token to be wanted", lambda found: found.status == 403)
        assert await asked.status(**bearer(issuer)) == 200
        assert await asked.status(**bearer(stranger)) == 403
        assert await asked.status(**bearer(issuer, exp=1)) == 403
        assert await asked.status(**bearer(issuer, iss="https://other")) == 403
        assert await asked.status("/admin", **bearer(issuer)) == 403
        assert await asked.status("/admin", **bearer(issuer, perms={"role": "admin"})) == 200
        assert await asked.status("/admin", **bearer(issuer, perms={"role": ["user", "admin"]})) == 200
        assert await asked.status("/admin", **bearer(issuer, perms={"role": "user"})) == 403


@pytest.mark.parametrize("action", ["allow", "deny"])
async def test_a_request_without_a_valid_token_does_not_reach_a_broader_permission(asked: Asked, action: str) -> None:
    """As Consul: what an earlier permission matches is out of reach of the later ones, whatever the token."""
    issuer = Issuer()
    with_token = {"Action": action, "HTTP": {"PathPrefix": "/admin"}, "JWT": {"Providers": [{"Name": "okta"}]}}
    rest = {"Action": "allow", "HTTP": {"PathPrefix": "/"}}
    marker = {"Action": "deny", "HTTP": {"PathExact": f"/{action}-is-in-force"}}
    valid = {"authorization": f"Bearer {issuer.token()}"}
    permissions = {"Name": "web", "Permissions": [marker, with_token, rest]}
    async with Entries(asked.lab, issuer.entry(), intentions(permissions)):

        async def in_force() -> bool:
            decided = await asked.status(f"/{action}-is-in-force") == 403 and await asked.status("/") == 200
            return decided and await asked.status("/admin", **valid) == (200 if action == "allow" else 403)

        await eventually("the permissions", in_force)
        assert await asked.status("/admin") == 403
        assert await asked.status("/admin", authorization="Bearer garbage") == 403
        assert await asked.status("/admin", authorization=f"Bearer {Issuer().token()}") == 403


async def test_the_keys_of_a_provider_are_fetched(asked: Asked) -> None:
    issuer, host = Issuer(), asked.lab.host("keys")

    async def keys(_: web.Request) -> web.Response:
        return web.json_response(issuer.keys())

    server = web.Application()
    server.router.add_get("/keys", keys)
    runner = web.AppRunner(server)
    await runner.setup()
    listening = host.socket()
    listening.bind((host.address, 8089))
    try:
        await web.SockSite(runner, listening).start()
        remote = {"Remote": {"URI": f"http://{host.address}:8089/keys", "FetchAsynchronously": True}}
        wanted = intentions({"Name": "web", "Action": "allow"}, JWT={"Providers": [{"Name": "okta"}]})
        async with Entries(asked.lab, issuer.entry(JSONWebKeySet=remote), wanted):
            await until(asked.ask, "a token to be wanted", lambda found: found.status == 403)
            bearer = {"authorization": f"Bearer {issuer.token()}"}
            await until(lambda: asked.ask(**bearer), "the keys", lambda found: found.status == 200)
            assert await asked.status(authorization=f"Bearer {Issuer().token()}") == 403
    finally:
        await runner.cleanup()


async def test_a_provider_without_usable_keys_closes_what_needs_it_and_nothing_else(asked: Asked) -> None:
    needs = {"Action": "allow", "HTTP": {"PathPrefix": "/secret"}, "JWT": {"Providers": [{"Name": "gone"}]}}
    free = {"Action": "allow", "HTTP": {"PathPrefix": "/open"}}
    keys = base64.b64encode(b"no keys").decode()
    provider = {"Kind": "jwt-provider", "Name": "gone", "JSONWebKeySet": {"Local": {"JWKS": keys}}}
    async with Entries(asked.lab, provider, intentions({"Name": "web", "Permissions": [needs, free]})):
        await until(lambda: asked.ask("/open"), "the permissions", lambda found: found.status == 200)
        assert await asked.status("/secret") == 403
        sidecar = (await asked.lab.sidecars())[asked.api[0].sidecar_id]
        assert "jwt-provider/gone" in json.dumps(sidecar["set_aside"])


GRPC = """
import grpc, sys
with grpc.insecure_channel(sys.argv[1]) as channel:
    print(channel.unary_unary("/shop.Cart/Add")(b"tea", timeout=10).decode())
"""


async def test_grpc_is_carried_and_counted_by_method(asked: Asked) -> None:
    command = asked.web.host.command(sys.executable, "-c", GRPC, f"{asked.addresses['rpc']}:{PORT}")
    assert "rpc-1 /shop.Cart/Add tea" in await run_to_end(*command)
    rpc = next(member for member in asked.lab.members if member.service == "rpc")
    assert await asked.lab.stat(rpc, r"cluster\.local_app\.grpc\.shop\.Cart\.Add\.success") == 1


async def test_a_hash_policy_keeps_a_caller_on_one_instance(asked: Asked) -> None:
    by_user = {"Field": "header", "FieldValue": "x-user"}
    balancer = {"Policy": "ring_hash", "RingHashConfig": {"MinimumRingSize": 2048}, "HashPolicies": [by_user]}
    async with Entries(asked.lab, {"Kind": "service-resolver", "Name": "api", "LoadBalancer": balancer}):

        async def sticks() -> set[str | None]:
            return {(await asked.ask(x_user="a")).service for _ in range(12)}

        await eventually("the caller to stick", sticks, until=lambda found: len(found) == 1 and None not in found)
        users = {(await asked.ask(x_user=str(number))).service for number in range(30)}
        assert users == {"api-1", "api-2"}


async def test_the_instance_with_the_fewest_requests_is_chosen(asked: Asked) -> None:
    balancer = {"Policy": "least_request", "LeastRequestConfig": {"ChoiceCount": 10}}
    async with Entries(asked.lab, {"Kind": "service-resolver", "Name": "api", "LoadBalancer": balancer}):

        async def free_one_is_asked() -> bool:
            slow = asyncio.create_task(asked.ask("/?wait=1"))
            await asyncio.sleep(0)
            quick = [(await asked.ask()).service for _ in range(8)]
            return {*quick, (await slow).service} == {"api-1", "api-2"} and len(set(quick[1:])) == 1

        await eventually("the one that is free to be asked", free_one_is_asked)


async def test_a_virtual_service_has_an_address_and_follows_its_entry(asked: Asked) -> None:
    redirect = {"Kind": "service-resolver", "Name": "virtual", "Redirect": {"Service": "api"}}
    defaults = {"Kind": "service-defaults", "Name": "virtual", "Protocol": "http"}
    async with Entries(asked.lab, redirect, defaults):
        await asked.lab.catalog.intention("web", "virtual", "allow")
        address = (await asked.lab.catalog.virtual_ips("virtual"))[0]
        await until(
            lambda: request(asked.web.host, f"http://{address}/"),
            "api",
            lambda found: found.service in ("api-1", "api-2"),
        )
        await asked.lab.catalog.intention("web", "virtual", None)


async def test_a_chain_that_does_not_compile_is_set_aside_alone(asked: Asked) -> None:
    bad = {"Kind": "service-resolver", "Name": "rpc", "Redirect": {"Service": "api"}}
    async with Entries(asked.lab, bad):

        async def problems() -> str:
            return json.dumps((await asked.lab.sidecars())[asked.web.sidecar_id]["set_aside"])

        await eventually("the report", problems, until=lambda found: "mixes protocols" in found)
        assert await asked.status() == 200

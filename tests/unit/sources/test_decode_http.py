"""Routes, intentions and token providers: what is wrong with them is named with kind, entry and field."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from xds.mesh.chains import Router
from xds.mesh.intentions import Action
from xds.sources import decode


def routed(definition: Any, **target: Any) -> Any:
    """Return a chain with one route."""
    return {
        "Chain": {
            "Datacenter": "dc1",
            "Protocol": "http",
            "StartNode": "router:api",
            "Nodes": {
                "router:api": {
                    "Type": "router",
                    "Name": "api.default.default",
                    "Routes": [{"Definition": definition, "NextNode": "resolver:api"}],
                },
                "resolver:api": {"Type": "resolver", "Name": "api.default.default.dc1", "Resolver": {"Target": "t"}},
            },
            "Targets": {"t": {"Service": "api", "Datacenter": "dc1", **target}},
        }
    }


@pytest.mark.parametrize(
    ("definition", "words"),
    [
        (
            {"Match": {"HTTP": {"PathRegex": "/(a"}}},
            "service-router/api: Routes[0].Match.HTTP.PathRegex: the regular expression '/(a' does not compile",
        ),
        (
            {"Match": {"HTTP": {"Header": [{"Name": "x:y", "Present": True}]}}},
            "service-router/api: Routes[0].Match.HTTP.Header[0].Name: 'x:y' can't be the name of a header",
        ),
        ({"Match": {"HTTP": {"PathPrefix": "a"}}}, "Routes[0].Match.HTTP.PathPrefix: a path begins with a slash"),
        ({"Match": {"HTTP": {"PathPrefix": "/a", "PathExact": "/b"}}}, "Routes[0].Match.HTTP: give one of PathExact"),
        ({"Match": {"HTTP": {"Header": [{"Name": "x"}]}}}, "Match.HTTP.Header[0]: give one of Exact"),
        ({"Match": {"HTTP": {"Cookie": [{"Name": "x"}]}}}, "Routes[0].Match.HTTP.Cookie: unknown field"),
        ({"Match": {"HTTP": {"Methods": "GET"}}}, "Methods: expected a list of texts, not 'GET'"),
        ({"Destination": {"RequestTimeout": "soon"}}, "RequestTimeout: expected a duration such as 1m30s, not 'soon'"),
        ({"Destination": {"RetryOnStatusCodes": [99]}}, "RetryOnStatusCodes: expected numbers from 100 to 599"),
        ({"Destination": {"Mirror": "x"}}, "Routes[0].Destination.Mirror: unknown field"),
        ({"Destination": {"RequestHeaders": {"Set": {"host": "x"}}}}, "the Host header can't be changed this way"),
        ("route", "Routes[0]: expected fields, not 'route'"),
    ],
)
def test_a_route_that_can_not_be_followed_sets_its_chain_aside(definition: Any, words: str) -> None:
    assert words in str(decode.chain("api", routed(definition)).refusal)


def test_known_fields_without_effect_are_not_reported() -> None:
    definition = {
        "Match": {"HTTP": {"PathPrefix": "/a", "Header": None}},
        "Destination": {"Service": "api", "Namespace": "default", "RequestTimeout": "-1s", "NumRetries": 0},
    }
    chain = decode.chain("api", routed(definition, ConnectTimeout="250ms"))
    assert chain.refusal is None
    router = chain.nodes[chain.start]
    assert isinstance(router, Router)
    assert router.routes[0].request_timeout_ms == 0, "a negative timeout is none at all"
    assert chain.targets["t"].connect_timeout_ms == 250


def test_a_peer_and_a_filter_on_an_unknown_field_are_refused() -> None:
    assert "peer 'east'" in str(decode.chain("api", routed({}, Peer="east")).refusal)
    subset = {"ServiceSubset": "v1", "Subset": {"Filter": "Checks.Status == passing"}}
    refusal = str(decode.chain("api", routed({}, **subset)).refusal)
    assert "service-resolver/api: Subsets['v1'].Filter:" in refusal


def intention(**more: Any) -> Any:
    return {"SourceName": "web", "DestinationName": "api", **more}


@pytest.mark.parametrize(
    ("permission", "words"),
    [
        ({"Action": "maybe"}, "Permissions[0].Action: expected 'allow' or 'deny'"),
        ({"Action": "allow", "HTTP": {"PathRegex": "["}}, "Permissions[0].HTTP.PathRegex: the regular expression"),
        (
            {"Action": "allow", "HTTP": {"QueryParam": [{"Name": "x", "Present": True}]}},
            "Permissions[0].HTTP.QueryParam: unknown field",
        ),
        ({"Action": "allow", "GRPC": {}, "Cel": "x"}, "Permissions[0].Cel: unknown field"),
        (
            {"Action": "allow", "JWT": {"Providers": [{"VerifyClaims": []}]}},
            "Permissions[0].JWT.Providers[0].Name: a JWT provider",
        ),
    ],
)
def test_a_permission_that_can_not_be_followed_denies_its_source(permission: Any, words: str) -> None:
    [found] = decode.intentions([intention(Permissions=[permission])])
    assert found.action is Action.DENY
    assert any(said.startswith(f"service-intentions/api: source 'web': {words}") for said in found.problems)
    assert "source 'web' is denied for that" in found.problems[-1]


def provider(**more: Any) -> list[str]:
    entry = {"Kind": "jwt-provider", "Name": "okta", "Issuer": "x", **more}
    return [str(problem) for problem in decode.config_entries([entry]).problems]


def keys(content: Any) -> Any:
    return {"Local": {"JWKS": base64.b64encode(json.dumps(content).encode()).decode()}}


@pytest.mark.parametrize(
    ("key_set", "words"),
    [
        ({}, "JSONWebKeySet: expected the keys, Local or Remote"),
        ({"Local": {"JWKS": "%%"}}, "expected a JSON Web Key Set in base64"),
        (keys("garbage"), "expected a JSON Web Key Set in base64"),
        (keys({"keys": []}), "with a key of type EC"),
        (keys({"keys": [{"kty": "dog"}]}), "with a key of type EC"),
        ({"Remote": {"URI": "ftp://x"}}, "URI: expected an http or https address"),
        ({"Remote": {"URI": "https://x", "CacheDuration": "-1s"}}, "CacheDuration: expected a duration of at least"),
        (
            {
                "Remote": {
                    "URI": "https://x",
                    "RetryPolicy": {"RetryPolicyBackOff": {"BaseInterval": "2s", "MaxInterval": "1s"}},
                }
            },
            "MaxInterval: expected no less than BaseInterval",
        ),
    ],
)
def test_a_token_provider_that_can_not_be_used_is_named(key_set: Any, words: str) -> None:
    said = provider(JSONWebKeySet=key_set)
    assert any(problem.startswith("jwt-provider/okta: ") and words in problem for problem in said), said


def test_a_usable_token_provider_is_used() -> None:
    entry = {"Kind": "jwt-provider", "Name": "okta", "JSONWebKeySet": keys({"keys": [{"kty": "EC"}]})}
    found = decode.config_entries([entry])
    assert not found.problems
    assert found.token_providers["okta"].clock_skew_s == 30

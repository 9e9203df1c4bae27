"""The public listener: its address, and what judges connections and requests."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.facts import make_sidecar
from xds.envoy.inbound import Admission, inbound_routes, public
from xds.envoy.jwt import authentication
from xds.envoy.overrides import OverrideError
from xds.mesh.config_entries import MeshSettings, ProxyMode, ProxySettings
from xds.mesh.intentions import Action, Intention, TokenCheck, TokenProvider
from xds.mesh.names import as_written
from xds.policy.intentions import IntentionIndex, connection_policy, request_policy
from xds.wire.envoy.config import listener_pb2 as listener
from xds.wire.envoy.extensions import http_connection_manager_pb2 as manager


def admission(*intentions: Intention, providers: tuple[TokenProvider, ...] = ()) -> Admission:
    decisions = IntentionIndex(intentions).to_destination("web", as_written)
    return Admission(
        connection_policy(decisions, default_allow=False),
        request_policy(decisions, default_allow=False),
        {provider.name: provider for provider in providers},
    )


def filters(settings: ProxySettings) -> list[str]:
    """Return the names of the filters that a connection or a request passes."""
    message = public(make_sidecar("web"), settings, MeshSettings(), admission(), "td")
    found = message.filter_chains[0].filters
    config = manager.HttpConnectionManager()
    if found[-1].typed_config.Unpack(config):
        return [each.name.removeprefix("envoy.filters.http.") for each in config.http_filters]
    return [each.name.removeprefix("envoy.filters.network.") for each in found]


def test_the_names_equal_those_of_consul() -> None:
    sidecar = make_sidecar("web", address="")
    found = public(sidecar, ProxySettings(), MeshSettings(), admission(), "td")
    assert found.name == "public_listener:0.0.0.0:20000"
    settings = ProxySettings(bind_address="10.1.1.1", bind_port=21000)
    assert public(sidecar, settings, MeshSettings(), admission(), "td").name == "public_listener:10.1.1.1:21000"


def test_the_filters_are_those_of_the_protocol() -> None:
    for protocol, expected in (
        (None, ["rbac", "tcp_proxy"]),
        ("mysql", ["rbac", "tcp_proxy"]),
        ("http", ["jwt_authn", "rbac", "router"]),
        ("http2", ["jwt_authn", "rbac", "router"]),
        ("grpc", ["grpc_stats", "grpc_http1_bridge", "jwt_authn", "rbac", "router"]),
    ):
        assert filters(ProxySettings(protocol=protocol)) == expected


def test_intentions_and_tokens_leave_the_listener_of_requests_alone() -> None:
    intention = Intention("api", "web", Action.ALLOW, tokens=(TokenCheck("okta"),))
    provider = TokenProvider("okta", keys="{}")
    http, sidecar = ProxySettings(protocol="http"), make_sidecar("web")
    before, after = admission(), admission(intention, providers=(provider,))
    assert public(sidecar, http, MeshSettings(), before, "td") == public(sidecar, http, MeshSettings(), after, "td")
    assert inbound_routes(http, before, "td") != inbound_routes(http, after, "td")
    assert authentication(before.used_providers()) != authentication(after.used_providers())
    assert admission(intention).missing_providers() == ["okta"]


CHAIN = {
    "filters": [
        {
            "name": "envoy.filters.network.tcp_proxy",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                "stat_prefix": "mine",
                "cluster": "local_app",
                "idle_timeout": "7s",
            },
        }
    ]
}
MANAGER = {
    "filters": [
        {
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3"
                ".HttpConnectionManager",
                "stat_prefix": "mine",
                "server_name": "mine",
                "route_config": {"virtual_hosts": []},
                "http_filters": [
                    {
                        "name": "envoy.filters.http.router",
                        "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
                    }
                ],
            },
        }
    ]
}
ADDRESS = {"socket_address": {"address": "0.0.0.0", "port_value": 20000}}


def given(**more: Any) -> ProxySettings:
    return ProxySettings(public_listener_json=json.dumps({"address": ADDRESS, **more}))


def test_a_listener_from_a_user_has_the_meshs_tls_and_intentions_in_every_chain() -> None:
    chains = [{**CHAIN, "name": "a", "filter_chain_match": {"destination_port": 1}}, MANAGER]
    settings = given(filter_chains=chains, listener_filters_timeout="3s")
    message = public(make_sidecar("web"), settings, MeshSettings(), admission(), "td")
    assert message.name == "public_listener:10.0.0.1:20000"
    assert all(chain.transport_socket.name == "envoy.transport_sockets.tls" for chain in message.filter_chains)
    assert message.filter_chains[0].filters[0].name == "envoy.filters.network.rbac"
    config = manager.HttpConnectionManager()
    message.filter_chains[1].filters[0].typed_config.Unpack(config)
    assert [each.name for each in config.http_filters][:2] == [
        "envoy.filters.http.jwt_authn",
        "envoy.filters.http.rbac",
    ]
    body = message.SerializeToString()
    assert b"mine" in body
    assert body == listener.Listener.FromString(body).SerializeToString()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"filter_chains": []}, "filter_chains: there are none"),
        ({"filter_chains": [{}]}, "filters: there are none"),
        ({"filter_chains": [CHAIN], "default_filter_chain": CHAIN}, "default_filter_chain"),
        ({"filterChains": [CHAIN], "apiListener": {}}, "api_listener"),
        ({"filter_chains": [CHAIN], "DEFAULT-FilterChain": CHAIN}, "default_filter_chain"),
        ({"filter_chains": [CHAIN], "metadata": {"filter_metadata": {"x": {"rds": {}}}}}, "rds"),
        ({"filter_chains": [{"filters": [{"name": "x"}]}]}, "no typed_config"),
        ({"filter_chains": [CHAIN], "nme": "x"}, "nme"),
        (
            {
                "filter_chains": [CHAIN],
                "metadata": {"filter_metadata": {"x": {"Typed-PerFilterConfig": {"envoy.filters.http.rbac": {}}}}},
            },
            "is the mesh's",
        ),
    ],
)
def test_a_listener_that_can_not_be_protected_is_refused(more: dict[str, Any], words: str) -> None:
    with pytest.raises(OverrideError) as caught:
        public(make_sidecar("web"), given(**more), MeshSettings(), admission(), "td")
    assert words in str(caught.value)


def test_permissive_needs_the_permission_of_the_mesh_entry() -> None:
    sidecar, settings = make_sidecar("web"), ProxySettings(mode=ProxyMode.TRANSPARENT, permissive_mtls=True)
    allowed = public(sidecar, settings, MeshSettings(allow_permissive_mtls=True), admission(), "td")
    assert [chain.filter_chain_match.destination_port.value for chain in allowed.filter_chains] == [0, 8080]
    assert len(public(sidecar, settings, MeshSettings(), admission(), "td").filter_chains) == 1

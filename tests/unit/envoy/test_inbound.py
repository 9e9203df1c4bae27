"""The public listener: its address, and what judges connections and requests."""

from __future__ import annotations

from tests.unit.facts import make_sidecar
from xds.envoy.inbound import Admission, inbound_routes, public
from xds.envoy.jwt import authentication
from xds.mesh.intentions import Action, Intention, TokenCheck, TokenProvider
from xds.mesh.settings import MeshSettings, ProxySettings
from xds.policy.intentions import IntentionIndex, connection_policy, request_policy
from xds.wire.envoy.config import listener_pb2 as listener
from xds.wire.envoy.extensions import http_connection_manager_pb2 as manager


def admission(*intentions: Intention, providers: tuple[TokenProvider, ...] = ()) -> Admission:
    decisions = IntentionIndex(intentions).to_destination("web")
    return Admission(
        connection_policy(decisions, default_allow=False),
        request_policy(decisions, default_allow=False),
        {provider.name: provider for provider in providers},
    )


def filters(settings: ProxySettings) -> list[str]:
    """The names of the filters that a connection or a request passes."""
    made = public(make_sidecar("web"), settings, MeshSettings(), admission(), "td")
    message = listener.Listener.FromString(made.body)
    found = message.filter_chains[0].filters
    config = manager.HttpConnectionManager()
    if found[-1].typed_config.Unpack(config):
        return [each.name.removeprefix("envoy.filters.http.") for each in config.http_filters]
    return [each.name.removeprefix("envoy.filters.network.") for each in found]


def test_the_names_are_consuls() -> None:
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

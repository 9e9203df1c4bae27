"""Consul's JSON into facts, sound and broken."""

from __future__ import annotations

from typing import Any

import pytest

from xds.mesh.config_entries import ExposedPath, ProxyMode
from xds.mesh.facts import Health, VirtualAddress
from xds.mesh.http import RequestMatch
from xds.mesh.intentions import Action, Intention, Permission, TokenCheck
from xds.sources import decode


def entry(checks: list[str] | None = None, **service: Any) -> dict[str, Any]:
    return {
        "Node": {"Node": "vm-1", "Address": "10.0.0.1"},
        "Service": {
            "Kind": "connect-proxy",
            "ID": "web-1-sidecar-proxy",
            "Service": "web-sidecar-proxy",
            "Address": "",
            "Port": 20000,
            "TaggedAddresses": {"virtual": {"Address": "240.0.0.5", "Port": 80}, "lan_ipv4": {"Address": "10.0.0.1"}},
            "Weights": {"Passing": 3, "Warning": 2},
            "Proxy": {"DestinationServiceName": "web", "LocalServicePort": 8080, "Config": {"mode": "transparent"}},
            "CreateIndex": 16,
            **service,
        },
        "Checks": [{"Status": status} for status in checks or ["passing"]],
    }


def test_exposed_paths_are_decoded_and_invalid_ones_reported() -> None:
    paths = [
        {"Path": "/health", "ListenerPort": 21500, "LocalPathPort": 8080},
        {"Path": "health", "ListenerPort": 1, "LocalPathPort": 1},
        {"Path": "/grpc", "ListenerPort": 1, "LocalPathPort": 1, "Protocol": "http3"},
        {"Path": "/", "ListenerPort": 99999, "LocalPathPort": 1},
    ]
    proxy = {"DestinationServiceName": "web", "Expose": {"Checks": True, "Paths": paths}}
    sidecar = decode.sidecar("n", {"ID": "x", "Proxy": proxy})
    assert sidecar.settings.exposed_paths == (ExposedPath("/health", 21500, 8080),)
    said = "\n".join(sidecar.problems)
    for words in ("Checks is not served", "'health' does not begin", "protocol 'http3'", "'/' needs a ListenerPort"):
        assert words in said


def test_an_instance_and_its_sidecar() -> None:
    [found] = decode.service_instances("web", [entry()]).instances
    assert (found.address, found.port, found.create_index) == ("10.0.0.1", 20000, 16)
    assert found.virtual_ips == (VirtualAddress("240.0.0.5", 80),)
    assert (found.weight_passing, found.weight_warning) == (3, 2)
    sidecar = found.sidecar
    assert sidecar is not None
    assert (sidecar.service, sidecar.local_service_address, sidecar.address) == ("web", "127.0.0.1", "")
    assert (sidecar.settings.mode, sidecar.settings.fallback_mode) == (None, ProxyMode.TRANSPARENT)


@pytest.mark.parametrize(
    ("checks", "expected"),
    [
        (["passing", "passing"], Health.PASSING),
        (["passing", "warning"], Health.WARNING),
        (["warning", "critical"], Health.CRITICAL),
        (["maintenance"], Health.CRITICAL),
    ],
)
def test_the_worst_check_counts(checks: list[str], expected: Health) -> None:
    [found] = decode.service_instances("web", [entry(checks)]).instances
    assert found.health is expected


@pytest.mark.parametrize(
    ("others", "expected"),
    [(["passing", "warning"], Health.MAINTENANCE), (["critical"], Health.CRITICAL), ([], Health.MAINTENANCE)],
)
def test_maintenance_is_distinguished_from_a_failing_check(others: list[str], expected: Health) -> None:
    for check_id in ("_node_maintenance", "_service_maintenance:web-1-sidecar-proxy"):
        made = entry(others)
        made["Checks"].append({"CheckID": check_id, "Status": "critical"})
        [found] = decode.service_instances("web", [made]).instances
        assert found.health is expected


def test_a_terminating_gateway_has_the_virtual_ip_of_the_service_in_its_own_tag() -> None:
    tags = {"consul-virtual:web": {"Address": "240.0.0.7"}, "virtual": {"Address": "10.0.0.9"}}
    [found] = decode.service_instances("web", [entry(Kind="terminating-gateway", TaggedAddresses=tags)]).instances
    assert found.virtual_ips == (VirtualAddress("240.0.0.7"),)
    assert found.sidecar is None


def test_settings_that_can_not_be_followed_are_reported() -> None:
    proxy = {
        "DestinationServiceName": "web",
        "Config": {"mode": "tranparent", "bind_port": "many", "local_connect_timeout_ms": "250"},
        "Upstreams": [
            {"DestinationName": "api", "LocalBindPort": 9191},
            {"DestinationName": "far", "LocalBindPort": 9192, "Datacenter": "dc2"},
            {"DestinationName": "query", "DestinationType": "prepared_query", "LocalBindPort": 9193},
            {"DestinationName": "peered", "DestinationPeer": "east", "LocalBindPort": 9197},
            {"DestinationName": "odd", "DestinationType": "odd", "LocalBindPort": 9198},
            {"DestinationName": "mode", "LocalBindSocketPath": "/run/x", "LocalBindSocketMode": "rw"},
            {"DestinationName": "port", "LocalBindPort": 70000},
            {"DestinationName": "host", "LocalBindPort": 9194, "LocalBindAddress": "localhost"},
            {"DestinationName": "../path", "LocalBindPort": 9195},
            {"DestinationName": "slow", "LocalBindPort": 9196, "Config": {"connect_timeout_ms": 1e25}},
            {"DestinationName": "*", "CentrallyConfigured": True},
        ],
    }
    [found] = decode.service_instances("web", [entry(Proxy=proxy)]).instances
    assert found.sidecar is not None
    assert found.sidecar.settings.local_connect_timeout_ms == 250
    assert found.sidecar.problems == (
        "upstream 'slow': Config.connect_timeout_ms: expected a number from 0 to 2147483647, not 1e+25;"
        " taken as not given",
        "Config.mode: expected 'transparent' or 'direct', not 'tranparent'; taken as not given",
        "Config.bind_port: expected a number from 0 to 2147483647, not 'many'; taken as not given",
    )
    refusals = {upstream.name: upstream.refusal for upstream in found.sidecar.upstreams}
    assert [refusals.pop(name) for name in ("api", "slow", "far", "query")] == [None] * 4
    assert refusals.keys() == {"peered", "odd", "mode", "port", "host", "../path"}
    assert all(refusals.values())


@pytest.mark.parametrize("limit", [2**70, "\ud83d"])
def test_unhashable_settings_are_decoded(limit: object) -> None:
    config = {"mode": "transparent", "max_inbound_connections": limit}
    [found] = decode.service_instances("web", [entry(Proxy={"Config": config})]).instances
    assert found.sidecar is not None
    assert found.sidecar.settings.fallback_mode is ProxyMode.TRANSPARENT
    [problem] = found.sidecar.problems
    assert "max_inbound_connections: expected a number" in problem


def test_intentions_of_this_cluster() -> None:
    okta = {"Providers": [{"Name": "okta"}]}
    found = decode.intentions(
        [
            {"SourceName": "web", "DestinationName": "api", "Action": "allow"},
            {"SourceName": "*", "DestinationName": "api", "Action": "deny"},
            {"SourceName": "web", "DestinationName": "db", "Action": "", "Permissions": [{"Action": "deny"}]},
            {"SourceName": "web", "DestinationName": "far", "Action": "allow", "SourcePeer": "east"},
            {"SourceName": "web", "DestinationName": "new", "Action": "something new"},
            {
                "SourceName": "web",
                "DestinationName": "jwt",
                "Action": "allow",
                "JWT": okta,
            },
        ]
    )
    assert set(found) == {
        Intention("web", "api", Action.ALLOW),
        Intention("*", "api", Action.DENY),
        Intention("web", "db", Action.PERMISSIONS, (Permission(False, RequestMatch()),)),
        Intention("web", "new", Action.DENY),
        Intention("web", "jwt", Action.ALLOW, tokens=(TokenCheck("okta"),)),
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5s", 5000), ("1m30s", 90_000), ("250ms", 250), ("1h", 3_600_000), ("1.5s", 1500), ("5", None), ("", None)],
)
def test_go_durations(text: str, expected: int | None) -> None:
    assert decode.milliseconds(text) == expected


def test_config_entries() -> None:
    found = decode.config_entries(
        [
            {"Kind": "proxy-defaults", "Name": "global", "Config": {"mode": "transparent"}, "Mode": ""},
            {"Kind": "service-defaults", "Name": "web", "Mode": "direct", "MaxInboundConnections": 0},
            {"Kind": "service-defaults", "Name": "api", "Mode": "sideways"},
            {"Kind": "mesh", "Name": "mesh", "TransparentProxy": {"MeshDestinationsOnly": True}},
            {"Kind": "service-router", "Name": "web", "Routes": None},
        ]
    )
    assert found.proxy_defaults.fallback_mode is ProxyMode.TRANSPARENT
    assert found.service_defaults["web"].mode is ProxyMode.DIRECT
    assert found.service_defaults["web"].max_inbound_connections is None
    assert found.mesh.destinations_only
    assert tuple(map(str, found.problems)) == (
        "service-defaults/api: Mode: expected 'transparent' or 'direct', not 'sideways'; taken as not given",
    )


@pytest.mark.parametrize(
    ("debug", "expected"),
    [
        ({"ACLsEnabled": False, "ACLDefaultPolicy": "deny"}, True),
        ({"ACLsEnabled": True, "ACLDefaultPolicy": "deny"}, False),
        ({"ACLsEnabled": True, "ACLDefaultPolicy": "allow"}, True),
        ({"ACLResolverSettings": {"ACLsEnabled": True, "ACLDefaultPolicy": "deny"}, "ACLsEnabled": True}, False),
        ({"ACLsEnabled": True, "ACLDefaultPolicy": "deny", "DefaultIntentionPolicy": "allow"}, True),
    ],
)
def test_the_default_for_intentions(debug: dict[str, Any], expected: bool) -> None:
    assert decode.agent_default_allow({"DebugConfig": debug}) is expected


@pytest.mark.parametrize("debug", [{}, {"ACLsEnabled": True}])
def test_an_agent_without_a_default_is_not_default_allow(debug: dict[str, Any]) -> None:
    with pytest.raises(KeyError):
        decode.agent_default_allow({"DebugConfig": debug})

"""A mesh file from what Consul answers; the integration tests do it with a real one."""

from __future__ import annotations

from typing import Any

import yaml

from xds.mesh.facts import VirtualAddress
from xds.sources.export import document
from xds.sources.file.document import parse
from xds.sources.file.facts import facts_of

AGENT = {"Config": {"Datacenter": "dc7"}, "DebugConfig": {"ACLsEnabled": True, "ACLDefaultPolicy": "deny"}}


def instance(node: str, service: dict[str, Any], *statuses: str) -> dict[str, Any]:
    checks = [{"Status": status} for status in statuses]
    return {"Node": {"Node": node, "Address": "10.0.0.9"}, "Service": service, "Checks": checks}


SIDECAR = {
    "Kind": "connect-proxy",
    "ID": "web-sidecar-proxy",
    "Service": "web-sidecar-proxy",
    "Port": 21000,
    "TaggedAddresses": {"consul-virtual": {"Address": "240.0.0.4", "Port": 80}, "lan": {"Address": "1.2.3.4"}},
    "Weights": {"Passing": 3, "Warning": 1},
    "Proxy": {
        "DestinationServiceName": "web",
        "DestinationServiceID": "web",
        "LocalServicePort": 8080,
        "Mode": "transparent",
        "TransparentProxy": {"OutboundListenerPort": 15009},
        "Expose": {"Paths": [{"Path": "/health", "ListenerPort": 21500, "LocalPathPort": 8080, "Protocol": "http"}]},
        "Upstreams": [{"DestinationName": "db", "DestinationType": "service", "LocalBindPort": 5432}],
    },
}
WEB = {"ID": "web", "Service": "web", "Port": 8080, "Meta": {"v": "1"}}


def exported(*instances: Any, entries: Any = (), intentions: Any = ()) -> tuple[Any, list[str]]:
    return document(AGENT, instances, entries, intentions)


def test_an_exported_mesh_can_be_served() -> None:
    data, left_out = exported(instance("n1", WEB), instance("n1", SIDECAR, "passing", "critical"))
    assert left_out == []
    facts = facts_of(parse("x", yaml.safe_dump(data)))
    assert (facts.datacenter, facts.default_allow) == ("dc7", False)
    found = facts.instances["web"].instances[0]
    assert (found.address, found.port, found.virtual_ips, found.weight_passing) == (
        "10.0.0.9",
        21000,
        (VirtualAddress("240.0.0.4", assigned=True),),
        3,
    )
    assert found.health.value == "critical"
    assert found.sidecar is not None
    assert found.sidecar.settings.outbound_listener_port == 15009
    assert found.sidecar.upstreams[0].name == "db"
    assert data["services"][1]["proxy"]["expose"]["paths"][0]["listener_port"] == 21500


def test_one_id_on_several_nodes_becomes_several() -> None:
    other = {**SIDECAR, "Address": "10.0.0.8"}
    data, left_out = exported(instance("n1", WEB), instance("n2", WEB), instance("n1", SIDECAR), instance("n2", other))
    assert [service["id"] for service in data["services"]] == [
        "web-n1", "web-n2", "web-sidecar-proxy-n1", "web-sidecar-proxy-n2",
    ]  # fmt: skip
    assert data["services"][2]["proxy"]["destination_service_id"] == "web-n1"
    assert "several nodes have a service with ID 'web': here it is 'web-n1'" in left_out


def test_intentions_of_either_age() -> None:
    old = [{"SourceName": "web", "DestinationName": "api", "Action": "allow", "Precedence": 9}]
    data, _ = exported(intentions=old)
    entry = {"Kind": "service-intentions", "Name": "api", "Sources": [{"Name": "web", "Action": "allow"}]}
    assert data["config_entries"]["bootstrap"] == [entry]
    source = {"Name": "web", "Action": "allow", "Precedence": 9, "Type": "consul", "LegacyCreateTime": "x"}
    newer = {**entry, "Sources": [source], "CreateIndex": 1, "ModifyIndex": 2}
    assert exported(entries=[newer])[0]["config_entries"]["bootstrap"] == [entry]


def test_what_can_not_be_exported_is_reported() -> None:
    data, left_out = document(None, [instance("n1", {**WEB, "Address": "web.example"})], [], [])
    assert data["services"] == []
    assert data["default_intention_policy"] == "deny"
    assert "agent:read" in left_out[0]
    assert "'web.example' is not an IP address" in left_out[1]
    entries = [{"Kind": "service-intentions", "Name": "api", "Sources": []}]
    assert "has to be put right by hand" in exported(entries=entries)[1][0]

"""A mesh file comes to the facts that Consul would give for the same registrations."""

from __future__ import annotations

from tests.unit.sources.file.meshes import document, intentions, service
from xds.mesh.config_entries import ProxyMode
from xds.mesh.facts import Health
from xds.mesh.http import Match, RequestMatch, TextMatch
from xds.mesh.intentions import Action, Intention, Permission
from xds.sources.file.facts import facts_of, warnings


def test_a_nested_sidecar_gets_consuls_defaults() -> None:
    facts = facts_of(document({"name": "web", "port": 8080, "connect": {"sidecar_service": {}}}))
    instance = facts.instances["web"].instances[0]
    assert (instance.service_id, instance.address, instance.port) == ("web-sidecar-proxy", "127.0.0.1", 21000)
    sidecar = instance.sidecar
    assert sidecar is not None
    assert (sidecar.service, sidecar.local_service_address, sidecar.local_service_port) == ("web", "127.0.0.1", 8080)
    assert instance.health is Health.PASSING
    assert sidecar.settings.mode is None


def test_a_separate_sidecar_equals_a_nested_one() -> None:
    nested = facts_of(document(service("web")))
    alone = facts_of(
        document(
            {"name": "web", "id": "web-1", "address": "10.118.0.1", "port": 8080},
            {
                "name": "web-sidecar-proxy",
                "id": "web-1-sidecar-proxy",
                "kind": "connect-proxy",
                "address": nested.instances["web"].instances[0].address,
                "port": 20000,
                "proxy": {
                    "destination_service_name": "web",
                    "destination_service_id": "web-1",
                    "local_service_port": 8080,
                    "mode": "transparent",
                },
            },
        )
    )
    assert alone.instances == nested.instances
    assert alone.service_names == nested.service_names == {"web"}


def test_a_nested_sidecar_is_as_healthy_as_its_service() -> None:
    facts = facts_of(document(service("api", check={"ttl": "10s", "status": "critical"})))
    assert facts.instances["api"].instances[0].health is Health.CRITICAL


def test_settings_upstreams_and_entries_are_decoded() -> None:
    sidecar = {
        "port": 20000,
        "proxy": {
            "transparent_proxy": {"outbound_listener_port": 15009},
            "config": {"bind_port": 20010},
            "upstreams": [{"destination_name": "db", "local_bind_port": 5432}],
        },
    }
    facts = facts_of(
        document(
            service("web", connect={"sidecar_service": sidecar}),
            entries=[
                {"Kind": "proxy-defaults", "Name": "global", "Mode": "transparent"},
                {"Kind": "service-defaults", "Name": "web", "MaxInboundConnections": 7},
                {"Kind": "mesh", "TransparentProxy": {"MeshDestinationsOnly": True}},
                {"Kind": "service-resolver", "Name": "db", "ConnectTimeout": "2s"},
                {"Kind": "service-resolver", "Name": "x", "Redirect": {"Service": "y"}},
                {"Kind": "service-splitter", "Name": "z", "Splits": [{"Weight": 100, "Service": "db"}]},
            ],
        )
    )
    settings = facts.instances["web"].instances[0].sidecar
    assert settings is not None
    assert (settings.settings.outbound_listener_port, settings.settings.bind_port) == (15009, 20010)
    assert [(upstream.name, upstream.local_bind_port) for upstream in settings.upstreams] == [("db", 5432)]
    assert facts.entries.proxy_defaults.mode is ProxyMode.TRANSPARENT
    assert facts.entries.service_defaults["web"].max_inbound_connections == 7
    assert facts.entries.mesh.destinations_only
    assert [target.connect_timeout_ms for target in facts.chains["db"].targets.values()] == [2000]
    assert [target.service for target in facts.chains["x"].targets.values()] == ["y"]
    assert "service-splitter/z: protocol 'tcp' has no requests to divide" in str(facts.chains["z"].refusal)


def test_intentions_and_who_may_call() -> None:
    permissions = [{"Action": "allow", "HTTP": {"PathPrefix": "/"}}]
    entry = intentions("api", web="allow", anyone="deny")
    entry["Sources"].append({"Name": "http", "Permissions": permissions})
    entry["Sources"].append({"Name": "far", "Action": "allow", "Peer": "elsewhere"})
    facts = facts_of(document(service("api"), entries=[entry, intentions("*", anyone="allow")]))
    everything = RequestMatch(TextMatch(Match.PREFIX, "/"))
    assert set(facts.intentions) == {
        Intention("web", "api", Action.ALLOW),
        Intention("*", "api", Action.DENY),
        Intention("http", "api", Action.PERMISSIONS, (Permission(True, everything),)),
        Intention("*", "*", Action.ALLOW),
    }
    assert facts.callers("api") == "web"
    assert facts.callers("other") == "everybody"


def test_a_token_belongs_to_a_service_unless_its_sidecar_has_one() -> None:
    facts = facts_of(
        document(
            service("api", 1, token="one"),
            service("api", 2, connect={"sidecar_service": {"port": 1, "token": "two"}}),
        )
    )
    assert facts.tokens == {"api": {"one", "two"}}
    assert facts.declares_tokens


def test_a_separate_sidecar_has_the_token_of_its_service() -> None:
    sidecar = {"name": "p", "kind": "connect-proxy", "port": 1, "proxy": {"destination_service_name": "web"}}
    facts = facts_of(document({"name": "web", "port": 2, "token": "secret"}, sidecar))
    assert facts.tokens == {"web": {"secret"}}


def test_an_intention_of_another_partition_is_ignored() -> None:
    entry = {"Kind": "service-intentions", "Name": "web"}
    entry["Sources"] = [{"Name": "api", "Action": "allow", "Partition": "other"}]  # type: ignore[assignment]
    assert facts_of(document(service("web"), entries=[entry])).intentions == ()


def test_an_uncontested_virtual_ip_is_kept_and_conflicts_are_named() -> None:
    nested = {"port": 1, "tagged_addresses": {"virtual": {"address": "10.96.0.1", "port": 80}}}
    facts = facts_of(document(service("api", connect={"sidecar_service": nested}), service("db"), service("web")))
    assert facts.claimed("api") == ("10.96.0.1",)
    assert facts.without_virtual_ip() == ["db", "web"]


def test_an_application_that_speaks_mutual_tls_itself_is_in_the_mesh() -> None:
    facts = facts_of(document({"name": "native", "port": 9, "connect": {"native": True}}))
    assert facts.instances["native"].instances[0].sidecar is None
    assert facts.instances["native"].instances[0].port == 9


def test_a_likely_mistake_is_a_warning() -> None:
    upstreams = {"port": 20000, "proxy": {"upstreams": [{"destination_name": "nope", "local_bind_port": 1}]}}
    checked = document(
        service("web", connect={"sidecar_service": upstreams}),
        {"name": "bare"},
        {"name": "gate", "kind": "mesh-gateway"},
        entries=[
            intentions("web", wep="allow"),
            {"Kind": "exported-services", "Name": "default"},
            {"Kind": "service-router", "Name": "web", "Routes": []},
        ],
    )
    found = warnings(checked, facts_of(checked))
    said = "\n".join(text for _, text in found)
    for words in (
        "the upstream 'nope' is no service of this file",
        "'bare' has no sidecar",
        "a mesh-gateway is not served yet",
        "the intention's source 'wep' is unknown here",
        "an exported-services is not followed yet".replace("an ", "a "),
        "'web' is set aside as an upstream",
    ):
        assert words in said

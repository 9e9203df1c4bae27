"""The bootstrap. That Envoy takes it is for `tests.integration.test_bootstrap` to show."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from xds.envoy import bootstrap, names
from xds.mesh.addresses import HostPort

INPUTS = bootstrap.BootstrapInputs(
    "web-1-sidecar-proxy",
    "web",
    "vm-7",
    (HostPort("10.0.0.5", 18000), HostPort("10.0.0.6", 18000)),
    HostPort("127.0.0.1", 19000),
    "secret",
    "dc1",
)


def test_a_bootstrap_has_the_identity_of_the_sidecar_and_its_control_planes() -> None:
    made = bootstrap.sidecar_bootstrap(INPUTS)
    assert made["node"] == {"id": "web-1-sidecar-proxy", "cluster": "web", "metadata": {"node_name": "vm-7"}}
    ads = made["dynamic_resources"]["ads_config"]
    assert (ads["api_type"], ads["set_node_on_first_message_only"]) == ("DELTA_GRPC", True)
    assert ads["grpc_services"][0]["initial_metadata"] == [{"key": "x-consul-token", "value": "secret"}]
    [cluster] = made["static_resources"]["clusters"]
    endpoints = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    addresses = [e["endpoint"]["address"]["socket_address"]["address"] for e in endpoints]
    assert (cluster["name"], addresses) == ("local_agent", ["10.0.0.5", "10.0.0.6"])


def test_host_names_are_resolved_by_envoy() -> None:
    made = bootstrap.sidecar_bootstrap(
        bootstrap.BootstrapInputs(
            "a", "a", "", (HostPort("gossamer.example", 18000),), HostPort("127.0.0.1", 19000), "", ""
        )
    )
    assert made["static_resources"]["clusters"][0]["type"] == "STRICT_DNS"


@pytest.mark.parametrize("datacenter", ["dc1", ""])
def test_a_control_plane_of_the_mesh_is_verified_by_its_identity(datacenter: str) -> None:
    identity = names.ControlPlaneIdentity("1234-abcd.consul", datacenter)
    tls = bootstrap.ControlPlaneTls("PEM", identity=identity)
    made = bootstrap.sidecar_bootstrap(replace(INPUTS, tls=tls))
    socket = made["static_resources"]["clusters"][0]["transport_socket"]["typed_config"]
    verified = socket["common_tls_context"]["validation_context"]
    assert verified["trusted_ca"] == {"inline_string": "PEM"}
    assert "watched_directory" not in verified
    (expected,) = verified["match_typed_subject_alt_names"]
    assert expected["san_type"] == "URI"
    right = "spiffe://1234-abcd.consul/ns/default/dc/dc1/svc/gossamer"
    wrong = [
        right.replace("gossamer", other) for other in ("web", "Gossamer", "gossamer2", "x/gossamer", "gossamer/x", "")
    ]
    wrong += [right.replace("-", "x"), right.replace("/ns/default", ""), f"x{right}", right.replace("dc1", "a/b")]
    pattern = expected["matcher"].get("safe_regex", {"regex": re.escape(expected["matcher"].get("exact", ""))})["regex"]
    for matches in (pattern, identity.pattern()):
        assert re.fullmatch(matches, right)
        assert not any(re.fullmatch(matches, each) for each in wrong)


def test_consuls_tags_are_read_from_our_stat_names() -> None:
    stat = f"cluster.{names.service_cluster('api', 'dc1', '1234-abcd.consul')}.upstream_cx_total"
    tags = {
        tag["tag_name"]: tag.get("regex") for tag in bootstrap.sidecar_bootstrap(INPUTS)["stats_config"]["stats_tags"]
    }
    found = {
        name.removeprefix("consul.destination."): match[2]
        for name, regex in tags.items()
        if regex and (match := re.search(regex, stat))
    }
    assert found == {"service": "api", "namespace": "default", "datacenter": "dc1", "trust_domain": "1234-abcd.consul"}

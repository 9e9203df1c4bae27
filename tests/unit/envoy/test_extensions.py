"""Envoy extensions: what is refused, and that nothing gets in front of the intentions."""

from __future__ import annotations

import json
from typing import Any

import pytest

from xds.envoy.clusters import Here, service_cluster
from xds.envoy.extensions import INBOUND, OUTBOUND, ExtensionError, Extensions
from xds.envoy.http_connection_managers import inbound, network_filter
from xds.mesh.chains import Target
from xds.mesh.config_entries import Extension, MeshSettings, ProxySettings, UpstreamSettings
from xds.wire.envoy.config import cluster_pb2 as cluster
from xds.wire.envoy.config import listener_pb2 as listener
from xds.wire.envoy.extensions import http_connection_manager_pb2 as manager


def extension(name: str, *, required: bool = False, **arguments: Any) -> Extension:
    return Extension(f"builtin/{name}", required, json.dumps(arguments))


def patch(path: str, value: Any = 1, kind: str = "cluster", **more: Any) -> Extension:
    chosen = {"ResourceType": kind, "TrafficDirection": "outbound"}
    return extension(
        "property-override",
        Patches=[{"ResourceFilter": chosen, "Op": "add", "Path": path, **more} | ({"Value": value})],
    )


def test_a_filter_runs_after_the_intentions_and_a_limit_before_them() -> None:
    made = Extensions(
        [
            extension("lua", Listener="inbound", Script="x = 1"),
            extension("http/localratelimit", MaxTokens=1, FillInterval=1),
        ]
    )
    assert not made.problems
    chain = listener.FilterChain(filters=[network_filter(inbound(ProxySettings(protocol="http"), MeshSettings()))])
    message = listener.Listener(filter_chains=[chain])
    made.into_listener(message, INBOUND)
    http = manager.HttpConnectionManager()
    message.filter_chains[0].filters[0].typed_config.Unpack(http)
    names = [each.name.removeprefix("envoy.filters.http.") for each in http.http_filters]
    assert names == ["local_ratelimit", "jwt_authn", "rbac", "lua", "router"]
    untouched = listener.Listener(filter_chains=[chain])
    made.into_listener(untouched, OUTBOUND)
    assert untouched.filter_chains[0] == chain


def test_a_property_is_set_however_deep() -> None:
    resource = service_cluster("c", Target("api"), Here("dc1", "td"), "tcp", UpstreamSettings())
    made = Extensions(
        [patch("/upstream_connection_options/tcp_keepalive/keepalive_probes", 7), patch("/cleanup_interval", "3s")]
    )
    patched = made.patched(resource, OUTBOUND, "api")
    assert patched.endpoints == resource.endpoints
    assert patched.version != resource.version
    message = cluster.Cluster.FromString(patched.body)
    assert message.transport_socket == cluster.Cluster.FromString(resource.body).transport_socket
    assert made.patched(resource, INBOUND) is resource


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (extension("wasm"), "unknown extension"),
        (extension("lua", Listener="sideways", Script="x"), "Listener: expected 'inbound'"),
        (extension("lua", Listener="inbound"), "Script: expected a script"),
        (extension("lua", Listener="inbound", Script="x", Lua="y"), "Arguments.Lua: unknown field"),
        (extension("http/localratelimit", MaxTokens=0, FillInterval=1), "more than 0"),
        (extension("http/localratelimit"), "'MaxTokens' is missing"),
        (extension("otel-access-logging", Listener="inbound", Config={}), "Target.URI"),
        (extension("property-override", Patches=[]), "at least one"),
        (patch("/no_such_field"), "no field 'no_such_field'"),
        (patch("/connect_timeout", "soon"), "Patches[0]"),
        (patch("/load_assignment/endpoints/locality"), "a list or a map"),
        (patch("/transport_socket/name", "raw"), "can't be overridden"),
        (patch("/filter_chains", [], kind="listener"), "can't be overridden"),
        (patch("/x", kind="secret"), "ResourceType"),
    ],
)
def test_an_extension_that_can_not_be_applied_is_named_and_left_out(given: Extension, words: str) -> None:
    [problem] = Extensions([given]).problems
    assert words in problem
    with pytest.raises(ExtensionError, match="EnvoyExtensions"):
        Extensions([Extension(given.name, True, given.arguments)])

"""Tests of leaving out of a sidecar's own resources what its Envoy rejected."""

from __future__ import annotations

import json
from dataclasses import replace

from tests.unit.control.bench import Bench
from tests.unit.facts import ROOTS, make_leaf, make_sidecar
from xds.ads.messages import Rejection
from xds.control.closed import closed_listener, closed_to_all
from xds.control.rejections import Part, Rejections
from xds.control.sidecar_inputs import SidecarInputs
from xds.control.sidecar_resources import own_resources
from xds.envoy import names
from xds.envoy.resource import EXTENSION, LISTENER, SCOPED_ROUTE
from xds.mesh.config_entries import AccessLogs, Extension, ProxyMode, ProxySettings
from xds.wire.envoy.config import listener_pb2 as listener
from xds.wire.envoy.extensions import network_rbac_pb2

PUBLIC = "public_listener:10.0.0.1:20000"
SETTINGS = ProxySettings(mode=ProxyMode.TRANSPARENT, protocol="tcp", access_logs=AccessLogs(sink="stdout"))


def rejection(reason: str, name: str = PUBLIC, type_url: str = LISTENER) -> Rejection:
    return Rejection(type_url, name, "1", reason)


def attempts(reason: str, *present: Part) -> list[set[Part]]:
    """Return what is left out, one rejection after the other, until a listener is closed."""
    found = Rejections()
    found.follow(SETTINGS, ())
    tried: list[set[Part]] = []
    while found.rejected([rejection(reason)], present) and not found.left_out.closed:
        tried.append(set(found.left_out.parts))
    assert found.left_out.closed == {PUBLIC}
    return tried


def test_the_part_that_envoy_names_is_left_out_first_and_all_parts_last() -> None:
    logs, extensions = Part.ACCESS_LOGS, Part.EXTENSIONS
    assert attempts("script load error", logs, extensions) == [{extensions}, {logs}, {logs, extensions}]
    assert attempts("unable to open file '/x'", logs, extensions) == [{logs}, {extensions}, {logs, extensions}]
    assert attempts("something else", logs) == [{logs}]
    assert attempts("something else") == []


def test_a_listener_that_the_host_prevents_stays_unchanged() -> None:
    found = Rejections()
    found.follow(SETTINGS, ())
    assert not found.rejected([rejection("cannot bind '10.0.0.1:20000': Address already in use")], [Part.ACCESS_LOGS])
    assert found.left_out.reasons == ()


def test_a_changed_text_is_tried_again() -> None:
    found = Rejections()
    found.follow(SETTINGS, ())
    assert found.rejected([rejection("bad")], [Part.ACCESS_LOGS])
    found.follow(SETTINGS, ())
    assert found.left_out.parts == {Part.ACCESS_LOGS}
    found.follow(replace(SETTINGS, access_logs=AccessLogs(sink="stderr")), ())
    assert found.left_out.parts == frozenset()


def test_tokens_that_can_not_be_verified_are_refused() -> None:
    found = Rejections()
    found.follow(SETTINGS, ())
    assert found.rejected([rejection("bad keys", names.JWT_EXTENSION, EXTENSION)], [])
    assert found.left_out.without_tokens
    assert "what needs one is denied: bad keys" in found.left_out.reasons[0]


def test_a_closed_listener_contains_nothing_from_users_and_denies_all() -> None:
    sidecar = make_sidecar("web")
    made = closed_listener(sidecar, SETTINGS, ROOTS, PUBLIC, dual_stack=False)
    assert made is not None
    decoded = listener.Listener.FromString(made.body)
    (chain,) = decoded.filter_chains
    rules = network_rbac_pb2.RBAC()
    assert chain.filters[0].typed_config.Unpack(rules)
    assert not rules.rules.policies, "to allow, with no policies, is to deny"
    assert not decoded.access_log
    assert closed_listener(sidecar, SETTINGS, ROOTS, "outbound_listener:127.0.0.1:15001", dual_stack=False) is None


def inputs_of_web(settings: ProxySettings) -> SidecarInputs:
    """Return what the resources of a sidecar with these settings are made of."""
    bench = Bench()
    bench.service("web", "240.0.0.1")
    bench.leaf("web")
    inputs = bench.connect("web")._inputs
    assert inputs is not None
    return replace(inputs, settings=settings, leaf=make_leaf("web"))


def test_where_the_policy_can_not_be_installed_requests_are_denied_as_well() -> None:
    http = inputs_of_web(replace(SETTINGS, protocol="http"))
    made = own_resources(http).resources
    closed = closed_to_all(http.sidecar, http.settings, http.roots, made, dual_stack=False)
    for type_url, name in ((LISTENER, PUBLIC), (SCOPED_ROUTE, names.INBOUND_SCOPE)):
        assert closed[type_url][name] != made[type_url][name]
    assert closed.keys() == made.keys()


def test_a_required_extension_is_never_left_out() -> None:
    """It may be what keeps callers out, so a listener that Envoy does not take with it is closed."""
    lua = json.dumps(
        {"ProxyType": "connect-proxy", "Listener": "inbound", "Script": "function envoy_on_request(h) end"}
    )
    required, optional = Extension("builtin/lua", required=True, arguments=lua), Extension("builtin/lua", False, lua)
    with_both = inputs_of_web(replace(SETTINGS, protocol="http", access_logs=None, extensions=(required, optional)))
    assert list(with_both.parts()) == [Part.EXTENSIONS]
    assert with_both.without({Part.EXTENSIONS}).settings.extensions == (required,)
    assert list(with_both.without({Part.EXTENSIONS}).parts()) == []

"""Settings, level by level."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.facts import make_sidecar
from xds.mesh.config_entries import ConfigEntries, ProxyMode, ProxySettings, UpstreamSettings
from xds.mesh.facts import ExplicitUpstream
from xds.policy.proxies import effective_settings, explicit_upstreams

T, D = ProxyMode.TRANSPARENT, ProxyMode.DIRECT


@pytest.mark.parametrize(
    ("registration", "service", "proxy", "fallback", "expected"),
    [
        (None, None, None, None, D),
        (None, None, None, T, T),
        (None, None, T, D, T),
        (None, D, T, T, D),
        (T, D, D, D, T),
    ],
)
def test_the_mode_is_that_of_the_first_setting_that_has_one(
    registration: ProxyMode | None,
    service: ProxyMode | None,
    proxy: ProxyMode | None,
    fallback: ProxyMode | None,
    expected: ProxyMode,
) -> None:
    sidecar = make_sidecar("web", settings=ProxySettings(mode=registration, fallback_mode=fallback))
    entries = ConfigEntries(ProxySettings(mode=proxy), {"web": ProxySettings(mode=service)})
    assert effective_settings(sidecar, entries).mode is expected


def test_other_settings_are_decoded_one_by_one() -> None:
    sidecar = make_sidecar("web", settings=ProxySettings(bind_port=1))
    entries = ConfigEntries(
        ProxySettings(bind_port=3, outbound_listener_port=3, bind_address="10.0.0.3"),
        {"web": ProxySettings(outbound_listener_port=2)},
    )
    found = effective_settings(sidecar, entries)
    assert (found.bind_port, found.outbound_listener_port, found.bind_address) == (1, 2, "10.0.0.3")


@pytest.mark.parametrize(
    ("own", "override", "registered", "default", "general", "expected"),
    [
        ("none", "local", "remote", "local", "local", "none"),
        (None, "none", "remote", "local", "local", "none"),
        (None, None, "remote", "local", "none", "remote"),
        (None, None, None, "local", "none", "local"),
        (None, None, None, None, "remote", "remote"),
        (None, None, None, None, None, None),
    ],
)
def test_the_mesh_gateway_mode_is_that_of_the_most_specific_setting(
    own: str | None,
    override: str | None,
    registered: str | None,
    default: str | None,
    general: str | None,
    expected: str | None,
) -> None:
    upstream = ExplicitUpstream("api", "", "127.0.0.1", 9191, settings=UpstreamSettings(mesh_gateway=own))
    sidecar = replace(make_sidecar("web", upstreams=(upstream,)), settings=ProxySettings(mesh_gateway=registered))
    said = ProxySettings(
        upstream_overrides={"api": UpstreamSettings(mesh_gateway=override)},
        upstream_defaults=UpstreamSettings(mesh_gateway=default),
    )
    entries = ConfigEntries(ProxySettings(mesh_gateway=general), {sidecar.service: said})
    assert [each.settings.mesh_gateway for each in explicit_upstreams(sidecar, entries)] == [expected]


def test_defaults_and_overrides_hold_for_upstreams_of_a_registration_but_not_for_prepared_queries() -> None:
    own = UpstreamSettings(connect_timeout_ms=100)
    service, query = (
        ExplicitUpstream("api", "", "127.0.0.1", port, settings=own, prepared_query=port == 2) for port in (1, 2)
    )
    sidecar = make_sidecar("web", upstreams=(service, query))
    limits = UpstreamSettings(connect_timeout_ms=300, protocol="http")
    entries = ConfigEntries(service_defaults={sidecar.service: ProxySettings(upstream_defaults=limits)})
    found = explicit_upstreams(sidecar, entries)
    assert found == (replace(service, settings=replace(limits, connect_timeout_ms=100)), query)

"""Tests of what an operator forbids the owners of services."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.facts import make_instance, make_sidecar
from xds.envoy.extensions import ExtensionError, Extensions
from xds.mesh.config_entries import ConfigEntries, Extension, ProxySettings, UpstreamSettings
from xds.mesh.facts import ExplicitUpstream, ServiceInstances
from xds.mesh.mesh import CONFIG_ENTRIES, Batch, Key, Kind
from xds.policy.forbidden import Forbidden

LUA = Extension("builtin/lua", required=False, arguments="{}")
JSON = ProxySettings(
    protocol="http",
    public_listener_json="{}",
    upstream_defaults=UpstreamSettings(cluster_json="{}", connect_timeout_ms=1),
    upstream_overrides={"api": UpstreamSettings(listener_json="{}")},
    extensions=(LUA,),
)
ENTRIES = ConfigEntries(proxy_defaults=replace(JSON, tracing_json="{}"), service_defaults={"web": JSON})


def entries(forbidden: Forbidden) -> ConfigEntries:
    found = forbidden.applied({CONFIG_ENTRIES: ENTRIES})[CONFIG_ENTRIES]
    assert isinstance(found, ConfigEntries)
    return found


def test_nothing_is_forbidden_by_default() -> None:
    batch: Batch = {CONFIG_ENTRIES: ENTRIES}
    assert Forbidden().applied(batch) is batch


def test_the_overrides_of_service_defaults_are_left_out_and_reported() -> None:
    found = entries(Forbidden(overrides=True))
    web = found.defaults_of("web")
    assert web.public_listener_json is None
    assert web.upstream_defaults == UpstreamSettings(connect_timeout_ms=1)
    assert web.upstream_overrides == {"api": UpstreamSettings()}
    assert (web.protocol, web.extensions) == ("http", (LUA,))
    assert found.proxy_defaults == ENTRIES.proxy_defaults
    told = [str(each) for each in found.problems]
    assert [text.split(": ")[:2] for text in told] == [
        ["service-defaults/web", "envoy_public_listener_json"],
        ["service-defaults/web", "UpstreamConfig.Defaults.envoy_cluster_json"],
        ["service-defaults/web", "UpstreamConfig.Overrides['api'].envoy_listener_json"],
    ]
    assert all("--forbid-overrides" in text for text in told)


def test_the_overrides_of_a_registration_are_left_out_and_reported() -> None:
    upstream = ExplicitUpstream(
        "api", "", "127.0.0.1", 9000, settings=UpstreamSettings(listener_json="{}", protocol="tcp")
    )
    sidecar = replace(make_sidecar("web"), settings=JSON, upstreams=(upstream,))
    instance = replace(make_instance("web"), sidecar=sidecar)
    key = Key(Kind.INSTANCES, "web")
    found = Forbidden(overrides=True).applied({key: ServiceInstances("web", (instance,))})[key]
    assert isinstance(found, ServiceInstances)
    allowed = found.instances[0].sidecar
    assert allowed is not None
    assert allowed.settings.public_listener_json is None
    assert allowed.upstreams[0].settings == UpstreamSettings(protocol="tcp")
    assert len(allowed.problems) == 4


@pytest.mark.parametrize("required", [False, True])
def test_a_forbidden_extension_is_left_out_or_where_it_is_required_refused(required: bool) -> None:
    given = ConfigEntries(service_defaults={"web": ProxySettings(extensions=(replace(LUA, required=required),))})
    found = Forbidden(extensions=True).applied({CONFIG_ENTRIES: given})[CONFIG_ENTRIES]
    assert isinstance(found, ConfigEntries)
    extensions = found.defaults_of("web").extensions or ()
    if required:
        with pytest.raises(ExtensionError, match="--forbid-extensions"):
            Extensions(extensions)
    else:
        assert "--forbid-extensions" in Extensions(extensions).problems[0]
    assert entries(Forbidden(extensions=True)).proxy_defaults.extensions == (LUA,)

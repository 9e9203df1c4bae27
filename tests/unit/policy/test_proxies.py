"""Settings, level by level."""

from __future__ import annotations

import pytest

from tests.unit.facts import make_sidecar
from xds.mesh.settings import ConfigEntries, ProxyMode, ProxySettings
from xds.policy.proxies import effective_settings

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
def test_the_mode_comes_from_the_first_that_says_one(
    registration: ProxyMode | None,
    service: ProxyMode | None,
    proxy: ProxyMode | None,
    fallback: ProxyMode | None,
    expected: ProxyMode,
) -> None:
    sidecar = make_sidecar("web", settings=ProxySettings(mode=registration, fallback_mode=fallback))
    entries = ConfigEntries(ProxySettings(mode=proxy), {"web": ProxySettings(mode=service)})
    assert effective_settings(sidecar, entries).mode is expected


def test_other_settings_are_taken_one_by_one() -> None:
    sidecar = make_sidecar("web", settings=ProxySettings(bind_port=1))
    entries = ConfigEntries(
        ProxySettings(bind_port=3, outbound_listener_port=3, bind_address="10.0.0.3"),
        {"web": ProxySettings(outbound_listener_port=2)},
    )
    found = effective_settings(sidecar, entries)
    assert (found.bind_port, found.outbound_listener_port, found.bind_address) == (1, 2, "10.0.0.3")

"""Implicit upstreams."""

from __future__ import annotations

import pytest

from xds.mesh.intentions import Action, Intention
from xds.policy.intentions import IntentionIndex
from xds.policy.upstreams import implicit_upstreams

NAMES = ["web", "api", "db", "consul", "web-sidecar-proxy"]


def upstreams(*intentions: Intention, default_allow: bool) -> set[str]:
    decisions = IntentionIndex(intentions).from_source("web")
    return set(implicit_upstreams("web", decisions, NAMES, default_allow=default_allow))


def test_with_default_allow_every_service_but_itself_and_consul() -> None:
    assert upstreams(default_allow=True) == {"api", "db", "web-sidecar-proxy"}


def test_with_default_deny_only_what_is_allowed() -> None:
    assert upstreams(Intention("web", "api", Action.ALLOW), default_allow=False) == {"api"}


def test_permissions_count_as_allow_whatever_they_say() -> None:
    assert upstreams(Intention("web", "api", Action.PERMISSIONS), default_allow=False) == {"api"}


@pytest.mark.parametrize("default_allow", [True, False])
def test_a_more_precise_denial_wins_over_a_wildcard(default_allow: bool) -> None:
    found = upstreams(
        Intention("*", "*", Action.ALLOW), Intention("web", "db", Action.DENY), default_allow=default_allow
    )
    assert found == {"api", "web-sidecar-proxy"}


def test_what_is_not_in_the_catalog_is_no_upstream_yet() -> None:
    assert upstreams(Intention("web", "later", Action.ALLOW), default_allow=False) == set()

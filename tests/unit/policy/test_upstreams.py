"""Implicit upstreams."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xds.mesh.intentions import Action, Intention
from xds.policy.intentions import IntentionIndex
from xds.policy.upstreams import Candidates

NAMES = ["web", "api", "db", "consul", "web-sidecar-proxy"]


def upstreams(*intentions: Intention, default_allow: bool) -> set[str]:
    reach = IntentionIndex(intentions).reach("web", default_allow=default_allow)
    return set(Candidates(NAMES).upstreams("web", reach))


NAME = st.sampled_from(["web", "api", "db", "Cart", "cart", "*"])
INTENTION = st.builds(Intention, NAME, NAME, st.sampled_from(Action))


@given(before=st.lists(INTENTION), after=st.lists(INTENTION), default_allow=st.booleans())
def test_an_updated_index_equals_a_new_one_and_follows_precedence(
    before: list[Intention], after: list[Intention], default_allow: bool
) -> None:
    index, candidates = IntentionIndex(before), Candidates([*NAMES, "Cart"])
    earlier = {source: index.reach(source, default_allow=default_allow) for source in candidates.names}
    sources, _ = index.replace(after)
    now = {source: index.reach(source, default_allow=default_allow) for source in candidates.names}
    for some in ([*now.items()][:2], [*now.items()]):
        union = frozenset().union(*(candidates.upstreams(source, reach) for source, reach in some))
        assert candidates.reached_by_any(some) == union
    fresh = IntentionIndex(after)
    for source in candidates.names:
        reach = index.reach(source, default_allow=default_allow)
        decided = {
            name: fresh.to_destination(name, candidates.spelled).action(source, default_allow=default_allow)
            for name in candidates.names - {source}
        }
        expected = {name for name, action in decided.items() if action is not Action.DENY}
        assert candidates.upstreams(source, reach) == expected
        assert candidates.names - candidates.denied(source, reach) >= expected
        assert {name for name in candidates.names - {source} if reach.includes(name)} == expected
        if not {source.lower(), "*"} & sources:
            assert reach == earlier[source]


def test_with_default_allow_all_services_except_itself_and_consul_are_upstreams() -> None:
    assert upstreams(default_allow=True) == {"api", "db", "web-sidecar-proxy"}


def test_with_default_deny_only_allowed_services_are_upstreams() -> None:
    assert upstreams(Intention("web", "api", Action.ALLOW), default_allow=False) == {"api"}


def test_a_source_with_permissions_counts_as_allowed() -> None:
    assert upstreams(Intention("web", "api", Action.PERMISSIONS), default_allow=False) == {"api"}


@pytest.mark.parametrize("default_allow", [True, False])
def test_a_more_precise_denial_wins_over_a_wildcard(default_allow: bool) -> None:
    found = upstreams(
        Intention("*", "*", Action.ALLOW), Intention("web", "db", Action.DENY), default_allow=default_allow
    )
    assert found == {"api", "web-sidecar-proxy"}


def test_a_service_outside_the_catalog_is_not_an_upstream_yet() -> None:
    assert upstreams(Intention("web", "later", Action.ALLOW), default_allow=False) == set()

"""Tests of service names that several namespaces claim."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from xds.kubernetes.claims import Claims


def test_the_namespace_of_the_older_service_has_the_name() -> None:
    claims = Claims()
    assert list(claims.claim(("evil", "a"), "web", "2026-01-02")) == []
    assert claims.owner("web") == "evil"
    assert list(claims.claim(("shop", "a"), "web", "2026-01-01")) == [("evil", "a")]
    assert claims.owner("web") == "shop"
    assert list(claims.claim(("evil", "b"), "web", "2026-01-03")) == []
    assert set(claims.claim(("shop", "a"), "", "")) == {("evil", "a"), ("evil", "b")}
    assert claims.owner("web") == "evil"


def test_a_pod_that_changes_its_service_gives_the_old_one_up() -> None:
    claims = Claims()
    claims.claim(("shop", "a"), "web", "1")
    claims.claim(("shop", "a"), "api", "1")
    assert (claims.owner("web"), claims.owner("api")) == ("", "shop")


PODS = st.tuples(st.sampled_from(["a", "b", "c"]), st.sampled_from(["1", "2"]))


@given(st.lists(st.tuples(PODS, st.sampled_from(["", "web", "api"]), st.sampled_from(["1", "2", "3"]))))
def test_every_pod_whose_owner_changes_is_named(steps: list[tuple[tuple[str, str], str, str]]) -> None:
    claims, of_pod = Claims(), dict[tuple[str, str], str]()
    for pod, service, since in steps:
        before = {other: claims.owner(name) for other, name in of_pod.items() if other != pod}
        named = set(claims.claim(pod, service, since))
        of_pod[pod] = service
        after = {other: claims.owner(name) for other, name in of_pod.items() if other != pod}
        assert named == {other for other in before if before[other] != after[other]}

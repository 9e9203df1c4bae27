"""Tests of service names that several namespaces claim."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from xds.kubernetes.claims import Claims


def test_a_service_of_the_name_precedes_an_annotation_and_then_the_older_one() -> None:
    claims = Claims()
    claims.claim("payments", ("evil", "old"), "2020")
    claims.claim("payments", ("late", "payments"), "2023")
    claims.claim("Payments", ("shop", "payments"), "2022")
    assert claims.owner("payments") == "shop"
    assert claims.owner("PAYMENTS") == "shop"


def test_an_owner_keeps_its_name_until_its_service_is_deleted() -> None:
    claims = Claims()
    claims.claim("web", ("shop", "web"), "2022")
    assert claims.owner("web") == "shop"
    claims.claim("web", ("evil", "web"), "2020")
    assert claims.owner("web") == "shop", "it has it already"
    assert not claims.release(("evil", "other"))
    assert claims.release(("shop", "web"))
    assert claims.owner("web") == "evil"
    claims.release(("evil", "web"))
    assert claims.owner("web") == ""


KEYS = st.tuples(st.sampled_from("abc"), st.sampled_from(["web", "api"]))
STEPS = st.lists(st.tuples(st.booleans(), KEYS, st.sampled_from(["web", "WEB", "api"]), st.sampled_from("123")))


@given(STEPS)
def test_an_owner_never_changes_while_its_service_is_there(steps: list[tuple[bool, tuple[str, str], str, str]]) -> None:
    claims, held = Claims(), dict[str, set[tuple[str, str]]]()
    owner = ""
    for released, key, name, since in steps:
        if released:
            claims.release(key)
            for each in held.values():
                each.discard(key)
        else:
            claims.claim(name, key, since)
            held.setdefault(name.lower(), set()).add(key)
        namespaces = {namespace for namespace, _ in held.get("web", ())}
        if owner in namespaces:
            assert claims.owner("web") == owner
        owner = claims.owner("web")
        assert (owner in namespaces) if namespaces else owner == ""

"""Precedence, and what it decides."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from xds.envoy.identities import admitted_identities, not_among
from xds.envoy.rbac import network_rbac
from xds.mesh.intentions import Action, Intention
from xds.mesh.names import WILDCARD, as_written, fold
from xds.mesh.spiffe import in_path, spiffe_id
from xds.policy.intentions import ConnectionPolicy, IntentionIndex, connection_policy, precedence
from xds.wire.envoy.config import rbac_pb2 as rbac

SERVICES = ["api", "web", "a.b", "my web", "École", "kiwi"]
OTHERS = ["unheard-of", "WEB", "My Web", "éCOLE", "\u212aiwi", "k\u0130wi"]
"""Names that no intention speaks of, most of them for Consul the same as one of which some does."""
NAMES = st.sampled_from([*SERVICES, WILDCARD])
INTENTIONS = st.lists(
    st.builds(Intention, NAMES, NAMES, st.sampled_from(Action)), unique_by=lambda i: (i.source, i.destination)
)
TRUST_DOMAIN = "11111111-2222-3333-4444-555555555555.consul"


def by_the_book(intentions: list[Intention], source: str, destination: str) -> Action | None:
    """Consul's rule read aloud: of those that match, the one with the most precise destination, then source."""
    source, destination = (
        next((name for name in SERVICES if fold(name) == fold(each)), each) for each in (source, destination)
    )
    for candidate in ((source, destination), (WILDCARD, destination), (source, WILDCARD), (WILDCARD, WILDCARD)):
        for intention in intentions:
            if (intention.source, intention.destination) == candidate:
                return intention.action
    return None


def test_the_numbers_equal_those_of_consul() -> None:
    numbers = [
        precedence(Intention(source, destination, Action.ALLOW))
        for source, destination in (("web", "api"), ("*", "api"), ("web", "*"), ("*", "*"))
    ]
    assert numbers == [9, 8, 6, 5]


@given(INTENTIONS, st.sampled_from(SERVICES), st.sampled_from(SERVICES), st.booleans())
def test_caller_and_destination_decide_by_the_same_precedence(
    intentions: list[Intention], source: str, destination: str, default_allow: bool
) -> None:
    expected = by_the_book(intentions, source, destination) or (Action.ALLOW if default_allow else Action.DENY)
    index = IntentionIndex(intentions)
    assert index.reach(source, default_allow=default_allow).includes(destination) is (expected is not Action.DENY)
    assert index.to_destination(destination, as_written).action(source, default_allow=default_allow) is expected


@given(INTENTIONS, st.sampled_from([*SERVICES, *OTHERS]), st.sampled_from(SERVICES), st.booleans())
def test_the_rbac_filter_lets_in_exactly_whom_the_intentions_allow(
    intentions: list[Intention], source: str, destination: str, default_allow: bool
) -> None:
    def decided(name: str) -> bool:
        action = by_the_book(intentions, name, destination)
        return default_allow if action is None else action is Action.ALLOW

    # Another spelling is denied where the service is, and allowed where everybody is: no certificate of the service has
    # it.
    allowed = decided(source) and (source in SERVICES or decided("unheard-of"))
    decisions = IntentionIndex(intentions).to_destination(destination, as_written)
    policy = connection_policy(decisions, default_allow=default_allow)
    assert (decisions.action(source, default_allow=default_allow) is Action.ALLOW) is allowed
    identity = spiffe_id(source, "dc1", TRUST_DOMAIN)
    assert evaluate(network_rbac(policy, TRUST_DOMAIN).rules, identity) is allowed
    assert takes_certificate(policy, identity) is allowed


def test_identities_are_escaped_as_consul_writes_them() -> None:
    assert spiffe_id("my web", "dc1", "td") == "spiffe://td/ns/default/dc/dc1/svc/my%20web"
    assert spiffe_id("caf\u00e9", "dc1", "td") == "spiffe://td/ns/default/dc/dc1/svc/caf%C3%A9"


def test_names_are_taken_literally_in_the_expressions() -> None:
    policy = connection_policy(
        IntentionIndex([Intention("a.b", "db", Action.ALLOW)]).to_destination("db", as_written), default_allow=False
    )
    rules = network_rbac(policy, TRUST_DOMAIN).rules
    assert evaluate(rules, f"spiffe://{TRUST_DOMAIN}/ns/default/dc/dc1/svc/a.b")
    assert not evaluate(rules, f"spiffe://{TRUST_DOMAIN}/ns/default/dc/dc1/svc/axb")
    assert not evaluate(rules, f"spiffe://{TRUST_DOMAIN.replace('.', 'x')}/ns/default/dc/dc1/svc/a.b")


ANY_NAME = st.text(
    st.sampled_from("abk.-% Éé\u212a\u0130\u1e9eßςσΣ") | st.characters(exclude_categories=["Cs"]),
    min_size=1,
    max_size=4,
).filter(lambda name: "/" not in name and name != WILDCARD)


@given(st.lists(ANY_NAME, max_size=6), ANY_NAME)
def test_all_names_except_some(excluded: list[str], name: str) -> None:
    pattern = not_among(excluded)
    is_excluded = fold(name) in map(fold, excluded)
    assert (re.fullmatch(pattern, in_path(name)) is not None) is not is_excluded
    assert re.fullmatch(pattern, f"{in_path(name)}/x") is None


@given(ANY_NAME, ANY_NAME, st.booleans())
def test_all_of_unicode_is_compared_alike_by_decisions_filter_and_handshake(
    named: str, source: str, denied: bool
) -> None:
    intention = Intention(named, "db", Action.DENY if denied else Action.ALLOW)
    decisions = IntentionIndex([intention]).to_destination("db", as_written)
    policy = connection_policy(decisions, default_allow=denied)
    expected = fold(source) != fold(named) if denied else source == named
    assert (decisions.action(source, default_allow=denied) is Action.ALLOW) is expected
    identity = spiffe_id(source, "dc1", TRUST_DOMAIN)
    assert evaluate(network_rbac(policy, TRUST_DOMAIN).rules, identity) is expected
    assert takes_certificate(policy, identity) is expected


def test_a_denied_name_is_denied_in_every_escaped_form() -> None:
    decisions = IntentionIndex([Intention("web", "db", Action.DENY)]).to_destination("db", as_written)
    policy = connection_policy(decisions, default_allow=True)
    for written in ("%77eb", "%57EB", "we%62", "%77%65%62"):
        identity = f"spiffe://{TRUST_DOMAIN}/ns/default/dc/dc1/svc/{written}"
        assert not evaluate(network_rbac(policy, TRUST_DOMAIN).rules, identity)
        assert not takes_certificate(policy, identity)


def test_a_long_name_and_many_names_are_still_denied() -> None:
    for denied in (["a" * 950], [f"service-{number}" for number in range(1000)]):
        intentions = [Intention(name, "db", Action.DENY) for name in denied]
        policy = connection_policy(IntentionIndex(intentions).to_destination("db", as_written), default_allow=True)
        rules = network_rbac(policy, TRUST_DOMAIN).rules
        assert admitted_identities(policy, TRUST_DOMAIN) is None, "too much for the handshake"
        assert not evaluate(rules, spiffe_id(denied[-1], "dc1", TRUST_DOMAIN))
        assert evaluate(rules, spiffe_id(denied[-1] + "x", "dc1", TRUST_DOMAIN))


def takes_certificate(policy: ConnectionPolicy, identity: str) -> bool:
    """Whether a TLS handshake with a certificate of this identity succeeds."""
    admitted = admitted_identities(policy, TRUST_DOMAIN)
    return admitted is None or any(
        m.exact == identity or bool(m.safe_regex.regex and re.fullmatch(m.safe_regex.regex, identity)) for m in admitted
    )


def evaluate(rules: rbac.RBAC, identity: str) -> bool:
    """Evaluate an RBAC filter by Envoy's documentation, independently of the encoder: does it admit ``identity``?"""
    matched = any(
        any(permission.any for permission in policy.permissions)
        and any(_principal(principal, identity) for principal in policy.principals)
        for policy in rules.policies.values()
    )
    return matched == (rules.action == rbac.RBAC.ALLOW)


def _principal(principal: rbac.Principal, identity: str) -> bool:
    kind = principal.WhichOneof("identifier")
    if kind == "and_ids":
        return all(_principal(p, identity) for p in principal.and_ids.ids)
    if kind == "not_id":
        return not _principal(principal.not_id, identity)
    if kind == "any":
        return True
    assert kind == "authenticated"
    return re.fullmatch(principal.authenticated.principal_name.safe_regex.regex, identity) is not None

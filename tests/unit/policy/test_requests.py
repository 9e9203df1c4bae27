"""Tests of intentions on HTTP requests: decided by the rules, and by the RBAC filter that is made of them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xds.envoy.rbac import http_rbac
from xds.mesh.http import HeaderMatch, Match, RequestMatch, TextMatch
from xds.mesh.intentions import Action, ClaimCheck, Intention, Permission, TokenCheck, TokenProvider
from xds.mesh.names import as_written
from xds.mesh.spiffe import spiffe_id
from xds.policy.intentions import IntentionIndex, request_policy
from xds.wire.envoy.config import rbac_pb2 as rbac
from xds.wire.envoy.config import route_pb2 as route
from xds.wire.envoy.type import matcher_pb2 as matcher

TRUST_DOMAIN = "11111111-2222-3333-4444-555555555555.consul"
PROVIDERS = {"okta": TokenProvider("okta", issuer="https://okta")}
NAMES = st.sampled_from(["web", "api", "a.b", "*"])


@dataclass
class Request:
    """A request, its caller's certificate apart."""

    path: str
    method: str = "GET"
    headers: dict[str, str] = field(default_factory=dict)
    claims: dict[str, str | list[str]] | None = None
    """Of a token of okta that was verified."""


TEXTS = st.sampled_from(["/", "/a", "/a/b", "/b", "v1", "v2"])
PATHS = st.builds(
    TextMatch, st.sampled_from([Match.EXACT, Match.PREFIX]), st.sampled_from(["/", "/a", "/a/b", "/b"])
) | st.builds(TextMatch, st.just(Match.REGEX), st.sampled_from(["/a.*", "/[ab]", "/"]))
VALUES = st.builds(
    TextMatch,
    st.sampled_from([Match.EXACT, Match.PREFIX, Match.SUFFIX, Match.CONTAINS, Match.PRESENT]),
    st.sampled_from(["v1", "V1", "v", "1"]),
    st.booleans(),
) | st.just(TextMatch(Match.REGEX, "v[12]"))
MATCHES = st.builds(
    RequestMatch,
    path=st.none() | PATHS,
    headers=st.lists(st.builds(HeaderMatch, st.just("x-version"), VALUES, st.booleans()), max_size=2).map(tuple),
    methods=st.lists(st.sampled_from(["GET", "PUT"]), max_size=2, unique=True).map(tuple),
)
CLAIMS = st.lists(st.builds(ClaimCheck, st.just(("role",)), st.sampled_from(["admin", "user"])), max_size=1).map(tuple)
TOKENS = st.lists(st.builds(TokenCheck, st.sampled_from(["okta", "missing"]), CLAIMS), max_size=2).map(tuple)
PERMISSIONS = st.lists(st.builds(Permission, st.booleans(), MATCHES, TOKENS), min_size=1, max_size=4).map(tuple)
INTENTIONS = st.builds(
    Intention, NAMES, NAMES, st.sampled_from([Action.ALLOW, Action.DENY]), tokens=TOKENS
) | st.builds(Intention, NAMES, NAMES, st.just(Action.PERMISSIONS), PERMISSIONS, TOKENS)
REQUESTS = st.builds(
    Request,
    st.sampled_from(["/", "/a", "/a/b", "/b", "/c"]),
    st.sampled_from(["GET", "PUT", "DELETE"]),
    st.dictionaries(st.just("x-version"), st.sampled_from(["v1", "v2", "V1", "other"])),
    st.none() | st.dictionaries(st.just("role"), st.sampled_from(["admin", "user", ["user", "admin"]])),
)


# -- by the book: Consul's documentation of intentions, precedence first ----------------------------------------------


def text_matches(match: TextMatch, text: str | None) -> bool:
    if text is None:
        return False
    if match.match is Match.PRESENT:
        return True
    if match.match is Match.REGEX:
        return re.fullmatch(match.text, text) is not None
    wanted = match.text
    if match.ignore_case:
        wanted, text = wanted.lower(), text.lower()
    return {
        Match.EXACT: text == wanted,
        Match.PREFIX: text.startswith(wanted),
        Match.SUFFIX: text.endswith(wanted),
        Match.CONTAINS: wanted in text,
    }[match.match]


def header_is_so(header: HeaderMatch, request: Request, *, denies: bool) -> bool:
    value = request.headers.get(header.name)
    if value is None and header.value.match is not Match.PRESENT:
        return header.invert and denies  # what is not there is something else, but no reason to allow
    return text_matches(header.value, value) != header.invert


def request_matches(match: RequestMatch, request: Request, *, denies: bool) -> bool:
    return (
        (match.path is None or text_matches(match.path, request.path))
        and all(header_is_so(header, request, denies=denies) for header in match.headers)
        and (not match.methods or request.method in match.methods)
    )


def one_token(tokens: tuple[TokenCheck, ...], request: Request) -> bool:
    def passes(token: TokenCheck) -> bool:
        if request.claims is None or token.provider != "okta":
            return False
        said = [request.claims.get(".".join(claim.path)) for claim in token.claims]
        return all(
            value is not None and (claim.value in value if isinstance(value, list) else claim.value == value)
            for claim, value in zip(token.claims, said, strict=True)
        )

    return not tokens or any(map(passes, tokens))


def by_the_book(intentions: list[Intention], source: str, request: Request, *, default_allow: bool) -> bool:
    for destination, caller in (("web", source), ("web", "*"), ("*", source), ("*", "*")):
        for intention in intentions:
            if (intention.destination, intention.source) != (destination, caller):
                continue
            if intention.action is Action.DENY or not one_token(intention.tokens, request):
                return False
            if intention.action is Action.ALLOW:
                return True
            # Consul subtracts what a permission matches from all after it, its token apart (agent/xds/rbac.go,
            # removePermissionPrecedence): a request that lacks the token meets none of them.
            for permission in intention.permissions:
                if request_matches(permission.request, request, denies=not permission.allow):
                    return permission.allow and one_token(permission.tokens, request)
            return default_allow
    return default_allow


# -- by Envoy's documentation of the RBAC filter ----------------------------------------------------------------------


def evaluate(rules: rbac.RBAC, identity: str, request: Request) -> bool:
    matched = any(
        any(permits(permission, request) for permission in policy.permissions)
        and any(is_from(principal, identity) for principal in policy.principals)
        for policy in rules.policies.values()
    )
    return matched == (rules.action == rbac.RBAC.ALLOW)


def is_from(principal: rbac.Principal, identity: str) -> bool:
    match principal.WhichOneof("identifier"):
        case "and_ids":
            return all(is_from(each, identity) for each in principal.and_ids.ids)
        case "not_id":
            return not is_from(principal.not_id, identity)
        case "any":
            return True
        case kind:
            assert kind == "authenticated"
            return string_matches(principal.authenticated.principal_name, identity)


def permits(permission: rbac.Permission, request: Request) -> bool:
    match permission.WhichOneof("rule"):
        case "any":
            return True
        case "and_rules":
            return all(permits(each, request) for each in permission.and_rules.rules)
        case "or_rules":
            return any(permits(each, request) for each in permission.or_rules.rules)
        case "not_rule":
            return not permits(permission.not_rule, request)
        case "url_path":
            return string_matches(permission.url_path.path, request.path)
        case "header":
            return header_matches(permission.header, request)
        case kind:
            assert kind == "sourced_metadata"
            metadata = permission.sourced_metadata.metadata_matcher
            assert metadata.filter == "envoy.filters.http.jwt_authn"
            payload, *path = [step.key for step in metadata.path]
            assert payload == "jwt_payload_okta"
            if request.claims is None:
                return False
            return value_matches(metadata.value, request.claims.get(".".join(path)) if path else "there")


def header_matches(header: route.HeaderMatcher, request: Request) -> bool:
    value = request.method if header.name == ":method" else request.headers.get(header.name)
    if header.present_match:
        return (value is not None) != header.invert_match
    if value is None and not header.treat_missing_header_as_empty:
        return False
    return string_matches(header.string_match, value or "") != header.invert_match


def value_matches(value: matcher.ValueMatcher, found: str | list[str] | None) -> bool:
    match value.WhichOneof("match_pattern"):
        case "present_match":
            return found is not None
        case "or_match":
            return any(value_matches(each, found) for each in value.or_match.value_matchers)
        case "list_match":
            return isinstance(found, list) and any(value_matches(value.list_match.one_of, each) for each in found)
        case kind:
            assert kind == "string_match"
            return isinstance(found, str) and string_matches(value.string_match, found)


def string_matches(wanted: matcher.StringMatcher, text: str) -> bool:
    kind = wanted.WhichOneof("match_pattern")
    if kind == "safe_regex":
        return re.fullmatch(wanted.safe_regex.regex, text) is not None
    pattern = str(getattr(wanted, str(kind)))
    if wanted.ignore_case:
        pattern, text = pattern.lower(), text.lower()
    return {
        "exact": text == pattern,
        "prefix": text.startswith(pattern),
        "suffix": text.endswith(pattern),
        "contains": pattern in text,
    }[str(kind)]


@settings(max_examples=400)
@given(
    st.lists(INTENTIONS, max_size=5, unique_by=lambda i: (i.source, i.destination)),
    st.sampled_from(["web", "api", "a.b", "axb"]),
    REQUESTS,
    st.booleans(),
)
def test_the_filter_decides_every_request_as_precedence_does(
    intentions: list[Intention], source: str, request: Request, default_allow: bool
) -> None:
    decisions = IntentionIndex(intentions).to_destination("web", as_written)
    policy = request_policy(decisions, default_allow=default_allow)
    rules = http_rbac(policy, PROVIDERS, TRUST_DOMAIN).rules
    expected = by_the_book(intentions, source, request, default_allow=default_allow)
    assert evaluate(rules, spiffe_id(source, "dc1", TRUST_DOMAIN), request) is expected


@pytest.mark.parametrize("first_allows", [True, False])
@pytest.mark.parametrize("default_allow", [True, False])
def test_a_request_without_the_token_gets_nothing_by_a_broader_permission(
    first_allows: bool, default_allow: bool
) -> None:
    admin, everything = (RequestMatch(TextMatch(Match.PREFIX, path)) for path in ("/admin", "/"))
    permissions = (Permission(first_allows, admin, (TokenCheck("okta"),)), Permission(True, everything))
    intention = Intention("api", "web", Action.PERMISSIONS, permissions)
    policy = request_policy(IntentionIndex([intention]).to_destination("web", as_written), default_allow=default_allow)
    rules = http_rbac(policy, PROVIDERS, TRUST_DOMAIN).rules
    caller = spiffe_id("api", "dc1", TRUST_DOMAIN)
    assert not evaluate(rules, caller, Request("/admin/users"))
    assert evaluate(rules, caller, Request("/admin/users", claims={"role": "user"})) is first_allows
    assert evaluate(rules, caller, Request("/other"))


@settings(max_examples=300)
@given(
    st.lists(INTENTIONS, max_size=4, unique_by=lambda i: (i.source, i.destination)),
    st.sampled_from(["WEB", "Api", "A.B"]),
    REQUESTS,
    st.booleans(),
)
def test_another_spelling_of_a_caller_is_allowed_only_what_both_it_and_all_others_are(
    intentions: list[Intention], source: str, request: Request, default_allow: bool
) -> None:
    decisions = IntentionIndex(intentions).to_destination("web", as_written)
    rules = http_rbac(request_policy(decisions, default_allow=default_allow), PROVIDERS, TRUST_DOMAIN).rules

    def is_let_in(name: str) -> bool:
        return evaluate(rules, spiffe_id(name, "dc1", TRUST_DOMAIN), request)

    assert not is_let_in(source) or (is_let_in(source.lower()) and is_let_in("somebody-else"))


def test_many_permissions_stay_flat() -> None:
    permissions = tuple(
        Permission(number % 2 == 0, RequestMatch(TextMatch(Match.EXACT, f"/{number}"))) for number in range(200)
    )
    intention = Intention("api", "web", Action.PERMISSIONS, permissions)
    policy = request_policy(IntentionIndex([intention]).to_destination("web", as_written), default_allow=False)
    rules = http_rbac(policy, {}, TRUST_DOMAIN).rules
    assert rbac.RBAC.FromString(rules.SerializeToString()) == rules, "protobuf reads 100 levels"
    assert evaluate(rules, spiffe_id("api", "dc1", TRUST_DOMAIN), Request("/198"))
    assert not evaluate(rules, spiffe_id("api", "dc1", TRUST_DOMAIN), Request("/197"))

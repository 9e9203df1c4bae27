"""Encodes the RBAC filters that enforce the intentions on a public listener.

As in Consul, the filter lists what differs from the default: under a default of deny it lists what is allowed, under
one of allow what is denied. Sources are identified by their certificates. Consul subtracts intentions from each other;
here each source has the one rule that precedence gives it, and the rule for all others applies to identities that are
none of these.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping

from xds.envoy import matchers, names
from xds.mesh.http import RequestMatch
from xds.mesh.intentions import Permission, TokenCheck, TokenProvider
from xds.policy.intentions import ALLOWED, DENIED, ConnectionPolicy, RequestPolicy, Rule
from xds.wire.envoy.config import rbac_pb2 as rbac
from xds.wire.envoy.extensions import http_rbac_pb2, network_rbac_pb2
from xds.wire.envoy.type import matcher_pb2 as matcher

POLICY_NAME = "consul-intentions-layer4"
REQUEST_POLICY_NAME = "consul-intentions-layer7-{}"
STAT_PREFIX = "connect_authz"


def network_rbac(policy: ConnectionPolicy, trust_domain: str) -> network_rbac_pb2.RBAC:
    """Return ``policy`` as the network filter's rules: without policies, ALLOW admits no caller and DENY all."""
    if policy.every:
        pattern = names.any_spelling_pattern if policy.others_permitted else names.exact_pattern
        principals = [_every_but(map(pattern, policy.exceptions), trust_domain, services_only=policy.allow)]
    else:
        pattern = names.any_spelling_pattern if policy.others_permitted else names.exact_pattern
        principals = [_identity(pattern(source), trust_domain) for source in policy.exceptions]
    rules = rbac.RBAC(action=rbac.RBAC.ALLOW if policy.allow else rbac.RBAC.DENY)
    if principals:
        rules.policies[POLICY_NAME].CopyFrom(
            rbac.Policy(permissions=[rbac.Permission(any=True)], principals=principals)
        )
    return network_rbac_pb2.RBAC(rules=rules, stat_prefix=STAT_PREFIX)


def http_rbac(policy: RequestPolicy, providers: Mapping[str, TokenProvider], trust_domain: str) -> http_rbac_pb2.RBAC:
    """Return ``policy`` as the HTTP filter's rules.

    Args:
        policy: who may send what.
        providers: who issues JSON Web Tokens. A check of a token whose issuer is not among them is never passed.
        trust_domain: of the SPIFFE IDs.
    """
    listed = not policy.default_allow
    rules = rbac.RBAC(action=rbac.RBAC.ALLOW if listed else rbac.RBAC.DENY)
    principals: dict[bytes, tuple[rbac.Permission, list[rbac.Principal]]] = {}
    made: dict[Rule, tuple[bytes, rbac.Permission] | None] = {}  # most of thousands of sources have the same rule
    for who, requests in _grants(policy, trust_domain, listed=listed):
        if requests not in made:
            permission = _where(requests, providers, allowed=listed)
            made[requests] = None
            if permission is not None:
                made[requests] = permission.SerializeToString(deterministic=True), permission
        found = made[requests]
        if found is not None:
            principals.setdefault(found[0], (found[1], []))[1].append(who)
    anything, number = rbac.Permission(any=True).SerializeToString(), 0
    for key, (permission, sources) in principals.items():
        name = POLICY_NAME
        if key != anything:
            name, number = REQUEST_POLICY_NAME.format(number), number + 1
        rules.policies[name].CopyFrom(rbac.Policy(permissions=[permission], principals=sources))
    return http_rbac_pb2.RBAC(rules=rules)


def _grants(policy: RequestPolicy, trust_domain: str, *, listed: bool) -> Iterator[tuple[rbac.Principal, Rule]]:
    """Yield the sources that are distinguished, with the rule for them.

    ``listed``: what is allowed is listed, so a source that may do everything need not be excluded from the rule for all
    others.
    """
    excepted = []
    for name, rule in policy.exact:
        exact = names.exact_pattern(name)
        if rule == ALLOWED:
            yield _identity(exact, trust_domain), rule
            excepted += [] if listed else [exact]
            continue
        any_spelling = names.any_spelling_pattern(name)
        elsewhere = policy.other_spellings(rule)
        if rule == elsewhere == DENIED:
            yield _identity(any_spelling, trust_domain), rule
        else:
            yield _identity(exact, trust_domain), rule
        excepted.append(any_spelling)
        if rule != DENIED:
            others = [_identity(any_spelling, trust_domain), rbac.Principal(not_id=_identity(exact, trust_domain))]
            yield rbac.Principal(and_ids=rbac.Principal.Set(ids=others)), elsewhere
    yield _every_but(excepted, trust_domain, services_only=listed), policy.otherwise


def _where(rule: Rule, providers: Mapping[str, TokenProvider], *, allowed: bool) -> rbac.Permission | None:
    """Return the requests that ``rule`` allows, or those that it denies; ``None`` where there are none.

    Each permission holds where the criteria of none before it are met, whatever token the request brings. Those of the
    same outcome need not be subtracted, which keeps the list short. (One flat list: nested as deep as permissions are
    many, protobuf would refuse to read it.)
    """
    ways: list[list[rbac.Permission]] = []
    against: list[rbac.Permission] = []
    for permission in rule.permissions:
        met = _all_of(_criteria(permission))
        token = _one_token(permission.tokens, providers) if permission.tokens else None
        if permission.allow == allowed:
            ways.append([met, *([token] if token is not None else []), *against])
        if token is not None and not allowed:
            ways.append([met, rbac.Permission(not_rule=token), *against])
        if token is not None or permission.allow != allowed:
            against.append(rbac.Permission(not_rule=met))
    if rule.otherwise == allowed:
        ways.append(against)
    token = _one_token(rule.tokens, providers) if rule.tokens else None
    if token is not None and allowed:
        ways = [[token, *way] for way in ways]
    elif token is not None:
        ways.append([rbac.Permission(not_rule=token)])
    return _any_of([_all_of(way) for way in ways]) if ways else None


def _all_of(parts: list[rbac.Permission]) -> rbac.Permission:
    if len(parts) == 1:
        return parts[0]
    return rbac.Permission(and_rules=rbac.Permission.Set(rules=parts)) if parts else rbac.Permission(any=True)


def _any_of(parts: list[rbac.Permission]) -> rbac.Permission:
    if len(parts) == 1:
        return parts[0]
    return rbac.Permission(or_rules=rbac.Permission.Set(rules=parts))


def _criteria(permission: Permission) -> list[rbac.Permission]:
    """Return the conditions of a request, except its token.

    A missing header fulfils an inverted condition only where that denies.
    """
    request: RequestMatch = permission.request
    parts: list[rbac.Permission] = []
    if request.path is not None:
        parts.append(rbac.Permission(url_path=matcher.PathMatcher(path=matchers.text(request.path))))
    missing_too = not permission.allow
    parts += [rbac.Permission(header=matchers.header(header, missing_too=missing_too)) for header in request.headers]
    if request.methods:
        parts.append(rbac.Permission(header=matchers.methods(request.methods)))
    return parts


def _one_token(checks: tuple[TokenCheck, ...], providers: Mapping[str, TokenProvider]) -> rbac.Permission:
    usable = [_all_of(_token(check, providers[check.provider])) for check in checks if check.provider in providers]
    return _any_of(usable) if usable else rbac.Permission(not_rule=rbac.Permission(any=True))


def _token(check: TokenCheck, provider: TokenProvider) -> list[rbac.Permission]:
    """Return the condition that the filter before this one verified a token of ``provider`` with these claims."""
    return [
        rbac.Permission(sourced_metadata=_payload(provider, (), matcher.ValueMatcher(present_match=True))),
        *(
            rbac.Permission(sourced_metadata=_payload(provider, claim.path, _holds(claim.value)))
            for claim in check.claims
        ),
    ]


def _holds(value: str) -> matcher.ValueMatcher:
    """Return the condition that a claim is ``value``, or a list that contains it."""
    same = matcher.ValueMatcher(string_match=matcher.StringMatcher(exact=value))
    listed = matcher.ValueMatcher(list_match=matcher.ListMatcher(one_of=same))
    return matcher.ValueMatcher(or_match=matcher.OrMatcher(value_matchers=[same, listed]))


def _payload(provider: TokenProvider, path: tuple[str, ...], value: matcher.ValueMatcher) -> rbac.SourcedMetadata:
    steps = (names.jwt_payload(provider.name), *path)
    found = matcher.MetadataMatcher(
        filter=names.JWT_EXTENSION, path=[matcher.MetadataMatcher.PathSegment(key=step) for step in steps], value=value
    )
    return rbac.SourcedMetadata(metadata_matcher=found)


@functools.lru_cache(maxsize=1 << 14)  # a change is usually about one of many sources; the result is immutable
def _identity(service_pattern: str, trust_domain: str) -> rbac.Principal:
    pattern = matcher.RegexMatcher(regex=names.spiffe_pattern(service_pattern, trust_domain))
    return rbac.Principal(
        authenticated=rbac.Principal.Authenticated(principal_name=matcher.StringMatcher(safe_regex=pattern))
    )


def _every_but(excepted: Iterable[str], trust_domain: str, *, services_only: bool) -> rbac.Principal:
    """Return everyone but the services whose names match one of these expressions.

    Who is denied need not be a service: the mesh certifies agents and gateways as well.
    """
    anyone = _identity(names.ANY_SERVICE, trust_domain) if services_only else rbac.Principal(any=True)
    others = [rbac.Principal(not_id=_identity(pattern, trust_domain)) for pattern in excepted]
    return rbac.Principal(and_ids=rbac.Principal.Set(ids=[anyone, *others])) if others else anyone

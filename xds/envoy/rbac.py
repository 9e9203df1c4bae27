"""The RBAC filter that enforces the intentions on a public listener."""

from __future__ import annotations

from xds.envoy import names
from xds.policy.intentions import ConnectionPolicy
from xds.wire.envoy.config import rbac_pb2 as rbac
from xds.wire.envoy.extensions import network_rbac_pb2
from xds.wire.envoy.type import matcher_pb2 as matcher

POLICY_NAME = "consul-intentions-layer4"
STAT_PREFIX = "connect_authz"


def network_rbac(policy: ConnectionPolicy, trust_domain: str) -> network_rbac_pb2.RBAC:
    """``policy`` as the network filter's rules: no policies under ALLOW lets nobody in, under DENY everybody."""
    if policy.every:
        principals = [_every_but(policy.exceptions, trust_domain)]
    else:
        principals = [_identity(names.service_pattern(source), trust_domain) for source in policy.exceptions]
    rules = rbac.RBAC(action=rbac.RBAC.ALLOW if policy.allow else rbac.RBAC.DENY)
    if principals:
        rules.policies[POLICY_NAME].CopyFrom(
            rbac.Policy(permissions=[rbac.Permission(any=True)], principals=principals)
        )
    return network_rbac_pb2.RBAC(rules=rules, stat_prefix=STAT_PREFIX)


def _identity(service_pattern: str, trust_domain: str) -> rbac.Principal:
    pattern = matcher.RegexMatcher(regex=names.spiffe_pattern(service_pattern, trust_domain))
    return rbac.Principal(
        authenticated=rbac.Principal.Authenticated(principal_name=matcher.StringMatcher(safe_regex=pattern))
    )


def _every_but(excepted: tuple[str, ...], trust_domain: str) -> rbac.Principal:
    anyone = _identity(names.ANY_SERVICE, trust_domain)
    if not excepted:
        return anyone
    others = [rbac.Principal(not_id=_identity(names.service_pattern(service), trust_domain)) for service in excepted]
    return rbac.Principal(and_ids=rbac.Principal.Set(ids=[anyone, *others]))

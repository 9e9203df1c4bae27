"""Service Intentions: who may call whom, and with which requests."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from xds.mesh.http import RequestMatch


class Action(enum.Enum):
    """Effect of an intention. ``PERMISSIONS``: it depends on the HTTP request."""

    ALLOW = "allow"
    DENY = "deny"
    PERMISSIONS = "permissions"


@dataclass(frozen=True, slots=True)
class ClaimCheck:
    """Condition on a claim of a JSON Web Token: its value, or a member of it where it is a list."""

    path: tuple[str, ...]
    value: str


@dataclass(frozen=True, slots=True)
class TokenCheck:
    """JSON Web Token that a request needs: its issuer and its claims."""

    provider: str
    claims: tuple[ClaimCheck, ...] = ()


@dataclass(frozen=True, slots=True)
class Permission:
    """Permission for requests that match, and that bring one of ``tokens`` where any are named."""

    allow: bool
    request: RequestMatch
    tokens: tuple[TokenCheck, ...] = ()


@dataclass(frozen=True, slots=True)
class Intention:
    """Service Intention between two services of this cluster; either name can be a wildcard."""

    source: str
    destination: str
    action: Action
    permissions: tuple[Permission, ...] = ()
    """Permissions in order: the first that matches decides."""
    tokens: tuple[TokenCheck, ...] = ()
    """Tokens, one of which a request needs; it is denied without one."""
    problems: tuple[str, ...] = ()
    """Problems because of which it denies."""

    @property
    def needs_requests(self) -> bool:
        """Whether it can only be judged where requests are seen."""
        return self.action is Action.PERMISSIONS or bool(self.tokens)


@dataclass(frozen=True, slots=True)
class RemoteKeys:
    """Address from which the keys of a JWT provider are fetched."""

    uri: str
    request_timeout_ms: int | None = None
    cache_ms: int | None = None
    fetch_asynchronously: bool = False
    retries: int | None = None
    backoff_ms: int | None = None
    backoff_most_ms: int | None = None
    discovery: str = ""
    connect_timeout_ms: int | None = None
    ca_file: str = ""
    ca_pem: str = ""


@dataclass(frozen=True, slots=True)
class TokenLocation:
    """Place in a request where a token may be."""

    header: str = ""
    value_prefix: str = ""
    query_parameter: str = ""
    cookie: str = ""


@dataclass(frozen=True, slots=True)
class TokenProvider:
    """Issuer of JSON Web Tokens, and how they are verified (Consul: ``jwt-provider``)."""

    name: str
    issuer: str = ""
    audiences: tuple[str, ...] = ()
    keys: str = ""
    """A JSON Web Key Set."""
    keys_file: str = ""
    remote_keys: RemoteKeys | None = None
    locations: tuple[TokenLocation, ...] = ()
    forward: bool = False
    """Whether the token stays in the request."""
    payload_header: str = ""
    pad_payload: bool = False
    clock_skew_s: int = 30
    cache_size: int | None = None

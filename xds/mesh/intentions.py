"""Service Intentions: who may call whom, and with which requests."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from xds.mesh.http import RequestMatch


class Action(enum.Enum):
    """What an intention does. ``PERMISSIONS``: it depends on the HTTP request."""

    ALLOW = "allow"
    DENY = "deny"
    PERMISSIONS = "permissions"


@dataclass(frozen=True, slots=True)
class ClaimCheck:
    """What a claim of a JSON Web Token has to be, or hold where it is a list."""

    path: tuple[str, ...]
    value: str


@dataclass(frozen=True, slots=True)
class TokenCheck:
    """A JSON Web Token that a request has to bring: of whom, and with which claims."""

    provider: str
    claims: tuple[ClaimCheck, ...] = ()


@dataclass(frozen=True, slots=True)
class Permission:
    """What holds for requests that match, and that bring one of ``tokens`` where any are named."""

    allow: bool
    request: RequestMatch
    tokens: tuple[TokenCheck, ...] = ()


@dataclass(frozen=True, slots=True)
class Intention:
    """One Service Intention between two services of this cluster; either name can be a wildcard."""

    source: str
    destination: str
    action: Action
    permissions: tuple[Permission, ...] = ()
    """In order: the first that matches decides."""
    tokens: tuple[TokenCheck, ...] = ()
    """One of these has to be brought, or the request is denied."""
    problems: tuple[str, ...] = ()
    """What of it can't be followed; it denies then."""

    @property
    def needs_requests(self) -> bool:
        """Whether it can only be judged where requests are seen."""
        return self.action is Action.PERMISSIONS or bool(self.tokens)


@dataclass(frozen=True, slots=True)
class RemoteKeys:
    """Where the keys of a JWT provider are fetched from."""

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
    """Where in a request a token may be."""

    header: str = ""
    value_prefix: str = ""
    query_parameter: str = ""
    cookie: str = ""


@dataclass(frozen=True, slots=True)
class TokenProvider:
    """Who issues JSON Web Tokens, and how they are verified (Consul: ``jwt-provider``)."""

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

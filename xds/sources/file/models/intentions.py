"""Intentions, what they ask of requests, and the issuers of tokens that they name."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from xds.sources.file.models.values import (
    Anything,
    Count,
    EntryBase,
    Exact,
    Expression,
    HeaderText,
    Name,
    PathText,
)


class HeaderMatch(Exact):
    """What a header has to be: one of these."""

    Name: HeaderText
    Present: bool = False
    Exact: str = ""
    Prefix: str = ""
    Suffix: str = ""
    Contains: str = ""
    Regex: Expression = ""
    Invert: bool = False
    IgnoreCase: bool = False

    @model_validator(mode="after")
    def _one(self) -> HeaderMatch:
        kinds = ("Present", "Exact", "Prefix", "Suffix", "Contains", "Regex")
        if sum(bool(getattr(self, kind)) for kind in kinds) != 1:
            raise ValueError(f"give one of {', '.join(kinds)}")
        return self


class Paths(Exact):
    PathExact: PathText = ""
    PathPrefix: PathText = ""
    PathRegex: Expression = ""
    Header: list[HeaderMatch] = []
    Methods: list[str] = []

    @model_validator(mode="after")
    def _one_path(self) -> Paths:
        kinds = ("PathExact", "PathPrefix", "PathRegex")
        if sum(bool(getattr(self, kind)) for kind in kinds) > 1:
            raise ValueError(f"give one of {', '.join(kinds)}")
        return self


class ClaimVerification(Exact):
    """What a claim of a token has to be, or hold where it is a list."""

    Path: list[str] = Field(min_length=1)
    Value: str = ""


class JWTProviderUse(Exact):
    """A token that a request has to bring."""

    Name: Name
    VerifyClaims: list[ClaimVerification] = []


class JWTRequirement(Exact):
    """The tokens of which a request has to bring one."""

    Providers: list[JWTProviderUse] = []


class HTTPPermission(Paths):
    """Which requests: those that are all of this."""


class Permission(Exact):
    """What holds for some requests."""

    Action: Literal["allow", "deny"]
    HTTP: HTTPPermission = HTTPPermission()
    JWT: JWTRequirement = JWTRequirement()


class SourceIntention(Exact):
    """Who may, or may not, call the service that the entry is named after."""

    Name: Name
    Action: Literal["", "allow", "deny"] = ""
    Permissions: list[Permission] = []
    """On HTTP requests, in order: the first that matches decides. A TCP connection is denied by them."""
    Peer: str = ""
    """Of a service elsewhere; it matches none of this mesh."""
    SamenessGroup: str = ""
    Namespace: str = ""
    Partition: str = ""
    Description: str = ""
    Type: str = ""
    Precedence: int = 0
    """Consul's number for how precise it is, which it works out itself."""

    @model_validator(mode="after")
    def _decides(self) -> SourceIntention:
        if bool(self.Action) == bool(self.Permissions):
            raise ValueError("give either Action, allow or deny, or Permissions")
        return self


class ServiceIntentions(EntryBase):
    """Which services may call the one that this is named after; ``*`` is every service."""

    Kind: Literal["service-intentions"]
    Name: Name
    Sources: list[SourceIntention] = Field(min_length=1)
    JWT: JWTRequirement = JWTRequirement()


class JWTLocationHeader(Exact):
    """A header."""

    Name: HeaderText
    ValuePrefix: str = ""
    Forward: bool = False


class JWTLocationNamed(Exact):
    """A query parameter or a cookie."""

    Name: str = Field(min_length=1)


class JWTLocation(Exact):
    """Where in a request a token may be: one of these."""

    Header: JWTLocationHeader | None = None
    QueryParam: JWTLocationNamed | None = None
    Cookie: JWTLocationNamed | None = None

    @model_validator(mode="after")
    def _one(self) -> JWTLocation:
        if (self.Header is not None) + (self.QueryParam is not None) + (self.Cookie is not None) != 1:
            raise ValueError("give one of Header, QueryParam, Cookie")
        return self


class JWTForwarding(Exact):
    """How the claims are handed to the application."""

    HeaderName: HeaderText
    PadForwardPayloadHeader: bool = False


class JWTCacheConfig(Exact):
    """How many verified tokens are remembered."""

    Size: Count = 0


class JWTProvider(EntryBase):
    """Who issues JSON Web Tokens, and how they are verified."""

    Kind: Literal["jwt-provider"]
    Name: Name
    Issuer: str = ""
    Audiences: list[str] = []
    JSONWebKeySet: Anything
    Locations: list[JWTLocation] = []
    Forwarding: JWTForwarding | None = None
    ClockSkewSeconds: Count = 30
    CacheConfig: JWTCacheConfig | None = None

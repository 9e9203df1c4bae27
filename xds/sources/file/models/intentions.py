"""Models of intentions, their conditions on requests, and the issuers of tokens that they name."""

from __future__ import annotations

import base64
import binascii
from typing import Literal

from pydantic import Field, model_validator

from xds.mesh.names import WILDCARD
from xds.sources.decode.values import milliseconds
from xds.sources.file.models.values import (
    Count,
    EntryBase,
    Exact,
    Expression,
    GoDuration,
    HeaderText,
    HTTPMethods,
    Name,
    NameOrWildcard,
    PathText,
)


class HeaderMatch(Exact):
    """Condition on a header: one of these."""

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
    Methods: HTTPMethods = []

    @model_validator(mode="after")
    def _one_path(self) -> Paths:
        kinds = ("PathExact", "PathPrefix", "PathRegex")
        if sum(bool(getattr(self, kind)) for kind in kinds) > 1:
            raise ValueError(f"give one of {', '.join(kinds)}")
        return self


class ClaimVerification(Exact):
    """Condition on a claim of a token: its value, or a member of it where it is a list."""

    Path: list[str] = Field(min_length=1)
    Value: str = ""


class JWTProviderUse(Exact):
    """Token that a request needs."""

    Name: Name
    VerifyClaims: list[ClaimVerification] = []


class JWTRequirement(Exact):
    """Tokens of which a request needs one."""

    Providers: list[JWTProviderUse] = []


class HTTPPermission(Paths):
    """Conditions on requests, all of which must hold."""

    @model_validator(mode="after")
    def _says_something(self) -> HTTPPermission:
        if not (self.PathExact or self.PathPrefix or self.PathRegex or self.Header or self.Methods):
            raise ValueError("has no condition on requests; for every request use PathPrefix: /")
        return self


class Permission(Exact):
    """Permission for some requests."""

    Action: Literal["allow", "deny"]
    HTTP: HTTPPermission
    JWT: JWTRequirement = JWTRequirement()


class SourceIntention(Exact):
    """Source that may, or may not, call the service that the entry is named after."""

    Name: NameOrWildcard
    Action: Literal["", "allow", "deny"] = ""
    Permissions: list[Permission] = []
    """Permissions for HTTP requests, in order: the first that matches decides. With any, TCP connections are denied."""
    Peer: str = ""
    """Peer of a source elsewhere; it matches no service of this mesh."""
    SamenessGroup: str = ""
    Namespace: str = ""
    Partition: str = ""
    Description: str = Field("", max_length=512)
    Type: Literal["", "consul"] = ""
    Precedence: int = 0
    """Consul's number for how precise it is, which it works out itself."""

    @model_validator(mode="after")
    def _decides(self) -> SourceIntention:
        if bool(self.Action) == bool(self.Permissions):
            raise ValueError("give either Action, allow or deny, or Permissions")
        given = [name for name in ("Peer", "SamenessGroup", "Partition") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other")
        return self


class ServiceIntentions(EntryBase):
    """Services that may call the one that this is named after; ``*`` is every service."""

    Kind: Literal["service-intentions"]
    Name: NameOrWildcard
    Sources: list[SourceIntention] = Field(min_length=1)
    JWT: JWTRequirement = JWTRequirement()

    @model_validator(mode="after")
    def _is_one_services(self) -> ServiceIntentions:
        if self.Name == WILDCARD and any(source.Permissions for source in self.Sources):
            raise ValueError("Permissions are for the requests to one service, not to every one (*)")
        return self


class JWTLocationHeader(Exact):
    """A header."""

    Name: HeaderText
    ValuePrefix: str = ""
    Forward: bool = False


class JWTLocationNamed(Exact):
    """A query parameter or a cookie."""

    Name: str = Field(min_length=1)


class JWTLocation(Exact):
    """Place of a token in a request: one of these."""

    Header: JWTLocationHeader | None = None
    QueryParam: JWTLocationNamed | None = None
    Cookie: JWTLocationNamed | None = None

    @model_validator(mode="after")
    def _one(self) -> JWTLocation:
        if (self.Header is not None) + (self.QueryParam is not None) + (self.Cookie is not None) != 1:
            raise ValueError("give one of Header, QueryParam, Cookie")
        return self


class JWTForwarding(Exact):
    """Way in which the claims are passed to the application."""

    HeaderName: HeaderText
    PadForwardPayloadHeader: bool = False


class JWTCacheConfig(Exact):
    """Number of verified tokens that are cached."""

    Size: Count = 0


class LocalJWKS(Exact):
    """Keys that are given here or in a file of the sidecar's host: one of these."""

    JWKS: str = ""
    """A JSON Web Key Set in base64."""
    Filename: str = ""

    @model_validator(mode="after")
    def _one(self) -> LocalJWKS:
        if bool(self.JWKS) == bool(self.Filename):
            raise ValueError("give either JWKS or Filename")
        try:
            base64.b64decode(self.JWKS, validate=True)
        except binascii.Error:
            raise ValueError("JWKS: expected a JSON Web Key Set in base64") from None
        return self


class JWKSRetryPolicyBackOff(Exact):
    """Pause before another try."""

    BaseInterval: GoDuration = ""
    MaxInterval: GoDuration = ""

    @model_validator(mode="after")
    def _grows(self) -> JWKSRetryPolicyBackOff:
        base, most = milliseconds(self.BaseInterval or "0s") or 0, milliseconds(self.MaxInterval or "0s") or 0
        if most and base > most:
            raise ValueError("MaxInterval: expected no less than BaseInterval")
        return self


class JWKSRetryPolicy(Exact):
    """Number of further tries."""

    NumRetries: Count = 0
    RetryPolicyBackOff: JWKSRetryPolicyBackOff | None = None


class JWKSTLSCertProviderInstance(Exact):
    """Certificates that Envoy's bootstrap provides; Gossamer's has none."""

    InstanceName: str = ""
    CertificateName: str = ""


class JWKSTLSCertTrustedCA(Exact):
    """Trusted authorities: one of these."""

    Filename: str = ""
    EnvironmentVariable: str = ""
    InlineString: str = ""
    InlineBytes: str = ""

    @model_validator(mode="after")
    def _one(self) -> JWKSTLSCertTrustedCA:
        if sum(map(bool, (self.Filename, self.EnvironmentVariable, self.InlineString, self.InlineBytes))) != 1:
            raise ValueError("give one of Filename, EnvironmentVariable, InlineString, InlineBytes")
        return self


class JWKSTLSCertificate(Exact):
    """Trusted authorities: one of these."""

    CaCertificateProviderInstance: JWKSTLSCertProviderInstance | None = None
    TrustedCA: JWKSTLSCertTrustedCA | None = None

    @model_validator(mode="after")
    def _one(self) -> JWKSTLSCertificate:
        if (self.CaCertificateProviderInstance is None) == (self.TrustedCA is None):
            raise ValueError("give either CaCertificateProviderInstance or TrustedCA")
        return self


class JWKSClusterEntry(Exact):
    """Connection to the server of the keys."""

    DiscoveryType: Literal["", "STATIC", "STRICT_DNS", "LOGICAL_DNS", "EDS", "ORIGINAL_DST"] = ""
    ConnectTimeout: GoDuration = ""
    TLSCertificates: JWKSTLSCertificate | None = None


class RemoteJWKS(Exact):
    """Keys that are fetched."""

    URI: str = Field(pattern=r"^(/|[A-Za-z][A-Za-z0-9+.-]*:)[^\x00-\x20\x7f]*$")
    RequestTimeoutMs: Count = 0
    CacheDuration: GoDuration = ""
    FetchAsynchronously: bool = False
    UseSNI: bool = False
    RetryPolicy: JWKSRetryPolicy | None = None
    JWKSCluster: JWKSClusterEntry | None = None


class JSONWebKeySetEntry(Exact):
    """The keys: one of these."""

    Local: LocalJWKS | None = None
    Remote: RemoteJWKS | None = None

    @model_validator(mode="after")
    def _one(self) -> JSONWebKeySetEntry:
        if (self.Local is None) == (self.Remote is None):
            raise ValueError("give either Local or Remote")
        return self


class JWTProvider(EntryBase):
    """Issuer of JSON Web Tokens, and how they are verified."""

    Kind: Literal["jwt-provider"]
    Name: Name
    Issuer: str = ""
    Audiences: list[str] = []
    JSONWebKeySet: JSONWebKeySetEntry
    Locations: list[JWTLocation] = []
    Forwarding: JWTForwarding | None = None
    ClockSkewSeconds: Count = 30
    CacheConfig: JWTCacheConfig | None = None

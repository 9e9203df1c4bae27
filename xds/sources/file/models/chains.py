"""Routers, splitters and resolvers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from xds.sources.file.models.intentions import Paths
from xds.sources.file.models.values import (
    Anything,
    Count,
    EntryBase,
    Exact,
    Expression,
    FilterText,
    GoDuration,
    HeaderText,
    Name,
)


class HeaderChanges(Exact):
    """What is done to headers."""

    Add: dict[HeaderText, str] = {}
    Set: dict[HeaderText, str] = {}
    Remove: list[HeaderText] = []


class QueryParamMatch(Exact):
    """What a query parameter has to be: one of these."""

    Name: str = Field(min_length=1)
    Present: bool = False
    Exact: str = ""
    Regex: Expression = ""

    @model_validator(mode="after")
    def _one(self) -> QueryParamMatch:
        if bool(self.Present) + bool(self.Exact) + bool(self.Regex) != 1:
            raise ValueError("give one of Present, Exact, Regex")
        return self


class HTTPRouteMatch(Paths):
    """Which requests: those that are all of this."""

    QueryParam: list[QueryParamMatch] = []


class RouteMatch(Exact):
    """Which requests."""

    HTTP: HTTPRouteMatch = HTTPRouteMatch()


class RouteDestination(Exact):
    """Where requests go, and how."""

    Service: str = ""
    """The service; the router's own where none is given."""
    ServiceSubset: str = ""
    Namespace: str = ""
    Partition: str = ""
    PrefixRewrite: str = ""
    RequestTimeout: GoDuration = ""
    IdleTimeout: GoDuration = ""
    NumRetries: Count = 0
    RetryOn: list[str] = []
    RetryOnConnectFailure: bool = False
    RetryOnStatusCodes: list[Annotated[int, Field(ge=100, le=599)]] = []
    RequestHeaders: HeaderChanges = HeaderChanges()
    ResponseHeaders: HeaderChanges = HeaderChanges()


class ServiceRoute(Exact):
    """One route."""

    Match: RouteMatch = RouteMatch()
    Destination: RouteDestination | None = None


class ServiceRouter(EntryBase):
    """Where requests to a service go, by what is in them; the first route that matches counts."""

    Kind: Literal["service-router"]
    Name: Name
    Routes: list[ServiceRoute] = []


class ServiceSplit(Exact):
    """A share of the requests."""

    Weight: Annotated[float, Field(ge=0, le=100, strict=False)]
    """In percent."""
    Service: str = ""
    """The service; the splitter's own where none is given."""
    ServiceSubset: str = ""
    Namespace: str = ""
    Partition: str = ""
    RequestHeaders: HeaderChanges = HeaderChanges()
    ResponseHeaders: HeaderChanges = HeaderChanges()


class ServiceSplitter(EntryBase):
    """How requests to a service are divided."""

    Kind: Literal["service-splitter"]
    Name: Name
    Splits: list[ServiceSplit] = Field(min_length=1)

    @model_validator(mode="after")
    def _adds_up(self) -> ServiceSplitter:
        total = sum(split.Weight for split in self.Splits)
        if round(total, 2) != 100:
            raise ValueError(f"the weights must add up to 100, not {total:g}")
        return self


class Subset(Exact):
    """Some instances of a service."""

    Filter: FilterText = ""
    """Which ones (a filter expression), as in ``Service.Meta.version == v2``."""
    OnlyPassing: bool = False
    """Whether a warning takes an instance out as well."""


class RedirectEntry(Exact):
    """Where a service is found in place of its own instances."""

    Service: str = ""
    ServiceSubset: str = ""
    Namespace: str = ""
    Partition: str = ""
    Datacenter: str = ""
    Peer: str = ""
    SamenessGroup: str = ""


class FailoverTarget(Exact):
    """Where to turn to."""

    Service: str = ""
    ServiceSubset: str = ""
    Namespace: str = ""
    Partition: str = ""
    Datacenter: str = ""
    Peer: str = ""


class FailoverEntry(Exact):
    """Where to turn to when no instance is healthy."""

    Service: str = ""
    ServiceSubset: str = ""
    Namespace: str = ""
    Datacenters: list[str] = []
    Targets: list[FailoverTarget] = []
    Policy: Anything = {}
    SamenessGroup: str = ""


class CookieConfigEntry(Exact):
    """The cookie that Envoy makes where a request has none."""

    Session: bool = False
    TTL: GoDuration = ""
    Path: str = ""


class HashPolicyEntry(Exact):
    """What requests are hashed by."""

    Field: Literal["", "header", "cookie", "query_parameter"] = ""
    FieldValue: str = ""
    CookieConfig: CookieConfigEntry = CookieConfigEntry()
    SourceIP: bool = False
    Terminal: bool = False

    @model_validator(mode="after")
    def _has_a_field(self) -> HashPolicyEntry:
        if self.SourceIP == bool(self.Field and self.FieldValue):
            raise ValueError("give either SourceIP or Field and FieldValue")
        return self


class LeastRequestConfigEntry(Exact):
    """For the policy ``least_request``."""

    ChoiceCount: Count = 0


class RingHashConfigEntry(Exact):
    """For the policy ``ring_hash``."""

    MinimumRingSize: Count = 0
    MaximumRingSize: Count = 0


class LoadBalancerEntry(Exact):
    """How an instance is picked."""

    Policy: Literal["", "random", "round_robin", "least_request", "ring_hash", "maglev"] = ""
    RingHashConfig: RingHashConfigEntry = RingHashConfigEntry()
    LeastRequestConfig: LeastRequestConfigEntry = LeastRequestConfigEntry()
    HashPolicies: list[HashPolicyEntry] = []


class ServiceResolver(EntryBase):
    """How a service is resolved to instances."""

    Kind: Literal["service-resolver"]
    Name: Name
    ConnectTimeout: GoDuration = ""
    RequestTimeout: GoDuration = ""
    DefaultSubset: str = ""
    Subsets: dict[str, Subset] = {}
    Redirect: RedirectEntry | None = None
    Failover: dict[str, FailoverEntry] = {}
    """By subset; ``*`` is any."""
    LoadBalancer: LoadBalancerEntry | None = None
    PrioritizeByLocality: Anything = {}

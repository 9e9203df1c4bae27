"""Models of routers, splitters and resolvers."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from xds.sources.decode.values import milliseconds
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
    ServiceName,
)


class HeaderChanges(Exact):
    """Changes of headers."""

    Add: dict[HeaderText, str] = {}
    Set: dict[HeaderText, str] = {}
    Remove: list[HeaderText] = []


class QueryParamMatch(Exact):
    """Condition on a query parameter: one of these."""

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
    """Conditions on requests, all of which must hold."""

    QueryParam: list[QueryParamMatch] = []


class RouteMatch(Exact):
    """Conditions on requests."""

    HTTP: HTTPRouteMatch = HTTPRouteMatch()


RetryCondition = Literal[
    "5xx", "gateway-error", "reset", "connect-failure", "envoy-ratelimited", "retriable-4xx", "refused-stream",
    "cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable",
]  # fmt: skip
"""Conditions for a retry (Consul, ``isValidRetryCondition``)."""


class RouteDestination(Exact):
    """Destination of requests, and how they are sent there."""

    Service: str = ""
    """The service; the router's own where none is given."""
    ServiceSubset: str = ""
    Namespace: str = ""
    Partition: str = ""
    PrefixRewrite: str = ""
    RequestTimeout: GoDuration = ""
    IdleTimeout: GoDuration = ""
    NumRetries: Count = 0
    RetryOn: list[RetryCondition] = []
    RetryOnConnectFailure: bool = False
    RetryOnStatusCodes: list[Annotated[int, Field(ge=100, le=599)]] = []
    RequestHeaders: HeaderChanges = HeaderChanges()
    ResponseHeaders: HeaderChanges = HeaderChanges()


class ServiceRoute(Exact):
    """Route of requests."""

    Match: RouteMatch = RouteMatch()
    Destination: RouteDestination | None = None

    @model_validator(mode="after")
    def _has_a_prefix(self) -> ServiceRoute:
        http = self.Match.HTTP
        if self.Destination and self.Destination.PrefixRewrite and not (http.PathExact or http.PathPrefix):
            raise ValueError("a PrefixRewrite needs a PathExact or a PathPrefix that it is in place of")
        return self


class ServiceRouter(EntryBase):
    """Routes of requests to a service by their content; the first route that matches counts."""

    Kind: Literal["service-router"]
    Name: ServiceName
    Routes: list[ServiceRoute] = []


class ServiceSplit(Exact):
    """A share of the requests."""

    Weight: Annotated[float, Field(ge=0, le=100, strict=False)]
    """Percent of the requests."""
    Service: str = ""
    """The service; the splitter's own where none is given."""
    ServiceSubset: str = ""
    Namespace: str = ""
    Partition: str = ""
    RequestHeaders: HeaderChanges = HeaderChanges()
    ResponseHeaders: HeaderChanges = HeaderChanges()


class ServiceSplitter(EntryBase):
    """Division of the requests to a service."""

    Kind: Literal["service-splitter"]
    Name: ServiceName
    Splits: list[ServiceSplit] = Field(min_length=1)

    @model_validator(mode="after")
    def _adds_up(self) -> ServiceSplitter:
        total = sum(math.floor(split.Weight * 100 + 0.5) for split in self.Splits)  # in steps of 0.01, as Consul does
        if total != 10_000:
            raise ValueError(f"the weights must add up to 100, not {total / 100:g}")
        plain = [
            (split.Service or self.Name, split.ServiceSubset, split.Namespace, split.Partition)
            for split in self.Splits
            if split.RequestHeaders == split.ResponseHeaders == HeaderChanges()
        ]
        repeated = next((each for each in plain if plain.count(each) > 1), None)
        if repeated is not None:
            raise ValueError(f"there is more than one split to service {repeated[0]!r}, subset {repeated[1]!r}")
        return self


SubsetName = Annotated[str, Field(max_length=63, pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")]
"""A label of a server name (Consul, ``validateServiceSubset``)."""


class Subset(Exact):
    """Subset of the instances of a service."""

    Filter: FilterText = ""
    """Filter expression that selects the instances, as in ``Service.Meta.version == v2``."""
    OnlyPassing: bool = False
    """Whether a warning takes an instance out as well."""


class RedirectEntry(Exact):
    """Service whose instances are used in place of its own."""

    Service: str = ""
    ServiceSubset: str = ""
    Namespace: str = ""
    Partition: str = ""
    Datacenter: str = ""
    Peer: str = ""
    SamenessGroup: str = ""


class FailoverTarget(Exact):
    """Alternative for failover."""

    Service: str = ""
    ServiceSubset: str = ""
    Namespace: str = ""
    Partition: str = ""
    Datacenter: str = ""
    Peer: str = ""


class FailoverEntry(Exact):
    """Alternatives when no instance is healthy."""

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
    """Source of a request's hash."""

    Field: Literal["", "header", "cookie", "query_parameter"] = ""
    FieldValue: str = ""
    CookieConfig: CookieConfigEntry | None = None
    SourceIP: bool = False
    Terminal: bool = False

    @model_validator(mode="after")
    def _has_a_field(self) -> HashPolicyEntry:
        if bool(self.Field) != bool(self.FieldValue) or self.SourceIP == bool(self.Field):
            raise ValueError("give either SourceIP or Field and FieldValue")
        cookie = self.CookieConfig
        if cookie is not None and self.Field != "cookie":
            raise ValueError("CookieConfig is for Field: cookie")
        if cookie is not None and cookie.Session and (milliseconds(cookie.TTL or "0s") or 0) != 0:
            raise ValueError("CookieConfig: a Session cookie has no TTL")
        return self


class LeastRequestConfigEntry(Exact):
    """Settings of the policy ``least_request``."""

    ChoiceCount: Count = 0


class RingHashConfigEntry(Exact):
    """Settings of the policy ``ring_hash``."""

    MinimumRingSize: Count = 0
    MaximumRingSize: Count = 0


class LoadBalancerEntry(Exact):
    """Method by which an instance is picked."""

    Policy: Literal["", "random", "round_robin", "least_request", "ring_hash", "maglev"] = ""
    RingHashConfig: RingHashConfigEntry | None = None
    LeastRequestConfig: LeastRequestConfigEntry | None = None
    HashPolicies: list[HashPolicyEntry] = []

    @model_validator(mode="after")
    def _fits(self) -> LoadBalancerEntry:
        if self.RingHashConfig is not None and self.Policy != "ring_hash":
            raise ValueError(f"RingHashConfig is for Policy: ring_hash, not {self.Policy!r}")
        if self.LeastRequestConfig is not None and self.Policy != "least_request":
            raise ValueError(f"LeastRequestConfig is for Policy: least_request, not {self.Policy!r}")
        if self.HashPolicies and self.Policy not in ("ring_hash", "maglev"):
            raise ValueError(f"HashPolicies are for Policy: ring_hash or maglev, not {self.Policy!r}")
        return self


class ServiceResolver(EntryBase):
    """Resolution of a service to instances."""

    Kind: Literal["service-resolver"]
    Name: ServiceName
    ConnectTimeout: GoDuration = ""
    RequestTimeout: GoDuration = ""
    DefaultSubset: str = ""
    Subsets: dict[SubsetName, Subset] = {}
    Redirect: RedirectEntry | None = None
    Failover: dict[str, FailoverEntry] = {}
    """Failover by subset; ``*`` is any."""
    LoadBalancer: LoadBalancerEntry | None = None
    PrioritizeByLocality: Anything = {}

    @model_validator(mode="after")
    def _makes_sense(self) -> ServiceResolver:
        if self.DefaultSubset and self.DefaultSubset not in self.Subsets:
            raise ValueError(f"DefaultSubset: there is no subset {self.DefaultSubset!r}")
        for field in ("ConnectTimeout", "RequestTimeout"):
            if (milliseconds(getattr(self, field) or "0s") or 0) < 0:
                raise ValueError(f"{field}: expected no negative duration")
        if self.Redirect is not None:
            if self.Failover:
                raise ValueError("Redirect and Failover exclude each other")
            self._check_redirect(self.Redirect)
        for subset, failover in self.Failover.items():
            where = f"Failover[{subset!r}]"
            if subset != "*" and subset not in self.Subsets:
                raise ValueError(f"{where}: there is no subset {subset!r}")
            self._check_failover(where, failover)
        return self

    def _check_subset(self, where: str, service: str, subset: str) -> None:
        if subset and service in ("", self.Name) and subset not in self.Subsets:
            raise ValueError(f"{where}.ServiceSubset: there is no subset {subset!r} of {self.Name!r}")

    def _check_redirect(self, to: RedirectEntry) -> None:
        if not to.model_dump(exclude_defaults=True):
            raise ValueError("Redirect: there is nothing in it")
        if not to.Service:
            needing = [field for field in ("ServiceSubset", "Namespace", "Partition", "Peer") if getattr(to, field)]
            if needing and not to.SamenessGroup:
                raise ValueError(f"Redirect.{needing[0]} needs a Redirect.Service")
        for one, others in (
            ("SamenessGroup", ("ServiceSubset", "Partition", "Datacenter")),
            ("Peer", ("ServiceSubset", "Partition", "Datacenter")),
        ):
            both = [other for other in others if getattr(to, one) and getattr(to, other)]
            if both:
                raise ValueError(f"Redirect.{one} and Redirect.{both[0]} exclude each other")
        self._check_subset("Redirect", to.Service, to.ServiceSubset)

    def _check_failover(self, where: str, to: FailoverEntry) -> None:
        if not (to.Service or to.ServiceSubset or to.Namespace or to.Datacenters or to.Targets or to.SamenessGroup):
            raise ValueError(f"{where}: give Service, ServiceSubset, Datacenters or Targets")
        self._check_subset(where, to.Service, to.ServiceSubset)
        for one, others in (
            ("SamenessGroup", ("Datacenters", "ServiceSubset", "Targets")),
            ("Targets", ("Datacenters", "ServiceSubset", "Service")),
        ):
            both = [other for other in others if getattr(to, one) and getattr(to, other)]
            if both:
                raise ValueError(f"{where}: {one} and {both[0]} exclude each other")
        if "" in to.Datacenters:
            raise ValueError(f"{where}.Datacenters: a datacenter has a name")
        for number, target in enumerate(to.Targets):
            at = f"{where}.Targets[{number}]"
            both = [
                other
                for other in ("ServiceSubset", "Partition", "Datacenter")
                if target.Peer and getattr(target, other)
            ]
            if both or (target.Partition and target.Datacenter):
                one, other = ("Peer", both[0]) if both else ("Partition", "Datacenter")
                raise ValueError(f"{at}: {one} and {other} exclude each other")
            self._check_subset(at, target.Service, target.ServiceSubset)

"""Decodes ``/v1/discovery-chain/:service``: a compiled discovery chain."""

from __future__ import annotations

from typing import Any

from xds.mesh.chains import (
    DEFAULT_CONNECT_TIMEOUT_MS,
    WHOLE,
    DiscoveryChain,
    HashPolicy,
    LoadBalancer,
    Node,
    Resolver,
    Retries,
    Route,
    Router,
    Split,
    Splitter,
    Target,
)
from xds.mesh.http import RequestMatch
from xds.policy.filters import FilterError, parse_filter
from xds.policy.quotas import DEFAULT_QUOTAS, DEFAULT_RING, Quotas
from xds.sources.decode.requests import header_changes, request_match
from xds.sources.decode.values import Fields, Limits, Problem, header_name

LARGEST_RING = 8 << 20
"""Entries of a hash ring; Envoy takes no more."""
POLICIES = ("random", "round_robin", "least_request", "ring_hash", "maglev")


def chain(service: str, data: Any, *, elsewhere: bool = False, quotas: Quotas = DEFAULT_QUOTAS) -> DiscoveryChain:
    """Decode a chain that Consul compiled, or return the reason why it can't be followed, with kind, entry and field.

    Args:
        service: whose it is.
        data: the answer.
        elsewhere: whether it is for another datacenter, so that none of its targets is here for being there.
        quotas: its limits. A chain that exceeds them is not decoded.
    """
    compiled = data["Chain"]
    virtual_ips = (*(compiled.get("AutoVirtualIPs") or ()), *(compiled.get("ManualVirtualIPs") or ()))
    too_large = _too_large(compiled, quotas)
    if too_large is not None:
        return DiscoveryChain(service, virtual_ips=virtual_ips, refusal=too_large)
    problems: list[str] = []
    minor: list[str] = []
    limits = Limits(quotas)
    nodes = {
        key: _node(node, problems.append, minor.append, limits) for key, node in (compiled.get("Nodes") or {}).items()
    }
    home = "" if elsewhere else compiled.get("Datacenter") or ""
    timeouts = _resolvers_timeouts(compiled)
    targets = {
        key: _target({"ConnectTimeout": timeouts.get(key), **target}, home, problems.append)
        for key, target in (compiled.get("Targets") or {}).items()
    }
    start = compiled.get("StartNode") or ""
    if start not in nodes:
        problems.append(f"its discovery chain begins with {start!r}, which it does not have")
    return DiscoveryChain(
        service,
        (compiled.get("Protocol") or "tcp").lower(),
        start,
        nodes,
        targets,
        virtual_ips,
        refusal="; ".join(dict.fromkeys(problems)) or None,
        problems=tuple(dict.fromkeys(minor)),
    )


def _too_large(compiled: Any, quotas: Quotas) -> str | None:
    """Return which of the quotas that can be counted before anything is decoded a chain exceeds."""
    nodes = list((compiled.get("Nodes") or {}).values())
    for name, amount in (
        ("routes", sum(len(node.get("Routes") or ()) for node in nodes)),
        ("splits", sum(len(node.get("Splits") or ()) for node in nodes)),
        ("targets", len(compiled.get("Targets") or ())),
    ):
        limit = getattr(quotas, name)
        if amount > limit:
            return (
                f"its discovery chain has too many {name}: {amount}, and the quota {name} is {limit} (gossamer serve"
                f" --quota {name}={amount})"
            )
    return None


def _resolvers_timeouts(compiled: Any) -> dict[str, Any]:
    """Return the connect timeout of each target's resolver: a Consul before 1.10 has it there and not at the target."""
    found: dict[str, Any] = {}
    resolvers = [node.get("Resolver") or {} for node in (compiled.get("Nodes") or {}).values()]
    for resolver in resolvers:
        for key in (resolver.get("Failover") or {}).get("Targets") or ():
            found.setdefault(key, resolver.get("ConnectTimeout"))
    return found | {
        resolver["Target"]: resolver.get("ConnectTimeout") for resolver in resolvers if "Target" in resolver
    }


def _node(node: Any, problem: Problem, minor: Problem, limits: Limits) -> Node:
    entry = f"service-{node['Type']}/{_service_of(node['Name'])}: "

    def report(what: str) -> None:
        problem(entry + what)

    def report_minor(what: str) -> None:
        minor(entry + what)

    balancer = _load_balancer(Fields(node.get("LoadBalancer"), "LoadBalancer", report))
    if node["Type"] == "router":
        routes = [
            _route(
                Fields(route.get("Definition"), f"Routes[{number}]", report, report_minor, limits), route["NextNode"]
            )
            for number, route in enumerate(node.get("Routes") or ())
        ]
        return Router(tuple(routes))
    if node["Type"] == "splitter":
        splits = [
            _split(Fields(split.get("Definition"), f"Splits[{number}]", report, report_minor, limits), split)
            for number, split in enumerate(node.get("Splits") or ())
        ]
        return Splitter(_whole(splits), balancer)
    resolver = Fields(node.get("Resolver"), "", report)
    failover = resolver.part("Failover")
    return Resolver(
        resolver.text("Target"), failover.texts("Targets"), resolver.limit("RequestTimeout"), balancer
    )  # fmt: skip


def _service_of(name: str) -> str:
    """Return the service in a node's name: the part before the namespace, the datacenter or the subset's service."""
    return name.removesuffix(".default.default").partition(".default.")[0]


def _route(fields: Fields, next_node: str) -> Route:
    match, destination = fields.part("Match"), fields.part("Destination")
    found = Route(
        match=request_match(match.part("HTTP")) if match else RequestMatch(),
        node=next_node,
        prefix_rewrite=destination.text("PrefixRewrite"),
        request_timeout_ms=destination.limit("RequestTimeout"),
        idle_timeout_ms=destination.limit("IdleTimeout"),
        retries=_retries(destination),
        request_headers=header_changes(destination.part("RequestHeaders")),
        response_headers=header_changes(destination.part("ResponseHeaders")),
    )
    destination.skip("Service", "ServiceSubset", "Namespace", "Partition")
    for part in (fields, match, destination):
        part.done()
    return found


def _retries(destination: Fields) -> Retries | None:
    count, on = destination.number("NumRetries"), list(destination.texts("RetryOn"))
    codes = destination.raw("RetryOnStatusCodes") or ()
    if destination.flag("RetryOnConnectFailure") and "connect-failure" not in on:
        on.append("connect-failure")
    if not isinstance(codes, list | tuple) or not all(isinstance(c, int) and 100 <= c <= 599 for c in codes):
        destination.report("RetryOnStatusCodes", f"expected numbers from 100 to 599, not {codes!r}")
        codes = ()
    if codes:
        on.append("retriable-status-codes")
    # As in Consul, NumRetries without conditions retries nothing.
    return Retries(tuple(on), count or None, tuple(codes)) if on or count else None


def _split(fields: Fields, split: Any) -> Split:
    return Split(
        weight=round(float(split.get("Weight") or 0) * WHOLE / 100),
        node=split["NextNode"],
        request_headers=header_changes(fields.part("RequestHeaders")),
        response_headers=header_changes(fields.part("ResponseHeaders")),
    )


def _whole(splits: list[Split]) -> tuple[Split, ...]:
    """Add what rounding lost to the first split, as Consul does."""
    missing = WHOLE - sum(split.weight for split in splits)
    if splits and missing:
        first = splits[0]
        splits[0] = Split(first.weight + missing, first.node, first.request_headers, first.response_headers)
    return tuple(splits)


def _load_balancer(fields: Fields) -> LoadBalancer | None:
    if not fields:
        return None
    least, ring = fields.part("LeastRequestConfig"), fields.part("RingHashConfig")
    count = least.number("ChoiceCount") or None
    if count == 1:
        least.report("ChoiceCount", "expected at least 2, to choose from")
    smallest, largest = (ring.number(field, LARGEST_RING) or None for field in ("MinimumRingSize", "MaximumRingSize"))
    if (smallest or DEFAULT_RING) > (largest or LARGEST_RING):
        ring.report(
            "MaximumRingSize",
            f"{largest} is less than MinimumRingSize, {smallest or f'which is {DEFAULT_RING} where it is not given'}",
        )
    return LoadBalancer(
        policy=fields.choice("Policy", *POLICIES),
        choice_count=count,
        minimum_ring_size=smallest,
        maximum_ring_size=largest,
        hash_policies=tuple(_hash_policy(policy) for policy in fields.each("HashPolicies")),
    )


def _hash_policy(fields: Fields) -> HashPolicy:
    field, value = fields.choice("Field", "header", "cookie", "query_parameter"), fields.text("FieldValue")
    cookie = fields.part("CookieConfig")
    ttl = 0 if cookie.flag("Session") else cookie.duration("TTL")
    terminal = fields.flag("Terminal")
    if ttl is not None and ttl < 0:
        cookie.report("TTL", "expected no negative duration")
    if not fields.flag("SourceIP"):
        wrong = header_name(value) if field in ("header", "cookie") else None if value else "expected a FieldValue"
        if not field or wrong is not None:
            fields.report("FieldValue" if field else "Field", wrong or "expected header, cookie or query_parameter")
    if fields.flag("SourceIP"):
        return HashPolicy(source_ip=True, terminal=terminal)
    if field == "header":
        return HashPolicy(header=value, terminal=terminal)
    if field == "cookie":
        return HashPolicy(cookie=value, cookie_path=cookie.text("Path"), cookie_ttl_ms=ttl, terminal=terminal)
    return HashPolicy(query_parameter=value, terminal=terminal)


def _target(target: Any, home: str, problem: Problem) -> Target:
    service = target.get("Service") or ""
    entry = f"service-resolver/{service}: "

    def report(what: str) -> None:
        problem(entry + what)

    fields = Fields(target, "", report)
    subset = fields.part("Subset")
    subset.where = f"Subsets[{fields.text('ServiceSubset')!r}]"
    expression = subset.text("Filter")
    try:
        parse_filter(expression)
    except FilterError as error:
        subset.report("Filter", str(error))
        expression = ""
    if target.get("Peer"):
        report(f"leads to the peer {target['Peer']!r}, whose trust bundle Consul's HTTP API does not give")
    datacenter = fields.text("Datacenter")
    return Target(
        service=service,
        datacenter=datacenter if datacenter != home else "",
        subset=fields.text("ServiceSubset"),
        filter=expression,
        only_passing=subset.flag("OnlyPassing"),
        connect_timeout_ms=fields.limit("ConnectTimeout") or DEFAULT_CONNECT_TIMEOUT_MS,
        external_sni=fields.text("SNI") if fields.flag("External") else "",
        mesh_gateway=fields.part("MeshGateway").text("Mode"),
    )

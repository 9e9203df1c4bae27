"""Config entries that make every kind of discovery chain, and chains in a form that can be compared."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from xds.mesh.chains import DiscoveryChain, Resolver, Router

HEADERS = {"Add": {"x-outer": "1"}, "Set": {"x-both": "outer"}, "Remove": ["x-gone"]}

ENTRIES: list[dict[str, Any]] = [
    {"Kind": "proxy-defaults", "Name": "global", "Config": {"protocol": "http"}, "MeshGateway": {"Mode": "local"}},
    {"Kind": "service-defaults", "Name": "db", "Protocol": "tcp", "MeshGateway": {"Mode": "remote"}},
    {
        "Kind": "service-resolver",
        "Name": "api",
        "ConnectTimeout": "3s",
        "DefaultSubset": "v1",
        "Subsets": {"v1": {"Filter": "Service.Meta.version == v1"}, "v2": {"OnlyPassing": True}},
        "Failover": {"v2": {"ServiceSubset": "v1"}, "*": {"Service": "other"}},
    },
    {"Kind": "service-resolver", "Name": "old", "Redirect": {"Service": "api", "ServiceSubset": "v2"}},
    {"Kind": "service-resolver", "Name": "older", "Redirect": {"Service": "old"}},
    {"Kind": "service-resolver", "Name": "far", "Redirect": {"Service": "api", "Datacenter": "dc2"}},
    {"Kind": "service-resolver", "Name": "db", "Failover": {"*": {"Datacenters": ["dc2", "dc3"]}}},
    {
        "Kind": "service-splitter",
        "Name": "shop",
        "Splits": [{"Weight": 33.4, "ServiceSubset": ""}, {"Weight": 66.6, "Service": "inner"}],
    },
    {
        "Kind": "service-splitter",
        "Name": "inner",
        "Splits": [{"Weight": 12.5, "Service": "api", "ServiceSubset": "v2"}, {"Weight": 87.5, "Service": "older"}],
    },
    {
        "Kind": "service-router",
        "Name": "front",
        "Routes": [
            {
                "Match": {
                    "HTTP": {
                        "PathPrefix": "/shop",
                        "Header": [{"Name": "x-a", "Prefix": "b", "Invert": True}],
                        "QueryParam": [{"Name": "q", "Present": True}],
                        "Methods": ["GET", "PUT"],
                    }
                },
                "Destination": {
                    "Service": "shop",
                    "PrefixRewrite": "/",
                    "RequestTimeout": "7s",
                    "NumRetries": 2,
                    "RetryOnConnectFailure": True,
                    "RetryOnStatusCodes": [502, 503],
                },
            },
            {"Match": {"HTTP": {"PathExact": "/v2"}}, "Destination": {"Service": "api", "ServiceSubset": "v2"}},
            {"Match": {"HTTP": {"PathRegex": "/[ab]+"}}},
        ],
    },
]
"""Entries that Consul 1.8 accepts as well."""

NEWER_ENTRIES: list[dict[str, Any]] = [
    {
        "Kind": "service-resolver",
        "Name": "hashed",
        "RequestTimeout": "9s",
        "LoadBalancer": {
            "Policy": "ring_hash",
            "RingHashConfig": {"MinimumRingSize": 9, "MaximumRingSize": 99},
            "HashPolicies": [
                {"Field": "cookie", "FieldValue": "c", "CookieConfig": {"TTL": "1h", "Path": "/p"}},
                {"SourceIP": True, "Terminal": True},
            ],
        },
        "Failover": {"*": {"Targets": [{"Service": "api"}, {"Datacenter": "dc2"}]}},
    },
    {
        "Kind": "service-splitter",
        "Name": "headed",
        "Splits": [
            {"Weight": 50, "Service": "hashed"},
            {"Weight": 50, "Service": "headed-inner", "RequestHeaders": HEADERS, "ResponseHeaders": HEADERS},
        ],
    },
    {
        "Kind": "service-splitter",
        "Name": "headed-inner",
        "Splits": [
            {
                "Weight": 100,
                "Service": "other",
                "RequestHeaders": {"Add": {"x-inner": "1"}, "Set": {"x-both": "inner"}},
                # Both maps are there: Consul 1.16 panics where one of them is not.
                "ResponseHeaders": {"Add": {"x-inner": "1"}, "Set": {"x-both": "inner"}, "Remove": ["x-also"]},
            }
        ],
    },
    {
        "Kind": "service-router",
        "Name": "timed",
        "Routes": [
            {
                "Match": {"HTTP": {"PathPrefix": "/"}},
                "Destination": {
                    "Service": "hashed",
                    "IdleTimeout": "1m",
                    "RequestHeaders": HEADERS,
                    "RetryOn": ["reset"],
                },
            }
        ],
    },
    {"Kind": "service-defaults", "Name": "outside", "Protocol": "http", "ExternalSNI": "sni.example"},
]
"""Entries that need a newer Consul."""

NAMES = ("api", "old", "older", "far", "db", "shop", "inner", "front", "plain")
NEWER_NAMES = ("hashed", "headed", "timed", "outside")


def shape(chain: DiscoveryChain, *, by_1_8: bool = False) -> Any:
    """Return a chain with its nodes and targets in place of their names, which are the compiler's own.

    ``by_1_8`` leaves out what Consul 1.8 does differently: targets of failover have the timeout of the failing one.
    """
    if chain.refusal is not None:
        return chain.refusal

    def unfolded(key: str) -> Any:
        node = chain.nodes[key]
        if isinstance(node, Resolver):
            ends = [chain.targets[each] for each in (node.target, *node.failover)]
            # Consul 1.8 names the gateway mode only where it counts.
            targets = [end if end.datacenter else replace(end, mesh_gateway="") for end in ends]
            if by_1_8:
                targets[1:] = [replace(target, connect_timeout_ms=0) for target in targets[1:]]
            return replace(node, target="", failover=()), targets
        if isinstance(node, Router):
            return [(replace(route, node=""), unfolded(route.node)) for route in node.routes]
        return node.load_balancer, [(replace(split, node=""), unfolded(split.node)) for split in node.splits]

    return chain.service, chain.protocol, unfolded(chain.start)

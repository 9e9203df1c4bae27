"""Decodes the settings of sidecars: those in registrations, and config entries (``/v1/config/:kind``)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from xds.mesh.addresses import is_ip
from xds.mesh.config_entries import (
    AccessLogs,
    ClusterMode,
    ConfigEntries,
    Destination,
    EntryProblem,
    ExposedPath,
    Extension,
    MeshSettings,
    PassiveHealthCheck,
    ProxyMode,
    ProxySettings,
    TLSParameters,
    UpstreamSettings,
)
from xds.mesh.intentions import TokenProvider
from xds.mesh.names import fold
from xds.sources.decode.intentions import token_provider
from xds.sources.decode.shapes import fields, items
from xds.sources.decode.values import Fields, Problem

CHAIN_KINDS = ("service-router", "service-splitter", "service-resolver", "service-defaults")
"""The kinds of config entries that make the service they are named after an upstream."""
HOST_NAME = re.compile(
    r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*"
)
TLS_VERSIONS = {
    "": "",
    "TLS_AUTO": "",
    "TLSv1_0": "TLSv1_0",
    "TLSv1_1": "TLSv1_1",
    "TLSv1_2": "TLSv1_2",
    "TLSv1_3": "TLSv1_3",
}
TLS_VERSIONS_IN_ORDER = ("TLSv1_0", "TLSv1_1", "TLSv1_2", "TLSv1_3")
CIPHERS = {
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA": "ECDHE-ECDSA-AES128-SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA": "ECDHE-RSA-AES128-SHA",
    "TLS_RSA_WITH_AES_128_GCM_SHA256": "AES128-GCM-SHA256",
    "TLS_RSA_WITH_AES_128_CBC_SHA": "AES128-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA": "ECDHE-ECDSA-AES256-SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA": "ECDHE-RSA-AES256-SHA",
    "TLS_RSA_WITH_AES_256_GCM_SHA384": "AES256-GCM-SHA384",
    "TLS_RSA_WITH_AES_256_CBC_SHA": "AES256-SHA",
}
"""Consul's cipher suites (``types/tls.go``), each as Envoy calls it."""
CIPHER_SUITES = tuple(CIPHERS)
METRICS_LISTENERS = ("envoy_prometheus_bind_addr", "envoy_stats_bind_addr", "envoy_ready_bind_addr")
"""Keys that Consul's own bootstrap makes listeners of."""
LARGEST_HEADERS_KB = 8192
"""Envoy takes no larger limit."""


def proxy_settings(source: Mapping[str, Any], config: Mapping[str, Any], problem: Problem) -> ProxySettings:
    """Decode the settings of sidecars in a registration's ``Proxy``, the service-defaults or the proxy-defaults.

    Args:
        source: holds ``Mode`` and ``TransparentProxy`` and, in the service-defaults, limits and timeouts.
        config: the opaque ``Config`` map.
        problem: called with what can't be followed.
    """
    direct, opaque = Fields(source, "", problem), Fields(config, "Config", problem)
    transparent, expose = direct.part("TransparentProxy"), direct.part("Expose")
    balance = opaque.text("balance_inbound_connections") or direct.text("BalanceInboundConnections")
    if balance not in ("", "exact_balance"):
        direct.report("BalanceInboundConnections", f"expected 'exact_balance', not {balance!r}; taken as not given")
    for field in METRICS_LISTENERS:
        if opaque.text(field):
            opaque.report(field, "there is no such listener; metrics are at Envoy's admin interface, /stats/prometheus")
    local_request_timeout = opaque.number("local_request_timeout_ms")
    return ProxySettings(
        mode=_mode(direct, "Mode"),
        fallback_mode=_mode(opaque, "mode"),
        clusters=_cluster_mode(opaque),
        outbound_listener_port=transparent.port("OutboundListenerPort"),
        bind_address=opaque.text("bind_address") or None,
        bind_port=opaque.port("bind_port"),
        protocol=(opaque.text("protocol") or direct.text("Protocol")).lower() or None,
        local_connect_timeout_ms=opaque.number("local_connect_timeout_ms")
        or direct.number("LocalConnectTimeoutMs")
        or None,
        local_request_timeout_ms=direct.number("LocalRequestTimeoutMs") or None
        if local_request_timeout is None
        else local_request_timeout,
        local_idle_timeout_ms=opaque.number("local_idle_timeout_ms"),
        max_inbound_connections=opaque.number("max_inbound_connections")
        or direct.number("MaxInboundConnections")
        or None,
        balance_inbound_connections=True if balance == "exact_balance" else None,
        max_request_headers_kb=opaque.number("max_request_headers_kb", LARGEST_HEADERS_KB)
        or direct.number("MaxRequestHeadersKB", LARGEST_HEADERS_KB)
        or None,
        permissive_mtls={"permissive": True, "strict": False}.get(
            direct.choice("MutualTLSMode", "strict", "permissive")
        ),
        access_logs=_access_logs(direct.part("AccessLogs")),
        tracing_json=opaque.text("envoy_listener_tracing_json") or None,
        public_listener_json=opaque.text("envoy_public_listener_json") or None,
        local_cluster_json=opaque.text("envoy_local_cluster_json") or None,
        extensions=_extensions(direct) or None,
        mesh_gateway=direct.part("MeshGateway").choice("Mode", "none", "local", "remote") or None,
        dialed_directly=True if transparent.flag("DialedDirectly") else None,
        exposed_paths=_exposed_paths(expose) or None,
        **_upstreams(direct.part("UpstreamConfig")),
    )


def _mode(fields: Fields, field: str) -> ProxyMode | None:
    value = fields.choice(field, *(mode.value for mode in ProxyMode))
    return ProxyMode(value) if value else None


def _cluster_mode(opaque: Fields) -> ClusterMode | None:
    value = opaque.choice("gossamer_clusters", *(mode.value for mode in ClusterMode))
    return ClusterMode(value) if value else None


def _extensions(direct: Fields) -> tuple[Extension, ...]:
    found = []
    for extension in direct.each("EnvoyExtensions"):
        arguments = json.dumps(extension.raw("Arguments") or {}, sort_keys=True)
        found.append(Extension(extension.text("Name"), extension.flag("Required"), arguments))
    return tuple(found)


def _access_logs(fields: Fields) -> AccessLogs | None:
    if not fields.flag("Enabled"):
        return None
    return AccessLogs(
        sink=fields.choice("Type", "stdout", "stderr", "file") or "stdout",
        path=fields.text("Path"),
        json_format=fields.text("JSONFormat"),
        text_format=fields.text("TextFormat"),
        listener_logs=not fields.flag("DisableListenerLogs"),
    )


def _exposed_paths(expose: Fields) -> tuple[ExposedPath, ...]:
    if expose.flag("Checks"):
        expose.problem("Expose.Checks is not served yet: name the paths of the checks in Expose.Paths")
    found = []
    for path in expose.each("Paths"):
        text, protocol = path.text("Path"), path.text("Protocol") or "http"
        ports = path.port("ListenerPort"), path.port("LocalPathPort")
        if not text.startswith("/"):
            path.problem(f"the exposed path {text!r} does not begin with a slash; it is left out")
        elif protocol not in ("http", "http2"):
            path.problem(f"the exposed path {text!r} wants protocol {protocol!r}: expected http or http2; left out")
        elif ports[0] is None or ports[1] is None:
            path.problem(f"the exposed path {text!r} needs a ListenerPort and a LocalPathPort; it is left out")
        else:
            found.append(ExposedPath(text, ports[0], ports[1], protocol == "http2"))
    return tuple(found)


def _upstreams(fields: Fields) -> dict[str, Any]:
    defaults, overrides = fields.part("Defaults"), list(fields.each("Overrides"))
    return {
        "upstream_defaults": upstream_settings(defaults) if defaults else None,
        "upstream_overrides": {fold(each.text("Name")): upstream_settings(each) for each in overrides} or None,
    }


def upstream_settings(fields: Fields) -> UpstreamSettings:
    """Decode the settings for calls of an upstream: ``UpstreamConfig`` and an upstream's ``Config`` spell them
    differently.

    Source: Consul, service-defaults ``UpstreamConfig``; "Proxy upstream configuration".
    """

    def spelled(of: Fields, *names: str) -> str:
        return next((name for name in names if of.raw(name) is not None), names[0])

    limits = fields.part(spelled(fields, "Limits", "limits"))
    health = fields.part(spelled(fields, "PassiveHealthCheck", "passive_health_check"))
    passive = PassiveHealthCheck(
        interval_ms=health.positive(spelled(health, "Interval", "interval")),
        max_failures=health.number(spelled(health, "MaxFailures", "max_failures")) or None,
        enforcing_consecutive_5xx=health.percent(
            spelled(health, "EnforcingConsecutive5xx", "enforcing_consecutive_5xx")
        ),
        max_ejection_percent=health.percent(spelled(health, "MaxEjectionPercent", "max_ejection_percent")),
        base_ejection_time_ms=health.positive(spelled(health, "BaseEjectionTime", "base_ejection_time")),
    )
    gateway = fields.part(spelled(fields, "MeshGateway", "mesh_gateway"))
    balance = fields.choice(
        spelled(fields, "BalanceOutboundConnections", "balance_outbound_connections"), "exact_balance"
    )
    return UpstreamSettings(
        connect_timeout_ms=fields.number(spelled(fields, "ConnectTimeoutMs", "connect_timeout_ms")) or None,
        protocol=fields.text(spelled(fields, "Protocol", "protocol")).lower() or None,
        mesh_gateway=gateway.choice(spelled(gateway, "Mode", "mode"), "none", "local", "remote") or None,
        max_connections=limits.number(spelled(limits, "MaxConnections", "max_connections")),
        max_pending_requests=limits.number(spelled(limits, "MaxPendingRequests", "max_pending_requests")),
        max_concurrent_requests=limits.number(spelled(limits, "MaxConcurrentRequests", "max_concurrent_requests")),
        passive_health_check=passive if health else None,
        balance_connections=True if balance == "exact_balance" else None,
        listener_json=fields.text(spelled(fields, "EnvoyListenerJSON", "envoy_listener_json")) or None,
        cluster_json=fields.text(spelled(fields, "EnvoyClusterJSON", "envoy_cluster_json")) or None,
    )


@dataclass(frozen=True, slots=True)
class EntryFacts:
    """Facts of one config entry; empty for an entry that is not about sidecars."""

    kind: str
    name: str
    proxy_defaults: ProxySettings | None = None
    service_defaults: ProxySettings | None = None
    destination: Destination | None = None
    mesh: MeshSettings | None = None
    token_provider: TokenProvider | None = None
    problems: tuple[EntryProblem, ...] = ()


def entry_facts(entry: Any) -> EntryFacts:
    """Decode one config entry. One that is not understood is set aside alone."""
    given = entry if isinstance(entry, Mapping) else {}
    kind, name = str(given.get("Kind")), given.get("Name")
    name = name if isinstance(name, str) else ""
    problems: list[EntryProblem] = []

    def problem(text: str) -> None:
        problems.append(EntryProblem(kind, name or "mesh", text))

    found = EntryFacts(kind, name)
    try:
        match kind:
            case "proxy-defaults" if name == "global":
                found = replace(found, proxy_defaults=proxy_settings(given, fields(given, "Config"), problem))
            case "service-defaults":
                destination = _destination(Fields(given.get("Destination"), "Destination", problem))
                settings = proxy_settings(given, {}, problem)
                found = replace(found, service_defaults=settings, destination=destination)
            case "mesh":
                found = replace(found, mesh=_mesh(Fields(given, "", problem)))
            case "jwt-provider":
                found = replace(found, token_provider=token_provider(given, problem))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        problem(f"is not understood, so it is left out: {type(error).__name__}: {error}")
    return replace(found, problems=tuple(problems)) if problems else found


def combined(entries: Iterable[EntryFacts]) -> ConfigEntries:
    """Return these entries combined."""
    proxy_defaults, mesh = ProxySettings(), MeshSettings()
    service_defaults: dict[str, ProxySettings] = {}
    token_providers: dict[str, TokenProvider] = {}
    destinations: dict[str, Destination] = {}
    problems: list[EntryProblem] = []
    names: set[str] = set()
    for each in entries:
        problems += each.problems
        proxy_defaults = each.proxy_defaults or proxy_defaults
        mesh = each.mesh or mesh
        if each.kind in CHAIN_KINDS and each.name:
            names.add(each.name)
        if each.service_defaults is not None:
            service_defaults[fold(each.name)] = each.service_defaults
        if each.destination is not None:
            destinations[fold(each.name)] = each.destination
        if each.token_provider is not None:
            token_providers[each.token_provider.name] = each.token_provider
    return ConfigEntries(
        proxy_defaults, service_defaults, mesh, token_providers, destinations, frozenset(names - {"*"}), tuple(problems)
    )


def config_entries(data: Any) -> ConfigEntries:
    """Decode ``/v1/config/:kind``, of any kinds: what shapes sidecars."""
    return combined(map(entry_facts, items(data, "config entries")))


def _destination(fields: Fields) -> Destination | None:
    if not fields:
        return None
    port, addresses = fields.port("Port"), []
    for address in fields.texts("Addresses"):
        if is_ip(address) or HOST_NAME.fullmatch(address):
            addresses.append(address.lower())
        else:
            fields.report("Addresses", f"{address!r} is neither an IP address nor a host name; it is left out")
    if port is None:
        fields.report("Port", "expected a port from 1 to 65535; the destination is left out")
    return Destination(tuple(dict.fromkeys(addresses)), port) if port is not None and addresses else None


def _mesh(fields: Fields) -> MeshSettings:
    tls, http = fields.part("TLS"), fields.part("HTTP")
    normal = http.part("Incoming").part("RequestNormalization")
    return MeshSettings(
        destinations_only=fields.part("TransparentProxy").flag("MeshDestinationsOnly"),
        allow_permissive_mtls=fields.flag("AllowEnablingPermissiveMutualTLS"),
        incoming_tls=_tls(tls.part("Incoming")),
        outgoing_tls=_tls(tls.part("Outgoing")),
        sanitize_client_cert=http.flag("SanitizeXForwardedClientCert"),
        normalize_path=not normal.flag("InsecureDisablePathNormalization"),
        merge_slashes=normal.flag("MergeSlashes"),
        escaped_slashes=normal.choice(
            "PathWithEscapedSlashesAction",
            *("IMPLEMENTATION_SPECIFIC_DEFAULT", "KEEP_UNCHANGED", "REJECT_REQUEST"),
            *("UNESCAPE_AND_REDIRECT", "UNESCAPE_AND_FORWARD"),
        ),
        headers_with_underscores=normal.choice(
            "HeadersWithUnderscoresAction", "ALLOW", "REJECT_REQUEST", "DROP_HEADER"
        ),
    )


def _tls(fields: Fields) -> TLSParameters:
    minimum, maximum = fields.choice("TLSMinVersion", *TLS_VERSIONS), fields.choice("TLSMaxVersion", *TLS_VERSIONS)
    if minimum in TLS_VERSIONS_IN_ORDER and maximum in TLS_VERSIONS_IN_ORDER and maximum < minimum:
        fields.report("TLSMaxVersion", f"{maximum} is less than TLSMinVersion {minimum}; taken as not given")
        maximum = ""
    ciphers = []
    for suite in fields.texts("CipherSuites"):
        if suite in CIPHERS or suite in CIPHERS.values():
            ciphers.append(CIPHERS.get(suite, suite))
        else:
            fields.report("CipherSuites", f"{suite!r} is no cipher suite of Envoy's; it is left out")
    return TLSParameters(TLS_VERSIONS[minimum], TLS_VERSIONS[maximum], tuple(ciphers))

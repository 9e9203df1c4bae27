"""Applies Consul's Envoy extensions (``EnvoyExtensions``) that need no service of their own.

They change complete resources, in the order in which they are given. No extension precedes the intentions: filters are
inserted behind the RBAC filter, and properties that protect a resource can't be overridden.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from google.protobuf.any_pb2 import Any as AnyMessage

from xds.envoy.names import HTTP_OPTIONS
from xds.envoy.overrides import PREFIX, OverrideError, decoded, load_type
from xds.envoy.resource import CLUSTER, ENDPOINT, LISTENER, SCOPED_ROUTE, Resource, encode_bytes
from xds.envoy.tls import typed
from xds.mesh.config_entries import Extension
from xds.mesh.names import CONNECT_PROXY, fold
from xds.policy.formats import OF_LOGS, FormatError, checked
from xds.wire.envoy.config import accesslog_pb2 as accesslog
from xds.wire.envoy.config import listener_pb2 as listener
from xds.wire.envoy.extensions import http_connection_manager_pb2 as manager
from xds.wire.envoy.extensions import tcp_proxy_pb2

INBOUND, OUTBOUND = "inbound", "outbound"
ROUTER = "envoy.filters.http.router"
RESOURCE_TYPES = {
    "cluster": CLUSTER,
    "cluster-load-assignment": ENDPOINT,
    "listener": LISTENER,
    "route": SCOPED_ROUTE,
}
PROTECTED = {
    LISTENER: (
        "name", "address", "additional_addresses", "filter_chains", "default_filter_chain", "filter_chain_matcher",
        "fcds_config", "api_listener", "udp_listener_config", "internal_listener", "listener_filters",
        "use_original_dst", "deprecated_v1",
    ),
    CLUSTER: ("name", "transport_socket", "transport_socket_matches", "transport_socket_matcher", "filters"),
    ENDPOINT: ("cluster_name",),
    SCOPED_ROUTE: ("name", "virtual_hosts", "request_headers_to_remove", "typed_per_filter_config"),
}  # fmt: skip
"""Fields that decide who is reached and who is let in: no patch may change them."""


class ExtensionError(Exception):
    """Required extension that can't be applied; the message names it and says why."""


@dataclass(frozen=True, slots=True)
class Patch:
    """Change of one field (Consul: ``property-override``)."""

    type_url: str
    direction: str
    services: frozenset[str]
    path: tuple[str, ...]
    remove: bool
    value: str
    """JSON."""


@dataclass(frozen=True, slots=True)
class HttpFilter:
    """A filter for connection managers of one direction."""

    direction: str
    filter: manager.HttpFilter
    first: bool
    """Whether it is the first filter, or behind the intentions."""


@dataclass(frozen=True, slots=True)
class Sink:
    """Access logs for listeners of one direction, and the cluster that they are sent to."""

    direction: str
    http: accesslog.AccessLog
    cluster: Resource


class Extensions:
    """The extensions of one service's sidecars.

    Args:
        given: in order.

    Raises:
        ExtensionError: a required one can't be applied.
    """

    def __init__(self, given: Iterable[Extension]) -> None:
        self.problems: list[str] = []
        """Problems of optional extensions."""
        self._parts: list[Patch | HttpFilter | Sink] = []
        for number, extension in enumerate(given):
            if extension.forbidden:
                self._refuse(number, extension, "the operator forbids it (gossamer serve --forbid-extensions)")
                continue
            try:
                self._parts += _KINDS[extension.name](json.loads(extension.arguments))
            except KeyError as error:
                known = ", ".join(_KINDS)
                why = f"unknown extension; there are {known}" if extension.name not in _KINDS else f"{error} is missing"
                self._refuse(number, extension, why)
            except (OverrideError, ValueError, TypeError, AttributeError) as error:
                self._refuse(number, extension, str(error))

    def _refuse(self, number: int, extension: Extension, why: str) -> None:
        text = f"EnvoyExtensions[{number}] {extension.name!r}: {why}"
        if extension.required:
            raise ExtensionError(text)
        self.problems.append(f"{text}; it is left out")

    @property
    def patches_upstreams(self) -> bool:
        """Whether what is made for upstreams has to be patched."""
        return any(isinstance(part, Patch) and part.direction == OUTBOUND for part in self._parts)

    def clusters(self) -> Iterator[Resource]:
        """Yield the clusters that the extensions need."""
        yield from (part.cluster for part in self._parts if isinstance(part, Sink))

    def into_listener(self, made: listener.Listener, direction: str) -> None:
        """Put filters and logs into a listener."""
        mine = [part for part in self._parts if isinstance(part, HttpFilter | Sink) and part.direction == direction]
        if not mine:
            return
        for chain in made.filter_chains:
            for each in chain.filters:
                http, tcp = manager.HttpConnectionManager(), tcp_proxy_pb2.TcpProxy()
                if each.typed_config.Unpack(http):
                    for part in mine:
                        _into_manager(http, part)
                    each.typed_config.CopyFrom(typed(http))
                elif each.typed_config.Unpack(tcp):
                    tcp.access_log.extend(part.http for part in mine if isinstance(part, Sink))
                    each.typed_config.CopyFrom(typed(tcp))

    def patched(self, resource: Resource, direction: str, service: str = "") -> Resource:
        """Return a resource with every patch that is for it."""
        for part in self._parts:
            if (
                isinstance(part, Patch)
                and (part.type_url, part.direction) == (resource.type_url, direction)
                and (not part.services or fold(service) in part.services)
            ):
                resource = _patched(resource, part)
        return resource


def _into_manager(http: manager.HttpConnectionManager, part: HttpFilter | Sink) -> None:
    if isinstance(part, Sink):
        http.access_log.append(part.http)
        return
    filters = list(http.http_filters)
    at = 0 if part.first else next((n for n, each in enumerate(filters) if each.name == ROUTER), len(filters))
    filters.insert(at, part.filter)
    del http.http_filters[:]
    http.http_filters.extend(filters)


# -- the kinds, each from its arguments (Consul, "Envoy extensions: configuration reference") -------------------------


def _checked(arguments: dict[str, Any], *fields: str) -> dict[str, Any]:
    if not isinstance(arguments, dict):
        raise TypeError("Arguments: expected fields")
    unknown = sorted(arguments.keys() - {*fields, "ProxyType"})
    if unknown:
        raise ValueError(f"Arguments.{unknown[0]}: unknown field")
    if arguments.get("ProxyType") not in (None, "", CONNECT_PROXY):
        raise ValueError("Arguments.ProxyType: expected {CONNECT_PROXY!r}")
    return arguments


def _direction(arguments: dict[str, Any], field: str, default: str = "") -> str:
    direction = arguments.get(field) or default
    if direction not in (INBOUND, OUTBOUND):
        raise ValueError(f"Arguments.{field}: expected 'inbound' or 'outbound', not {direction!r}")
    return str(direction)


def _filter(name: str, type_name: str, config: dict[str, Any]) -> manager.HttpFilter:
    body = decoded("Arguments", json.dumps(config), type_name)
    return manager.HttpFilter(name=name, typed_config=AnyMessage(type_url=PREFIX + type_name, value=body))


def _lua(arguments: dict[str, Any]) -> list[Patch | HttpFilter | Sink]:
    given = _checked(arguments, "Listener", "Script")
    if not given.get("Script"):
        raise ValueError("Arguments.Script: expected a script")
    config = {"default_source_code": {"inline_string": given["Script"]}}
    made = _filter("envoy.filters.http.lua", "envoy.extensions.filters.http.lua.v3.Lua", config)
    return [HttpFilter(_direction(given, "Listener"), made, first=False)]


def _rate_limit(arguments: dict[str, Any]) -> list[Patch | HttpFilter | Sink]:
    given = _checked(
        arguments, "MaxTokens", "TokensPerFill", "FillInterval", "FilterEnabled", "FilterEnforced", "StatPrefix"
    )

    def percent(field: str) -> dict[str, Any]:
        return {"default_value": {"numerator": int(given.get(field, 100)), "denominator": "HUNDRED"}}

    if not int(given["MaxTokens"]) or not int(given["FillInterval"]):
        raise ValueError("Arguments: MaxTokens and FillInterval have to be more than 0")
    config = {
        "stat_prefix": given.get("StatPrefix") or "http_local_rate_limiter",
        "token_bucket": {
            "max_tokens": int(given["MaxTokens"]),
            "tokens_per_fill": int(given.get("TokensPerFill") or given["MaxTokens"]),
            "fill_interval": f"{int(given['FillInterval'])}s",
        },
        "filter_enabled": percent("FilterEnabled"),
        "filter_enforced": percent("FilterEnforced"),
    }
    name = "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit"
    return [HttpFilter(INBOUND, _filter("envoy.filters.http.local_ratelimit", name, config), first=True)]


def _otel(arguments: dict[str, Any]) -> list[Patch | HttpFilter | Sink]:
    given = _checked(arguments, "ListenerType", "Listener", "Config")
    field = "Listener" if given.get("Listener") else "ListenerType"
    config = given["Config"]
    target = (config.get("GrpcService") or {}).get("Target") or {}
    if not target.get("URI"):
        raise ValueError("Arguments.Config.GrpcService.Target.URI: expected host:port of the collector")
    parts = urlsplit(f"//{target['URI']}")
    if not parts.hostname or not parts.port:
        raise ValueError(f"Arguments.Config.GrpcService.Target.URI: expected host:port, not {target['URI']!r}")
    name = "otel_access_logging"
    log = {
        "common_config": {
            "log_name": config.get("LogName") or "otel",
            "transport_api_version": "V3",
            "grpc_service": {"envoy_grpc": {"cluster_name": name}},
        }
    }
    if config.get("BufferFlushInterval"):
        log["common_config"]["buffer_flush_interval"] = config["BufferFlushInterval"]
    if isinstance(config.get("Body"), str):
        try:
            log["body"] = {"string_value": checked(config["Body"], OF_LOGS)}
        except FormatError as error:
            raise ValueError(f"Arguments.Config.Body: {error}") from None
    type_name = "envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig"
    body = decoded("Arguments.Config", json.dumps(log), type_name)
    made = accesslog.AccessLog(
        name="envoy.access_loggers.open_telemetry", typed_config=AnyMessage(type_url=PREFIX + type_name, value=body)
    )
    return [Sink(_direction(given, field, INBOUND), made, _collector(name, parts.hostname, parts.port))]


def _collector(name: str, host: str, port: int) -> Resource:
    address = {"socket_address": {"address": host, "port_value": port}}
    config = {
        "name": name,
        "type": "STRICT_DNS",
        "connect_timeout": "5s",
        "typed_extension_protocol_options": {
            HTTP_OPTIONS: {"@type": PREFIX + HTTP_OPTIONS, "explicit_http_config": {"http2_protocol_options": {}}}
        },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }
    return encode_bytes(CLUSTER, name, decoded("Arguments.Config", json.dumps(config), CLUSTER.removeprefix(PREFIX)))


def _property_override(arguments: dict[str, Any]) -> list[Patch | HttpFilter | Sink]:
    given = _checked(arguments, "Patches", "Debug")
    if not given.get("Patches"):
        raise ValueError("Arguments.Patches: expected at least one")
    return [_patch(f"Arguments.Patches[{number}]", patch) for number, patch in enumerate(given["Patches"])]


def _patch(where: str, given: dict[str, Any]) -> Patch:
    chosen = given.get("ResourceFilter") or {}
    kind, operation = chosen.get("ResourceType"), given.get("Op")
    if kind not in RESOURCE_TYPES:
        raise ValueError(f"{where}.ResourceFilter.ResourceType: expected one of {', '.join(RESOURCE_TYPES)}")
    if chosen.get("TrafficDirection") not in (INBOUND, OUTBOUND):
        raise ValueError(f"{where}.ResourceFilter.TrafficDirection: expected 'inbound' or 'outbound'")
    if operation not in ("add", "remove"):
        raise ValueError(f"{where}.Op: expected 'add' or 'remove'")
    path = tuple(str(given.get("Path") or "").strip("/").split("/"))
    type_url = RESOURCE_TYPES[kind]
    if path[0] in PROTECTED[type_url]:
        raise ValueError(f"{where}.Path: {path[0]} says who is reached or let in, and can't be overridden")
    patch = Patch(
        type_url,
        chosen["TrafficDirection"],
        frozenset(fold(each["Name"]) for each in chosen.get("Services") or ()),
        path,
        operation == "remove",
        json.dumps(given.get("Value")),
    )
    try:
        _set(_empty(type_url), patch)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{where}: {error}") from None
    return patch


_KINDS: dict[str, Callable[[dict[str, Any]], list[Patch | HttpFilter | Sink]]] = {
    "builtin/lua": _lua,
    "builtin/http/localratelimit": _rate_limit,
    "builtin/otel-access-logging": _otel,
    "builtin/property-override": _property_override,
}


# -- patches, on the whole typed API ----------------------------------------------------------------------------------


def _class(type_url: str) -> Any:
    type_name = type_url.removeprefix(PREFIX)
    if type_url == SCOPED_ROUTE:
        type_name = "envoy.config.route.v3.RouteConfiguration"
    load_type("Path", type_name)
    pool = importlib.import_module("envoy_data_plane.message_pool").default_message_pool
    return pool.url_to_type[PREFIX + type_name]


def _empty(type_url: str) -> Any:
    return _class(type_url)()


def _set(message: Any, patch: Patch) -> None:
    """Set or remove the field at the patch's path; messages on the way are made where there are none."""
    for depth, step in enumerate(patch.path):
        if step not in type(message).__dataclass_fields__:
            known = ", ".join(sorted(type(message).__dataclass_fields__)[:8])
            raise ValueError(f"Path /{'/'.join(patch.path)}: no field {step!r}; there are {known}, ...")
        if depth < len(patch.path) - 1:
            inner = getattr(message, step)
            if isinstance(inner, list | dict):
                raise ValueError(f"Path /{'/'.join(patch.path)}: {step} is a list or a map, which a path can't enter")
            if inner is None:
                inner = type(message).from_dict({step: {}})
                inner = getattr(inner, step)
                setattr(message, step, inner)
            message = inner
    last = patch.path[-1]
    value = None if patch.remove else json.loads(patch.value)
    given = type(message)() if value is None else type(message).from_dict({last: value})
    setattr(message, last, getattr(given, last))


def _patched(resource: Resource, patch: Patch) -> Resource:
    """Return a resource with one patch applied.

    Raises:
        ValueError: the value does not fit.
    """
    if resource.type_url == SCOPED_ROUTE:
        scope = importlib.import_module("xds.wire.envoy.config.route_pb2").ScopedRouteConfiguration
        whole = scope.FromString(resource.body)
        message = _class(resource.type_url).parse(whole.route_configuration.SerializeToString())
        _set(message, patch)
        whole.route_configuration.ParseFromString(bytes(message))
        body = whole.SerializeToString(deterministic=True)
    else:
        message = _class(resource.type_url).parse(resource.body)
        _set(message, patch)
        body = bytes(message)
    return encode_bytes(
        resource.type_url,
        resource.name,
        body,
        endpoints=resource.endpoints,
        clusters=resource.clusters,
        routes=resource.routes,
        of_all_upstreams=resource.of_all_upstreams,
    )

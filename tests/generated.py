"""Config entries of every kind, generated from the models of a mesh file: each field of each kind comes up.

What a model refuses is taken away again (`accepted`), so that what remains is what Consul would hold as well.
"""

from __future__ import annotations

import base64
import json
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from xds.sources.file.models import Entry

SERVICES = ("api", "web", "db")
KEYS = {"kty": "oct", "kid": "k", "alg": "HS256", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0"}
JWKS = base64.b64encode(json.dumps({"keys": [KEYS]}).encode()).decode()

EXPRESSIONS = st.sampled_from(
    [
        "",
        "/a.*",
        "a|b",
        "[a-z]{1,3}",
        "(?i)x",
        "^/v[0-9]+$",
        "(",
        "(?=a)",
        "a{1001}",
        r"\1",
        "(?P<n>x)",
        "\\C",
        ".*é",
        "%",
    ]
)
TEXTS = st.sampled_from(
    ["", "x", "a b", "%", "%%", "100%", "%REQ(x-a)%", "%REQ(x-a?y)%:7", "%ENVIRONMENT(HOME)%", "%START_TIME(%s)%",
     "%NOSUCH%", "%PROTOCOL%", "%REQ(%", "é", "\u2028", "a\nb", "\x00", "x" * 300, "{", "{{ }}", "\\", "*", "/", "//",
     "?", "#", "a/../b"]
)  # fmt: skip
HEADERS = st.sampled_from(
    [
        "x-a",
        "X-B",
        "host",
        "Host",
        ":path",
        ":authority",
        "content-length",
        "connection",
        "x_y",
        "a b",
        "",
        "é",
        "x:",
        "te",
    ]
)
PATHS = st.sampled_from(
    ["", "/", "/a", "/a/", "/a//b", "/%2f", "/a?b", "/é", "/a#b", "a", "/" + "x" * 2000, "/a b", "/a\n"]
)
DURATIONS = st.sampled_from(
    [
        "",
        "0s",
        "0",
        "1ns",
        "999us",
        "1ms",
        "1.5s",
        "10s",
        "24h",
        "-1s",
        "10000h",
        "2562047h47m16s",
        "9999999h",
        "1",
        "x",
    ]
)
NAMES = st.sampled_from(
    [*SERVICES, "API", "v1", "V2", "missing", "x" * 63, "x" * 200, "a.b", "a_b", "é", "*", "a/b", ""]
)
SUBSETS = st.sampled_from(["v1", "v2", "", "a.b", "V1", "x" * 70])
FILTERS = st.sampled_from(
    [
        "",
        'Service.Meta.version == "1"',
        "Service.ID != x",
        '"a" in Service.Tags',
        "not Service.Meta.x is empty",
        "(",
        "x",
    ]
)
FORMATS = st.sampled_from(
    ["", "%START_TIME% %REQ(:path)%\n", "%NOSUCH%", "%REQ(%", "%DYNAMIC_METADATA(a:b)%", "%GRPC_STATUS(CAMEL_STRING)%",
     '{"a": "%PROTOCOL%"}', '{"a": ["%DURATION%", 1, null, {"b": true}]}', '{"a": "%NOSUCH%"}', "[1]", "{",
     "%FILTER_STATE(x)%"]
)  # fmt: skip
NUMBERS = st.sampled_from(
    [0, 1, 2, 3, 60, 100, 600, 1024, 8192, 8193, 8_388_608, 8_388_609, 2**31, 2**32, 2**63, 2**64, -1]
)
EXTENSIONS: list[dict[str, Any]] = [
    {"Name": "builtin/lua", "Arguments": {"Listener": "inbound", "Script": "function envoy_on_request(h) end"}},
    {"Name": "builtin/http/localratelimit", "Arguments": {"MaxTokens": 50, "TokensPerFill": 50, "FillInterval": 5}},
    {"Name": "builtin/http/localratelimit", "Arguments": {"MaxTokens": 0, "TokensPerFill": 0, "FillInterval": 0}},
    {"Name": "builtin/wasm", "Arguments": {}},
]
BY_FIELD: dict[str, st.SearchStrategy[Any]] = {
    "Name": NAMES, "Service": st.sampled_from([*SERVICES, "", "missing"]),
    "ServiceSubset": SUBSETS, "DefaultSubset": SUBSETS,
    "Filter": FILTERS, "PathExact": PATHS, "PathPrefix": PATHS, "PrefixRewrite": PATHS, "TextFormat": FORMATS,
    "JSONFormat": FORMATS, "PathRegex": EXPRESSIONS, "Regex": EXPRESSIONS, "HeaderName": HEADERS,
    "FieldValue": HEADERS, "JWKS": st.sampled_from(["", JWKS, "!", base64.b64encode(b"{}").decode()]),
    # What is fetched is on this host, and what is read is there and empty.
    "URI": st.sampled_from(
        ["http://127.0.0.1:1/keys", "https://localhost:1", "127.0.0.1", "ftp://localhost", "http://[::1]:1/"]
    ),
    "Protocol": st.sampled_from(["", "tcp", "http", "http2", "grpc", "HTTP", "x"]),
    "Datacenter": st.just(""), "Datacenters": st.just([]), "Filename": st.just(""), "EnvironmentVariable": st.just(""),
    "CAFile": st.just(""), "CertFile": st.just(""), "KeyFile": st.just(""),
    "InlineString": st.just(""), "InlineBytes": st.just(""),
    "Addresses": st.sampled_from([["127.0.0.1"], ["a.example"]]),
    "Audiences": st.lists(TEXTS.filter(bool), max_size=2), "Issuer": TEXTS, "Checks": st.just(False),
    "EnvoyListenerJSON": st.just(""), "EnvoyClusterJSON": st.just(""),
    "Failover": st.dictionaries(
        SUBSETS | st.just("*"), st.fixed_dictionaries({"Service": st.sampled_from(SERVICES)}), max_size=2
    ),
    "EnvoyExtensions": st.lists(st.sampled_from(EXTENSIONS), max_size=2),
    "Weight": st.just(100),
    "MeshGateway": st.just({}), "OutboundListenerPort": st.just(0), "Paths": st.just([]),
    "DialedDirectly": st.booleans(),
    "Config": st.fixed_dictionaries(
        {},
        optional={
            "protocol": st.sampled_from(["tcp", "http", "x"]),
            "max_request_headers_kb": NUMBERS,
            "local_connect_timeout_ms": NUMBERS,
            "local_request_timeout_ms": NUMBERS,
            "local_idle_timeout_ms": NUMBERS,
            "max_inbound_connections": NUMBERS,
            "envoy_listener_tracing_json": st.sampled_from(["{", "{}", '{"x": 1}']),
        },
    ),
}  # fmt: skip


WEIGHTS: dict[int, list[float]] = {1: [100], 2: [40, 60], 3: [33.33, 33.33, 33.34]}


OMITTED = {
    "Namespace", "Partition", "Peer", "SamenessGroup", "PrioritizeByLocality", "RateLimits", "FailoverPolicy",
    "Peering",
}  # fmt: skip
"""Fields that only Consul Enterprise takes, or that a mesh file takes whatever is in them."""


def of_kind(model: type[BaseModel], name: str) -> st.SearchStrategy[dict[str, Any]]:
    """Return entries of one kind, about the service ``name`` where a kind is about one."""
    kind = get_args(model.model_fields["Kind"].annotation)[0]
    fixed = {"Kind": kind, "Name": {"proxy-defaults": "global", "mesh": "mesh"}.get(kind, name)}
    if kind == "mesh":
        del fixed["Name"]
    return of_model(model).map(lambda entry: _whole({**entry, **fixed}))


def _whole(entry: dict[str, Any]) -> dict[str, Any]:
    """Return an entry whose parts fit together where chance would not have them do."""
    for number, source in enumerate(entry.get("Sources", ())):
        source["Name"] = ["web", "db", "*"][number]
        source.pop("Action" if source.get("Permissions") else "Permissions", None)
        source.pop("Type", None)
        if not source.get("Permissions"):
            source["Action"] = source.get("Action") or "deny"
    splits = entry.get("Splits", ())
    for number, split in enumerate(splits):
        split |= {"Weight": WEIGHTS[len(splits)][number], "Service": SERVICES[number]}
    return entry


def of_model(model: type[BaseModel], depth: int = 0) -> st.SearchStrategy[dict[str, Any]]:
    """Return values of a model, sound or not."""
    required: dict[str, st.SearchStrategy[Any]] = {}
    optional: dict[str, st.SearchStrategy[Any]] = {}
    for name, field in model.model_fields.items():
        if name == "Kind" or name in OMITTED:
            continue
        special = name if not (name == "Path" and depth and field.annotation is not str) else "Path.claim"
        made = BY_FIELD.get(special)
        if made is None:
            made = of_annotation(field.annotation, name, depth + 1)
        (required if field.is_required() else optional)[name] = made
    return st.fixed_dictionaries(required, optional=optional)


def of_annotation(annotation: Any, name: str, depth: int) -> st.SearchStrategy[Any]:
    """Return values of a type."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return of_annotation(arguments[0], name, depth)
    if origin in (Union, types.UnionType):
        return st.one_of([of_annotation(each, name, depth) for each in arguments if each is not type(None)])
    if origin is Literal:
        return st.sampled_from(list(arguments))
    if origin is list:
        return st.lists(of_annotation(arguments[0], name, depth), max_size=3)
    if origin is dict:
        return st.dictionaries(_keys(name), of_annotation(arguments[1], name, depth), max_size=2)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return of_model(annotation, depth)
    return _SIMPLE[annotation](name) if annotation in _SIMPLE else st.just({})


def _keys(name: str) -> st.SearchStrategy[str]:
    return {"Subsets": SUBSETS, "Meta": TEXTS}.get(name, HEADERS)


def _text(name: str) -> st.SearchStrategy[str]:
    if name.endswith(("Timeout", "TTL", "Interval", "Duration", "Time")):
        return DURATIONS
    if name in ("Add", "Set", "Exact", "Prefix", "Suffix", "Contains", "Value", "ValuePrefix"):
        return TEXTS
    if name == "Remove":
        return HEADERS
    return st.sampled_from(["", "x", "/dev/null"]) if name == "Path" else TEXTS


_SIMPLE: dict[Any, Callable[[str], st.SearchStrategy[Any]]] = {
    str: _text,
    bool: lambda _: st.booleans(),
    int: lambda _: NUMBERS,
    float: lambda _: NUMBERS,
}
_ENTRY: TypeAdapter[Any] = TypeAdapter(Entry)


def accepted(entry: dict[str, Any]) -> dict[str, Any] | None:
    """Return an entry without what its model refuses; ``None`` where nothing is left."""
    entry = json.loads(json.dumps(entry))
    for _ in range(60):
        try:
            _ENTRY.validate_python(entry)
        except ValidationError as error:
            if not _without(entry, error.errors()[0]["loc"][1:]):
                return None
        else:
            return entry
    return None


def _without(entry: dict[str, Any], where: tuple[int | str, ...]) -> bool:
    """Take away what is at a place, or what is around it; whether anything was."""
    containers: list[tuple[Any, Any]] = []
    at: Any = entry
    for step in where:
        here: Any = step
        if (isinstance(at, dict) and here in at) or (isinstance(at, list) and here in range(len(at))):
            containers.append((at, here))
            at = at[here]
    while containers:
        container, step = containers.pop()
        if step not in ("Kind", "Name") or container is not entry:
            del container[step]
            return True
    for field in reversed(list(entry)):
        if field not in ("Kind", "Name"):
            del entry[field]
            return True
    return False

"""Tests that a mesh file refuses the config entries that Consul refuses: one row for each of Consul's rules."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from xds.sources import decode
from xds.sources.file.document import other_format
from xds.sources.file.models import Entry, MeshFile, json_schema

ENTRY: TypeAdapter[Any] = TypeAdapter(Entry)


def refusal(entry: dict[str, Any]) -> str:
    """Return why an entry is refused; nothing where it is taken."""
    try:
        ENTRY.validate_python(entry)
    except ValidationError as error:
        return str(error)
    return ""


def router(match: dict[str, Any] | None = None, **destination: Any) -> dict[str, Any]:
    route: dict[str, Any] = {"Match": {"HTTP": match or {}}}
    if destination:
        route["Destination"] = destination
    return {"Kind": "service-router", "Name": "a", "Routes": [route]}


def splitter(*splits: dict[str, Any]) -> dict[str, Any]:
    return {"Kind": "service-splitter", "Name": "a", "Splits": list(splits)}


def resolver(**fields: Any) -> dict[str, Any]:
    return {"Kind": "service-resolver", "Name": "a", **fields}


def hashed(*policies: dict[str, Any], policy: str = "ring_hash") -> dict[str, Any]:
    return resolver(LoadBalancer={"Policy": policy, "HashPolicies": list(policies)})


def intentions(*sources: dict[str, Any], name: str = "a") -> dict[str, Any]:
    return {"Kind": "service-intentions", "Name": name, "Sources": list(sources)}


def permitted(**http: Any) -> dict[str, Any]:
    return intentions({"Name": "b", "Permissions": [{"Action": "allow", "HTTP": http}]})


SESSION = {"Session": True}


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (router({"PathRegex": "/a.*"}, PrefixRewrite="/b"), "PrefixRewrite"),
        (router({"PathExact": "/a"}), ""),
        (router({"PathExact": "a"}), "PathExact"),
        (router({"PathExact": "/a", "PathPrefix": "/b"}), "PathExact"),
        (router({"Header": [{"Name": "x", "Exact": "a", "Prefix": "b"}]}), "Header"),
        (router({"QueryParam": [{"Name": "x", "Exact": "a", "Regex": "b"}]}), "QueryParam"),
        (router({"Methods": ["GET", "GET"]}), "Methods"),
        (router({"Methods": ["FETCH"]}), "Methods"),
        (router({"Methods": ["get"]}), ""),
        (router(Service="a", RetryOn=["5xx", "gateway-eror"]), "RetryOn"),
        (router(Service="a", RetryOn=["5xx"]), ""),
        (router(Service="a", RequestTimeout="soon"), "RequestTimeout"),
        (router(Service="a", RequestTimeout="9999999h"), "RequestTimeout"),
        (splitter({"Weight": 50}, {"Weight": 40, "Service": "b"}), "100"),
        (splitter({"Weight": 50, "Service": "b"}, {"Weight": 50, "Service": "b"}), "b"),
        (splitter({"Weight": 50}, {"Weight": 50, "Service": "a"}), "a"),
        (splitter({"Weight": 100}), ""),
        (splitter(), "Splits"),
        (resolver(Subsets={"not_valid": {}}), "Subsets"),
        (resolver(Subsets={"V1": {}}), "Subsets"),
        (resolver(Subsets={"v1": {"Filter": "Service.Meta.version == v-1"}}), "Filter"),
        (resolver(Subsets={"v1": {"Filter": "Service.Meta.version == v1"}}), ""),
        (resolver(DefaultSubset="v1"), "DefaultSubset"),
        (resolver(Redirect={}), "Redirect"),
        (resolver(Failover={"v1": {"Service": "b"}}), "Failover"),
        (resolver(Failover={"*": {}}), "Failover"),
        (resolver(Failover={"*": {"Service": "b", "Targets": [{"Service": "c"}]}}), "Failover"),
        (resolver(LoadBalancer={"Policy": "random", "RingHashConfig": {}}), "RingHashConfig"),
        (resolver(LoadBalancer={"Policy": "maglev", "LeastRequestConfig": {}}), "LeastRequestConfig"),
        (hashed({"SourceIP": True}, policy="random"), "HashPolicies"),
        (hashed({"SourceIP": True}), ""),
        (hashed({"SourceIP": True, "Field": "header", "FieldValue": "x"}), "SourceIP"),
        (hashed({"Field": "header"}), "FieldValue"),
        (hashed({"FieldValue": "x"}), "Field"),
        (hashed({"Field": "header", "FieldValue": "x", "CookieConfig": SESSION}), "CookieConfig"),
        (hashed({"Field": "cookie", "FieldValue": "x", "CookieConfig": {"Session": True, "TTL": "1s"}}), "TTL"),
        (hashed({"Field": "cookie", "FieldValue": "x", "CookieConfig": SESSION}), ""),
        (permitted(), "HTTP"),
        (permitted(PathPrefix="/"), ""),
        (permitted(Methods=["get"]), ""),
        (permitted(Methods=["get", "GET"]), "Methods"),
        (permitted(PathExact="/a", PathRegex="/b"), "PathExact"),
        (permitted(Header=[{"Name": "x"}]), "Header"),
        (intentions({"Name": "b"}), "Action"),
        (intentions({"Name": "b", "Action": "permit"}), "Action"),
        (intentions({"Name": "b*", "Action": "allow"}), "*"),
        (intentions({"Name": "*", "Action": "allow"}, name="a*"), "*"),
        (intentions({"Name": "b", "Action": "allow", "Permissions": [{"Action": "deny", "HTTP": {"PathPrefix": "/"}}]}),
         "Permissions"),
        (intentions({"Name": "b", "Permissions": [{"Action": "deny", "HTTP": {"PathPrefix": "/"}}]}, name="*"), "*"),
        ({"Kind": "service-defaults", "Name": "a*"}, "*"),
        ({"Kind": "service-defaults", "Name": "a", "MaxRequestHeadersKB": 96}, ""),
        ({"Kind": "proxy-defaults", "Name": "global", "MaxRequestHeadersKB": 96}, ""),
        ({"Kind": "proxy-defaults", "Name": "other"}, "global"),
        ({"Kind": "mesh"}, ""),
        ({"Kind": "mesh", "Name": "mesh"}, "Name"),
    ],
)  # fmt: skip
def test_a_rule_of_consul_is_applied(entry: dict[str, Any], words: str) -> None:
    told = refusal(entry)
    assert (words in told) if words else (told == "")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('Kind = "service-defaults"\nName = "a"', "HCL"),
        ('# a comment\nservices {\n  name = "a"\n}', "HCL"),
        ("apiVersion: consul.hashicorp.com/v1alpha1\nkind: ServiceDefaults", "consul config read"),
        ("services: []", None),
        ('{"services": []}', None),
    ],
)
def test_another_format_is_named_with_how_to_convert_it(text: str, words: str | None) -> None:
    told = other_format(text)
    assert told is None if words is None else words in str(told)


def test_every_model_is_in_the_schema() -> None:
    assert set(json_schema()["$defs"]) >= {"ServiceRouter", "ServiceResolver", "ServiceIntentions", "JWTProvider"}
    assert "config_entries" in MeshFile.model_fields


READ = r'\.(?:text|number|flag|part|each|choice|limit|port|raw|percent)\(\s*"([A-Z][A-Za-z0-9]+)"'
"""A field, as `xds.sources.decode.values.Fields` is asked for it."""
COMPILED = {"External", "Subset", "Target"}
"""Fields that only a compiled discovery chain has."""


def test_every_field_that_is_read_from_a_consul_can_be_written_in_a_mesh_file() -> None:
    written = {name for model in _models(MeshFile, set()) for name in model.model_fields}
    for module in Path(decode.__file__).parent.glob("*.py"):
        read = set(re.findall(READ, module.read_text()))
        assert read - written - COMPILED == set(), module.name


def _models(annotation: Any, seen: set[type[BaseModel]]) -> set[type[BaseModel]]:
    for argument in get_args(annotation):
        _models(argument, seen)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation not in seen:
        seen.add(annotation)
        for field in annotation.model_fields.values():
            _models(field.annotation, seen)
    return seen

"""Tests that all problems of a mesh file are reported at once, with their lines."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.sources.file.meshes import intentions, mesh, service
from xds.sources.file.document import RefusedError, parse
from xds.sources.file.models import json_schema

GOOD = """\
default_intention_policy: deny
services:
  - name: web
    port: 8080
    connect: { sidecar_service: { port: 20000 } }
"""


def refusal(text: str) -> str:
    with pytest.raises(RefusedError) as refused:
        parse("mesh.yaml", text)
    return str(refused.value)


@pytest.mark.parametrize("name", ["gossamer", "Gossamer"])
def test_a_service_can_not_have_the_control_planes_name(name: str) -> None:
    assert f"{name!r} is Gossamer itself, and another service" in refusal(GOOD.replace("web", name))
    outside = f"default_intention_policy: deny\nservices: [{{name: {name}, port: 80}}]\n"
    assert parse("mesh.yaml", outside)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "mesh.yaml: the file is empty"),
        ("# nothing\n", "mesh.yaml: the file is empty"),
        ("a: [1\nb: 2", "mesh.yaml:2: not YAML: while parsing a flow sequence"),
        ("a: 1\n---\nb: 2", "mesh.yaml:2: not YAML"),
        ("\x00", "mesh.yaml: not YAML"),
        ("[1, 2]", "mesh.yaml:1: the file: expected fields (name: value)"),
        ("services: []\nservices: []", "mesh.yaml:2: 'services' is given twice, in line 1 already"),
        ("services: []", "mesh.yaml:1: 'default_intention_policy' is missing: say what holds"),
        (GOOD + "servces: []", "mesh.yaml:6: unknown field 'servces'; did you mean 'services'?"),
        (GOOD.replace("8080", '"8080"'), "mesh.yaml:4: services[0].port: input should be a valid integer, not '8080'"),
        (GOOD.replace("8080", "80800"), "mesh.yaml:4: services[0].port: input should be less than or equal to 65535"),
        (GOOD.replace("name: web", "name: we/b"), "mesh.yaml:3: services[0].name: a name must not be empty"),
        (
            GOOD.replace("deny", "maybe"),
            "mesh.yaml:1: default_intention_policy: expected 'allow' or 'deny', not 'maybe'",
        ),
        (GOOD + "    TaggedAddresses: {}", "mesh.yaml:6: unknown field 'services[0].TaggedAddresses'"),
        (GOOD + "    checks: [{name: x}]", "mesh.yaml:6: services[0].checks[0]: a check needs one of ttl, http"),
        (
            GOOD + "    tagged_addresses: {virtual: {address: ''}}",
            "services[0].tagged_addresses: expected an IP address",
        ),
        (GOOD + "    token: 123456", "mesh.yaml:6: services[0].token: input should be a valid string\n"),
        (
            GOOD + "    address: web.example",
            "mesh.yaml:6: services[0].address: expected an IP address, not 'web.example'",
        ),
        (
            GOOD + "    check: {ttl: 1h, staus: critical}",
            "unknown field 'services[0].check.staus'; did you mean 'status'?",
        ),
        (GOOD + "    check: critical", "services[0].check: expected fields (name: value)"),
        (
            GOOD + "config_entries: {bootstrap: [{Kind: service-intentions, Name: a, Sources: []}]}",
            "config_entries.bootstrap[0].Sources: there is nothing in it; take it out altogether",
        ),
        (
            GOOD
            + "config_entries: {bootstrap: [{Kind: service-intentions, Name: a, Sources: [{Name: b, Acton: allow}]}]}",
            "unknown field 'config_entries.bootstrap[0].Sources[0].Acton'; did you mean 'Action'?",
        ),
        (
            GOOD + "config_entries: {bootstrap: [{Kind: mesh, TransparentProxi: {}}]}",
            "did you mean 'TransparentProxy'?",
        ),
        (
            GOOD + "config_entries: {bootstrap: [{Kind: service-intention}]}",
            "mesh.yaml:6: config_entries.bootstrap[0]: 'service-intention' is no Kind of config entry that Consul has;"
            " did you mean 'service-intentions'?",
        ),
        (
            GOOD + "config_entries: {bootstrap: [{Name: x}]}",
            "config_entries.bootstrap[0]: a config entry needs its Kind",
        ),
        (
            GOOD + "config_entries:\n  bootstrap:\n  - Kind: mesh\n    TransparentProxy: {MeshDestinationOnly: true}",
            "mesh.yaml:9: unknown field 'config_entries.bootstrap[0].TransparentProxy.MeshDestinationOnly';"
            " did you mean 'MeshDestinationsOnly'?",
        ),
    ],
)
def test_a_problem_is_reported_with_its_line(text: str, words: str) -> None:
    assert words in refusal(text) + "\n"


def test_all_problems_are_reported_together() -> None:
    said = refusal(GOOD.replace("8080", "x").replace("20000", "y") + "zzz: 1")
    assert [line.partition(": ")[0] for line in said.splitlines()] == ["mesh.yaml:4", "mesh.yaml:5", "mesh.yaml:6"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            mesh(service("api"), service("api")),
            "two services have the id 'api-1'; each instance needs an id",
        ),
        (mesh(service("api"), service("db", id="api-1")), "two services have the id 'api-1'; an id is one instance's"),
        (
            mesh(service("api"), service("api", 2, address="10.114.0.1")),
            "'api-2-sidecar-proxy' and 'api-1-sidecar-proxy' are both at 10.114.0.1:20000",
        ),
        (
            mesh({"name": "a", "connect": {"sidecar_service": {}}}, {"name": "b", "connect": {"sidecar_service": {}}}),
            "'b-sidecar-proxy' and 'a-sidecar-proxy' are both at 127.0.0.1:21000",
        ),
        (
            mesh(
                service("a", tagged_addresses={"virtual": {"address": "240.0.0.9"}}),
                service("b", tagged_addresses={"virtual": {"address": "240.0.0.9"}}),
            ),
            "'b' and 'a' claim the same virtual IP 240.0.0.9",
        ),
        (
            mesh({"name": "p", "kind": "connect-proxy", "port": 1}),
            "'p' is a sidecar of nothing: it needs proxy.destination_service_name",
        ),
        (
            mesh({"name": "p", "kind": "connect-proxy", "proxy": {"destination_service_name": "a"}}),
            "sidecar 'p' needs the port that its Envoy listens on",
        ),
        (
            mesh(
                service(
                    "a",
                    connect={
                        "sidecar_service": {
                            "port": 20000,
                            "proxy": {
                                "expose": {
                                    "paths": [
                                        {"path": "/health", "listener_port": 20000, "local_path_port": 8080},
                                    ]
                                }
                            },
                        }
                    },
                )
            ),
            "'/health' can't be exposed at 10.97.0.1:20000: 'a-1-sidecar-proxy' is there",
        ),
        (mesh(service("a", token="t"), service("b")), "'b' has no token, but 'a' has: either every service"),
        (
            mesh(service("a"), entries=[intentions("a", b="allow"), intentions("A", c="deny")]),
            "there is a service-intentions for 'A' already",
        ),
        (mesh(service("a"), entries=[intentions("a", b="allow", B="deny")]), "'B' is a source of this entry already"),
        (
            mesh(
                service("a"),
                entries=[
                    {"Kind": "service-resolver", "Name": "a", "Redirect": {"Service": "b", "ServiceSubset": "v1"}}
                ],
            ),
            "'b' has no subset 'v1'",
        ),
        (
            mesh(
                service("a"),
                entries=[
                    {"Kind": "service-resolver", "Name": "A", "Subsets": {"v2": {}}},
                    {
                        "Kind": "service-splitter",
                        "Name": "a",
                        "Splits": [{"Weight": 50, "ServiceSubset": "v2"}, {"Weight": 50, "ServiceSubset": "v1"}],
                    },
                ],
            ),
            "'a' has no subset 'v1'",
        ),
        (
            mesh(
                service("a"),
                entries=[
                    {
                        "Kind": "service-intentions",
                        "Name": "a",
                        "Sources": [{"Name": "b", "Action": "allow"}],
                        "JWT": {"Providers": [{"Name": "okta"}]},
                    }
                ],
            ),
            "there is no jwt-provider 'okta'",
        ),
    ],
)
def test_a_contradiction_is_refused(text: str, words: str) -> None:
    assert words in refusal(text)


@pytest.mark.parametrize(
    "empty", ["config_entries:", "config_entries:\n  bootstrap:", "config_entries: {bootstrap: []}"]
)
def test_a_field_without_a_value_is_absent(empty: str) -> None:
    assert parse("mesh.yaml", GOOD + empty).mesh.config_entries.bootstrap == []


def test_json_is_accepted() -> None:
    assert parse("mesh.json", '{"default_intention_policy": "allow", "services": []}').mesh.services == []


@given(st.text(max_size=200))
def test_no_text_is_ever_a_traceback(text: str) -> None:
    try:
        parse("mesh.yaml", text)
    except RefusedError as refused:
        assert refused.problems  # noqa: PT017 - either outcome is right, any other exception is not


FIELDS = ["services", "name", "connect", "sidecar_service", "config_entries", "bootstrap", "Kind", "Sources"]
SHAPES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=12,
)


@given(SHAPES)
def test_no_shape_is_ever_a_traceback(data: object) -> None:
    try:
        parse("mesh.yaml", yaml.safe_dump({"default_intention_policy": "deny", "services": data}))
    except RefusedError as refused:
        assert refused.problems  # noqa: PT017


def test_the_schema_is_valid() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    jsonschema.validate(yaml.safe_load(GOOD), json_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**yaml.safe_load(GOOD), "x": 1}, json_schema())


def test_the_published_schema_is_that_of_the_models() -> None:
    published = json.loads((Path(__file__).parents[4] / "docs" / "mesh.schema.json").read_text())
    assert published == json_schema(), "run 'gossamer mesh schema > docs/mesh.schema.json'"

"""Tests of annotations: every form, every error, precedence over the namespace, and what has no effect."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xds.kubernetes import annotations as known
from xds.kubernetes.annotations import ANNOTATIONS, PREFIX, AnnotationError, read
from xds.kubernetes.upstreams import Upstream, UpstreamError, parse

PORTS = {"http": 8080, "grpc": 9090}


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("connect-inject", "T", True),
        ("transparent-proxy", "0", False),
        ("transparent-proxy-exclude-inbound-ports", " 8080, grpc ,,0x1F91,8080", (8080, 9090, 8081)),
        ("transparent-proxy-exclude-outbound-cidrs", "10.0.0.1, fd00::/8", ("10.0.0.1/32", "fd00::/8")),
        ("transparent-proxy-exclude-uids", "0,4294967295", (0, 4294967295)),
        ("connect-service-port", "http,9000", (8080, 9000)),
        ("sidecar-proxy-cpu-limit", "1.5e3", "1.5e3"),
        ("sidecar-proxy-memory-request", "64Mi", "64Mi"),
        ("consul-envoy-proxy-concurrency", "0", 0),
        ("envoy-extra-args", "--log-level 'de bug'", ("--log-level", "de bug")),
        ("service-tags", "a\\,b, c ,,", ("a,b", "c")),
    ],
)
def test_a_value_is_read(name: str, text: str, value: object) -> None:
    [(annotation, found)] = read({PREFIX + name: text}, PORTS).items()
    assert (annotation.name, found) == (name, value)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("connect-inject", "yes", "'yes' is not true or false"),
        ("transparent-proxy", "", "'' is not true or false"),
        ("transparent-proxy-exclude-inbound-ports", "80,nope", "names of containers' ports"),
        ("transparent-proxy-exclude-outbound-ports", "8000:9000", "numbers from 1 to 65535"),
        ("transparent-proxy-exclude-outbound-ports", "0", "numbers from 1 to 65535"),
        ("transparent-proxy-exclude-outbound-cidrs", "10.0.0.1/8", "addresses or networks"),
        ("transparent-proxy-exclude-uids", "-1", "users' numbers"),
        ("transparent-proxy-exclude-uids", "4294967296", "users' numbers"),
        ("sidecar-proxy-memory-limit", "64 MB", "a quantity, such as"),
        ("sidecar-proxy-memory-limit", "-1", "a quantity, such as"),
        ("consul-envoy-proxy-concurrency", "two", "a whole number"),
        ("envoy-extra-args", "'", "words as in a shell"),
        ("connect-service", "a b", "a name of letters"),
        ("connect-service", "a,b", "a name of letters"),
        ("connect-service-upstreams", "api", "'api': '' is not a port"),
    ],
)
def test_an_error_names_the_annotation_the_value_and_the_form(name: str, text: str, words: str) -> None:
    with pytest.raises(AnnotationError) as caught:
        read({PREFIX + name: text}, PORTS)
    assert f"annotation {PREFIX}{name}: " in str(caught.value)
    assert words in str(caught.value)


def test_all_problems_are_reported_together() -> None:
    with pytest.raises(AnnotationError, match=r"connect-inject.*; .*exclude-uids"):
        read({PREFIX + "connect-inject": "?", PREFIX + "transparent-proxy-exclude-uids": "?"}, {})


def test_a_pod_precedes_its_namespace_and_only_two_labels_count() -> None:
    labels = {PREFIX + name: "false" for name in ("transparent-proxy", "consul-dns", "connect-inject")}
    assert read({}, {}, labels) == {known.TRANSPARENT: False, known.DNS: False}
    assert read({known.TRANSPARENT.key: "true"}, {}, labels)[known.TRANSPARENT] is True
    with pytest.raises(AnnotationError, match=r"label of the namespace .*/transparent-proxy: 'x'"):
        read({}, {}, {known.TRANSPARENT.key: "x"})


def test_meta_and_what_has_no_effect() -> None:
    given = {PREFIX + "service-meta-pod": "$POD_NAME", PREFIX + "service-meta-a": "$POD_NAMES", "other.io/x": "1"}
    assert known.meta(given, "web-1") == {"pod": "web-1", "a": "$POD_NAMES"}
    unknown = {**given, PREFIX + "enable-metrics": "true", known.INJECT_STATUS: "injected"}
    [warning] = known.warnings(unknown)
    assert f"{PREFIX}enable-metrics has no effect" in warning


@given(st.sampled_from(ANNOTATIONS), st.text(max_size=40))
def test_no_text_is_ever_a_traceback(annotation: known.Annotation, text: str) -> None:
    with contextlib.suppress(AnnotationError):
        read({annotation.key: text}, PORTS)


@pytest.mark.parametrize(
    ("text", "upstreams"),
    [
        ("api:1234", [Upstream("api", 1234)]),
        (" api:http ,\n db:1:dc2,", [Upstream("api", 8080), Upstream("db", 1, "dc2")]),
        ("my.dotted:1", [Upstream("my.dotted", 1)]),
        ("prepared_query:near:1", [Upstream("near", 1, prepared_query=True)]),
        ("api.svc:1", [Upstream("api", 1)]),
        ("api.svc.dc2.dc:1", [Upstream("api", 1, "dc2")]),
        ("api:1:dc2?mesh_gateway_mode=local", [Upstream("api", 1, "dc2", mesh_gateway_mode="local")]),
        ("api:1:dc=dc2;meshGatewayMode=remote", [Upstream("api", 1, "dc2", mesh_gateway_mode="remote")]),
        ("api:1?local_bind_address=127.0.0.2", [Upstream("api", 1, local_bind_address="127.0.0.2")]),
        ("api:1:dc2?dc=", [Upstream("api", 1, "dc2")]),
    ],
)
def test_an_upstream_in_every_form(text: str, upstreams: list[Upstream]) -> None:
    assert list(parse(text, PORTS)) == upstreams


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("api:0", "'0' is not a port"),
        ("api:nope", "'nope' is not a port"),
        (":1", "'' is not the name of a service"),
        ("a b:1", "'a b' is not the name of a service"),
        ("api:1,db:1", "has the port 1 of 'api'"),
        ("api:1,api:2", "names 'api' a second time"),
        ("api:1?x=y", "'x' is not an option: expected one of"),
        ("api:1?mesh_gateway_mode=near", "'near' is not a mesh gateway mode"),
        ("api.svc.team.ns:1", "namespaces are not supported"),
        ("api.svc.a.ns.b.peer:1", "namespaces are not supported"),
        ("api.svc.b.peer:1", "peers are not supported"),
        ("api.svc.dc2:1", "is not NAME.svc or NAME.svc.DATACENTER.dc"),
        ("api.svc.dc2.dc:1:dc=dc3", "names the datacenters 'dc2' and 'dc3'"),
        ("prepared_query:near", "'' is not a port"),
    ],
)
def test_an_upstream_that_can_not_be_used_is_named(text: str, words: str) -> None:
    with pytest.raises(UpstreamError) as caught:
        parse(text, PORTS)
    assert words in str(caught.value)


def test_an_upstream_is_registered_and_found_by_variables() -> None:
    upstream = Upstream("my-api", 1234, "dc2", mesh_gateway_mode="local", local_bind_address="127.0.0.2")
    assert upstream.registered() == {
        "DestinationType": "service", "DestinationName": "my-api", "LocalBindPort": 1234, "Datacenter": "dc2",
        "LocalBindAddress": "127.0.0.2", "MeshGateway": {"Mode": "local"},
    }  # fmt: skip
    assert upstream.variables() == {
        "MY_API_CONNECT_SERVICE_HOST": "127.0.0.2",
        "MY_API_CONNECT_SERVICE_PORT": "1234",
    }
    assert Upstream("near", 1, prepared_query=True).registered()["DestinationType"] == "prepared_query"

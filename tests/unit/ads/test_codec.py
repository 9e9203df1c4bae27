"""Messages to and from bytes."""

from __future__ import annotations

from typing import Any

import pytest

from xds.ads import codec
from xds.ads.messages import Response
from xds.envoy.resource import CLUSTER, Resource
from xds.wire.envoy.config import core_pb2 as core
from xds.wire.envoy.service import discovery_pb2 as discovery


def test_the_node_of_a_first_request_is_decoded() -> None:
    node = core.Node(id="web-1-sidecar-proxy", cluster="web")
    node.metadata["node_name"] = "vm-7"
    node.user_agent_build_version.version.major_number = 1
    node.user_agent_build_version.version.minor_number = 40
    message = discovery.DeltaDiscoveryRequest(node=node, type_url=CLUSTER).SerializeToString()
    request, found = codec.decode(message, delta=True)
    assert found == codec.Node("web-1-sidecar-proxy", "web", "vm-7", "1.40.0")
    assert request.type_url == CLUSTER


@pytest.mark.parametrize("value", [7, True, None, ["a"]])
def test_a_node_name_that_is_not_text_is_ignored(value: float | bool | list[str] | None) -> None:
    node = core.Node(id="a", cluster="b")
    node.metadata.update({"node_name": value})
    message = discovery.DiscoveryRequest(node=node).SerializeToString()
    _, found = codec.decode(message, delta=False)
    assert found is not None
    assert found.node_name == ""


@pytest.mark.parametrize("delta", [True, False])
def test_an_error_is_distinguished_from_an_acknowledgement(delta: bool) -> None:
    kind = discovery.DeltaDiscoveryRequest if delta else discovery.DiscoveryRequest
    message = kind(type_url=CLUSTER, response_nonce="3")
    assert codec.decode(message.SerializeToString(), delta=delta)[0].error is None
    message.error_detail.message = "bad"
    assert codec.decode(message.SerializeToString(), delta=delta)[0].error == "bad"


def test_an_undecodable_request_is_an_error() -> None:
    with pytest.raises(codec.BadRequestError, match="not a discovery request"):
        codec.decode(b"\xff\xff\xff", delta=True)


def test_a_response_in_both_variants() -> None:
    response = Response(CLUSTER, "1", "1", (Resource(CLUSTER, "a", "v", b"body"),), ("b",))
    delta = discovery.DeltaDiscoveryResponse.FromString(codec.encode_response(response, delta=True))
    assert [(r.name, r.version, r.resource.value) for r in delta.resources] == [("a", "v", b"body")]
    assert list(delta.removed_resources) == ["b"]
    whole = discovery.DiscoveryResponse.FromString(codec.encode_response(response, delta=False))
    assert [(r.type_url, r.value) for r in whole.resources] == [(CLUSTER, b"body")]


def test_equal_settings_of_many_instances_are_decoded_once() -> None:
    one, other = (discovery.DeltaDiscoveryRequest(type_url=CLUSTER, response_nonce=nonce) for nonce in ("1", "2"))
    first = codec.decode(one.SerializeToString(), delta=True)
    assert codec.decode(one.SerializeToString(), delta=True) is first
    assert codec.decode(other.SerializeToString(), delta=True)[0].nonce == "2"
    assert codec.decode(discovery.DiscoveryRequest(type_url=CLUSTER).SerializeToString(), delta=False)[0].names == ()


@pytest.mark.parametrize("field", ["id", "cluster", "user_agent_version", "node_name"])
@pytest.mark.parametrize("text", ["x" * 257, "web\n2026 INFO all is well", "web\x1b[2J", "\u202ebew"])
def test_the_fields_of_a_node_are_short_and_printable(field: str, text: str) -> None:
    node = core.Node(id="a", cluster="b")
    if field == "node_name":
        node.metadata["node_name"] = text
    else:
        setattr(node, field, text)
    message = discovery.DeltaDiscoveryRequest(node=node).SerializeToString()
    with pytest.raises(codec.BadRequestError, match=f"{field} .*: expected at most 256 characters") as told:
        codec.decode(message, delta=True)
    assert str(told.value).isprintable()


@pytest.mark.parametrize("field", ["resource_names_subscribe", "resource_names_unsubscribe", "resource_names"])
def test_a_name_without_a_resource_is_refused(field: str) -> None:
    delta = field != "resource_names"
    kind: Any = discovery.DeltaDiscoveryRequest if delta else discovery.DiscoveryRequest
    with pytest.raises(codec.BadRequestError, match="a resource name of 1025 characters"):
        codec.decode(kind(**{field: ["x" * 1025]}).SerializeToString(), delta=delta)


@pytest.mark.parametrize("delta", [True, False])
def test_a_first_message_keeps_its_other_fields_without_the_node(delta: bool) -> None:
    kind = discovery.DeltaDiscoveryRequest if delta else discovery.DiscoveryRequest
    node = core.Node(id="a", cluster="b")
    message = kind(node=node, type_url=CLUSTER, response_nonce="3").SerializeToString()
    assert codec.without_node(message, delta=delta) == kind(type_url=CLUSTER, response_nonce="3").SerializeToString()

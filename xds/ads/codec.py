"""Encodes and decodes discovery messages of both variants of the protocol.

The node is read apart from the rest: Envoy sends it with the first message only, 60 KB of it, and nothing that
arrives later needs it.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from dataclasses import dataclass

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError

from xds.ads.messages import Request, Response
from xds.wire.envoy.config import core_pb2 as core
from xds.wire.envoy.service import discovery_pb2 as discovery

CONTROL_PLANE = "gossamer"
SHORT = 256
"""Bytes of a message that may be one of many alike."""
LONGEST_WORD = 256
"""Characters of a field of the node. Longer or unprintable ones are refused, because they are logged and compared."""
LONGEST_NAME = 1024
"""Bytes of a resource's name. Gossamer's own names are shorter, and no others exist."""


class BadRequestError(Exception):
    """A message that is no discovery request."""


@dataclass(frozen=True, slots=True)
class Node:
    """Identity and abilities that a proxy states about itself."""

    id: str
    cluster: str
    node_name: str
    version: str
    """Version of Envoy, empty when it is not stated."""
    dual_stack: bool = False
    """Whether it is on a host with IPv6, so that its listeners accept IPv6 as well."""
    dns_port: int = 0
    """Port at which its Envoy answers DNS queries, 0 for none."""


def decode(message: bytes, *, delta: bool) -> tuple[Request, Node | None]:
    """Decode a request and the node that it carries, if any.

    Raises:
        BadRequestError: ``message`` can't be decoded, or has a name in it that nothing can have.
    """
    return (_decode_again if len(message) <= SHORT else _decode)(message, delta)


def _decode(message: bytes, delta: bool) -> tuple[Request, Node | None]:
    try:
        if delta:
            return _decode_delta(discovery.DeltaDiscoveryRequest.FromString(message))
        return _decode_sotw(discovery.DiscoveryRequest.FromString(message))
    except DecodeError as error:
        raise BadRequestError(f"not a discovery request: {error}") from error


_decode_again = functools.lru_cache(maxsize=1024)(_decode)
"""Cache of decoded messages: a thousand sidecars that receive the same response answer with the same bytes."""


def _decode_delta(message: discovery.DeltaDiscoveryRequest) -> tuple[Request, Node | None]:
    _check_names(message.resource_names_subscribe)
    _check_names(message.resource_names_unsubscribe)
    versions = dict(message.initial_resource_versions)
    _check_names(versions)
    request = Request(
        type_url=message.type_url,
        nonce=message.response_nonce,
        error=message.error_detail.message if message.HasField("error_detail") else None,
        subscribe=tuple(message.resource_names_subscribe),
        unsubscribe=tuple(message.resource_names_unsubscribe),
        initial_versions=versions,
    )
    return request, _node(message.node) if message.HasField("node") else None


def _decode_sotw(message: discovery.DiscoveryRequest) -> tuple[Request, Node | None]:
    _check_names(message.resource_names)
    request = Request(
        type_url=message.type_url,
        nonce=message.response_nonce,
        error=message.error_detail.message if message.HasField("error_detail") else None,
        names=tuple(message.resource_names),
    )
    return request, _node(message.node) if message.HasField("node") else None


def _check_names(names: Collection[str]) -> None:
    longest = max(map(len, names), default=0)
    if longest > LONGEST_NAME:
        raise BadRequestError(f"a resource name of {longest} characters; expected at most {LONGEST_NAME}")


def without_node(message: bytes, *, delta: bool) -> bytes:
    """Return a first message without the node, which is most of it and has been read."""
    kind = discovery.DeltaDiscoveryRequest if delta else discovery.DiscoveryRequest
    read = kind.FromString(message)
    read.ClearField("node")
    return bytes(read.SerializeToString())


def _word(field: str, text: str) -> str:
    """Return ``text``, a field of the node.

    Raises:
        BadRequestError: it is too long, or not printable.
    """
    if len(text) > LONGEST_WORD or not text.isprintable():
        raise BadRequestError(
            f"{field} {text[:LONGEST_WORD]!r}: expected at most {LONGEST_WORD} characters, all of them printable"
        )
    return text


def _node(node: core.Node) -> Node:
    version = node.user_agent_version
    if node.HasField("user_agent_build_version"):
        build = node.user_agent_build_version.version
        version = f"{build.major_number}.{build.minor_number}.{build.patch}"
    metadata = dict(node.metadata)
    name, port = metadata.get("node_name", ""), metadata.get("dns_port", 0)
    return Node(
        _word("node.id", node.id),
        _word("node.cluster", node.cluster),
        _word("node.metadata.node_name", name) if isinstance(name, str) else "",
        _word("node.user_agent_version", version),
        dual_stack=metadata.get("dual_stack") is True,
        dns_port=int(port) if isinstance(port, float) and 0 < port < 65536 else 0,
    )


def encode_response(response: Response, *, delta: bool) -> bytes:
    """Return a response as bytes."""
    if not delta:
        return discovery.DiscoveryResponse(
            version_info=response.version,
            resources=[Any(type_url=r.type_url, value=r.body) for r in response.resources],
            type_url=response.type_url,
            nonce=response.nonce,
            control_plane=core.ControlPlane(identifier=CONTROL_PLANE),
        ).SerializeToString()
    # Joined from encoded parts: with many resources, building the message would cost more than everything else.
    parts = [part for r in response.resources for part in (r.head, r.body)]
    parts.append(_own_part(response.type_url, response.version, response.nonce, response.removed))
    return b"".join(parts)


@functools.lru_cache(maxsize=1024)
def _own_part(type_url: str, version: str, nonce: str, removed: tuple[str, ...]) -> bytes:
    """Return a delta response without its resources. Sidecars count alike, so many of them are sent the same bytes."""
    return discovery.DeltaDiscoveryResponse(
        system_version_info=version,
        type_url=type_url,
        nonce=nonce,
        removed_resources=removed,
        control_plane=core.ControlPlane(identifier=CONTROL_PLANE),
    ).SerializeToString()

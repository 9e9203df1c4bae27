"""Encoded resources, each encoded once and shared by every proxy that uses it.

Its frame is shared as well. Protobuf's repeated fields concatenate, so a response is its own part (a nonce) joined with
encoded parts: ``head`` and ``body`` of each resource.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from google.protobuf.message import Message

from xds.envoy.wire_format import tag, text

_PREFIX = "type.googleapis.com/"

CLUSTER = _PREFIX + "envoy.config.cluster.v3.Cluster"
EXTENSION = _PREFIX + "envoy.config.core.v3.TypedExtensionConfig"
ENDPOINT = _PREFIX + "envoy.config.endpoint.v3.ClusterLoadAssignment"
LISTENER = _PREFIX + "envoy.config.listener.v3.Listener"
ROUTE = _PREFIX + "envoy.config.route.v3.RouteConfiguration"
SCOPED_ROUTE = _PREFIX + "envoy.config.route.v3.ScopedRouteConfiguration"
SECRET = _PREFIX + "envoy.extensions.transport_sockets.tls.v3.Secret"

TYPE_NAMES = {
    CLUSTER: "clusters",
    ENDPOINT: "endpoints",
    EXTENSION: "extensions",
    LISTENER: "listeners",
    ROUTE: "routes on demand",
    SCOPED_ROUTE: "routes",
    SECRET: "secrets",
}
"""Name of each type for operators."""


@dataclass(frozen=True, slots=True)
class Resource:
    """Encoded resource. ``version`` names its bytes: equal versions, equal bytes."""

    type_url: str
    name: str
    version: str
    body: bytes
    endpoints: str = ""
    """Name of an EDS cluster's endpoints, which Envoy waits for when the cluster changes."""
    clusters: tuple[str, ...] = ()
    """The clusters that it names: listeners and routes need them before themselves, a cluster beside itself."""
    routes: tuple[str, ...] = ()
    """Routes that a listener names, likewise."""
    of_all_upstreams: bool = False
    """Whether its content is right only once all upstreams have been read."""
    shares_routes: bool = False
    """Whether a scope has no routes of its own, so that it shares one configuration where clusters come on demand."""
    head: bytes = field(init=False, repr=False, compare=False)
    """Bytes before ``body`` where the resource stands in a delta response, as one of its ``resources``."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "head", _head(self.type_url, self.name, self.version, len(self.body)))


def _head(type_url: str, name: str, version: str, size: int) -> bytes:
    """Return the beginning of field 2 of a DeltaDiscoveryResponse, a Resource, up to the value of its Any, which is
    last.

    It contains ``version`` (field 1), ``name`` (3) and ``resource`` (2), whose own fields are ``type_url`` (1) and
    ``value`` (2).
    """
    any_head = text(1, type_url) + tag(2, size)
    inner = text(1, version) + text(3, name) + tag(2, len(any_head) + size) + any_head
    return tag(2, len(inner) + size) + inner


def encode(
    type_url: str,
    name: str,
    message: Message,
    *,
    endpoints: str = "",
    clusters: tuple[str, ...] = (),
    routes: tuple[str, ...] = (),
    of_all_upstreams: bool = False,
) -> Resource:
    """Encode ``message``, deterministically, so that the same content always has the same version."""
    body = message.SerializeToString(deterministic=True)
    return encode_bytes(
        type_url,
        name,
        body,
        endpoints=endpoints,
        clusters=clusters,
        routes=routes,
        of_all_upstreams=of_all_upstreams,
    )


def encode_bytes(
    type_url: str,
    name: str,
    body: bytes,
    *,
    endpoints: str = "",
    clusters: tuple[str, ...] = (),
    routes: tuple[str, ...] = (),
    of_all_upstreams: bool = False,
) -> Resource:
    """Return a resource from a message that is encoded already."""
    version = hashlib.blake2b(body, digest_size=8).hexdigest()
    return Resource(type_url, name, version, body, endpoints, clusters, routes, of_all_upstreams)

"""A resource as it travels: encoded once, then shared by every proxy that uses it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from google.protobuf.message import Message

_PREFIX = "type.googleapis.com/"

CLUSTER = _PREFIX + "envoy.config.cluster.v3.Cluster"
EXTENSION = _PREFIX + "envoy.config.core.v3.TypedExtensionConfig"
ENDPOINT = _PREFIX + "envoy.config.endpoint.v3.ClusterLoadAssignment"
LISTENER = _PREFIX + "envoy.config.listener.v3.Listener"
SCOPED_ROUTE = _PREFIX + "envoy.config.route.v3.ScopedRouteConfiguration"
SECRET = _PREFIX + "envoy.extensions.transport_sockets.tls.v3.Secret"

TYPE_NAMES = {
    CLUSTER: "clusters",
    ENDPOINT: "endpoints",
    EXTENSION: "extensions",
    LISTENER: "listeners",
    SCOPED_ROUTE: "routes",
    SECRET: "secrets",
}
"""What an operator calls each type."""


@dataclass(frozen=True, slots=True)
class Resource:
    """One encoded resource. ``version`` names its bytes: equal versions, equal bytes."""

    type_url: str
    name: str
    version: str
    body: bytes
    endpoints: str = ""
    """For an EDS cluster: the name of its endpoints, which Envoy waits for when the cluster changes."""
    clusters: tuple[str, ...] = ()
    """For a listener or routes: the clusters that they name, which have to be there before they are."""
    routes: tuple[str, ...] = ()
    """For a listener: the routes that it names, likewise."""
    of_all_upstreams: bool = False
    """Whether its content is right only once all upstreams have been read."""


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
    """A message that is encoded already."""
    version = hashlib.blake2b(body, digest_size=8).hexdigest()
    return Resource(type_url, name, version, body, endpoints, clusters, routes, of_all_upstreams)

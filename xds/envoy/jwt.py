"""Encodes the filter that verifies JSON Web Tokens, and the clusters for their keys.

The filter refuses no request: the requirements are part of the intentions, which the RBAC filter behind it enforces. A
provider that is unknown or can't be used is left out, so that its tokens are never valid.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from urllib.parse import urlsplit

from google.protobuf.empty_pb2 import Empty

from xds.envoy import names
from xds.envoy.clusters import milliseconds
from xds.envoy.resource import CLUSTER, EXTENSION, Resource, encode
from xds.envoy.tls import TRANSPORT_SOCKET, typed
from xds.mesh.addresses import is_ip
from xds.mesh.intentions import RemoteKeys, TokenProvider
from xds.wire.envoy.config import cluster_pb2 as cluster
from xds.wire.envoy.config import core_pb2 as core
from xds.wire.envoy.config import endpoint_pb2 as endpoint
from xds.wire.envoy.config import route_pb2 as route
from xds.wire.envoy.extensions import jwt_authn_pb2 as jwt
from xds.wire.envoy.extensions import tls_pb2 as tls

FETCH_TIMEOUT_MS = 1000
CONNECT_TIMEOUT_MS = 5000


def authentication(providers: Iterable[TokenProvider]) -> Resource:
    """Return the filter for these providers. Without any it does nothing."""
    found = list(providers)
    filter_config = jwt.JwtAuthentication(providers={provider.name: _provider(provider) for provider in found})
    if found:
        required = jwt.JwtRequirement(requires_all=jwt.JwtRequirementAndList(requirements=map(_verified_or_not, found)))
        if len(found) == 1:
            required = _verified_or_not(found[0])
        filter_config.rules.add(match=route.RouteMatch(prefix="/"), requires=required)
    message = core.TypedExtensionConfig(name=names.JWT_EXTENSION, typed_config=typed(filter_config))
    fetched_from = [names.jwks_cluster(each.name) for each in found if each.remote_keys is not None]
    return encode(EXTENSION, names.JWT_EXTENSION, message, clusters=tuple(fetched_from))


def _verified_or_not(provider: TokenProvider) -> jwt.JwtRequirement:
    ways = [jwt.JwtRequirement(provider_name=provider.name), jwt.JwtRequirement(allow_missing_or_failed=Empty())]
    return jwt.JwtRequirement(requires_any=jwt.JwtRequirementOrList(requirements=ways))


def _provider(provider: TokenProvider) -> jwt.JwtProvider:
    found = jwt.JwtProvider(
        issuer=provider.issuer,
        audiences=provider.audiences,
        forward=provider.forward,
        from_headers=[
            jwt.JwtHeader(name=each.header, value_prefix=each.value_prefix)
            for each in provider.locations
            if each.header
        ],
        from_params=[each.query_parameter for each in provider.locations if each.query_parameter],
        from_cookies=[each.cookie for each in provider.locations if each.cookie],
        forward_payload_header=provider.payload_header,
        pad_forward_payload_header=provider.pad_payload,
        payload_in_metadata=names.jwt_payload(provider.name),
        clock_skew_seconds=provider.clock_skew_s,
    )
    if provider.cache_size:
        found.jwt_cache_config.jwt_cache_size = provider.cache_size
    if provider.keys:
        found.local_jwks.inline_string = provider.keys
    elif provider.keys_file:
        found.local_jwks.filename = provider.keys_file
    elif provider.remote_keys is not None:
        found.remote_jwks.CopyFrom(_remote(provider.name, provider.remote_keys))
    return found


def _remote(name: str, keys: RemoteKeys) -> jwt.RemoteJwks:
    uri = core.HttpUri(
        uri=keys.uri,
        cluster=names.jwks_cluster(name),
        timeout=milliseconds(keys.request_timeout_ms or FETCH_TIMEOUT_MS),
    )
    found = jwt.RemoteJwks(http_uri=uri)
    if keys.cache_ms:
        found.cache_duration.CopyFrom(milliseconds(keys.cache_ms))
    if keys.fetch_asynchronously:
        found.async_fetch.fast_listener = True
    if keys.retries:
        found.retry_policy.num_retries.value = keys.retries
    if keys.backoff_ms:
        backoff = core.BackoffStrategy(base_interval=milliseconds(keys.backoff_ms))
        if keys.backoff_most_ms:
            backoff.max_interval.CopyFrom(milliseconds(keys.backoff_most_ms))
        found.retry_policy.retry_back_off.CopyFrom(backoff)
    return found


def key_clusters(providers: Iterable[TokenProvider]) -> Iterator[Resource]:
    """Yield the clusters from which keys that are not local are fetched."""
    for provider in providers:
        if provider.remote_keys is not None:
            yield _key_cluster(names.jwks_cluster(provider.name), provider.remote_keys)


def _key_cluster(name: str, keys: RemoteKeys) -> Resource:
    parts = urlsplit(keys.uri)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    kind = "STATIC" if is_ip(host) else keys.discovery or "STRICT_DNS"
    address = core.Address(socket_address=core.SocketAddress(address=host, port_value=port))
    message = cluster.Cluster(
        name=name,
        type=kind,
        connect_timeout=milliseconds(keys.connect_timeout_ms or CONNECT_TIMEOUT_MS),
        load_assignment=endpoint.ClusterLoadAssignment(
            cluster_name=name,
            endpoints=[
                endpoint.LocalityLbEndpoints(
                    lb_endpoints=[endpoint.LbEndpoint(endpoint=endpoint.Endpoint(address=address))]
                )
            ],
        ),
    )
    if parts.scheme == "https":
        message.transport_socket.CopyFrom(_verified_tls(host, keys))
    return encode(CLUSTER, name, message)


def _verified_tls(host: str, keys: RemoteKeys) -> core.TransportSocket:
    """Return TLS towards the server of the keys, with verification: an impostor of it could issue tokens."""
    san = tls.SubjectAltNameMatcher.IP_ADDRESS if is_ip(host) else tls.SubjectAltNameMatcher.DNS
    trusted = tls.CertificateValidationContext()
    matched = trusted.match_typed_subject_alt_names.add(san_type=san)
    matched.matcher.exact = host
    if keys.ca_pem:
        trusted.trusted_ca.inline_string = keys.ca_pem
    elif keys.ca_file:
        trusted.trusted_ca.filename = keys.ca_file
    else:
        trusted.system_root_certs.SetInParent()
    context = tls.UpstreamTlsContext(
        common_tls_context=tls.CommonTlsContext(validation_context=trusted), sni="" if is_ip(host) else host
    )
    return core.TransportSocket(name=TRANSPORT_SOCKET, typed_config=typed(context))

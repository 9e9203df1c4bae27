"""Encodes TLS contexts and the secrets they name. Certificates are never inlined: a rotation changes secrets only."""

from __future__ import annotations

import functools
from collections.abc import Iterable

from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import BoolValue

from xds.envoy import names
from xds.envoy.resource import SECRET, Resource, encode
from xds.mesh.config_entries import TLSParameters
from xds.mesh.facts import Leaf, Roots
from xds.wire.envoy.config import core_pb2 as core
from xds.wire.envoy.extensions import tls_pb2 as tls
from xds.wire.envoy.type import matcher_pb2 as matcher

TRANSPORT_SOCKET = "envoy.transport_sockets.tls"


def typed(message: Message) -> Any:
    """Return ``message`` as an ``Any``, with deterministic bytes."""
    packed = Any()
    packed.Pack(message, deterministic=True)
    return packed


def ads_source() -> core.ConfigSource:
    """Return the config source that means the current stream."""
    return core.ConfigSource(ads=core.AggregatedConfigSource(), resource_api_version=core.V3)


def leaf_secret(leaf: Leaf) -> Resource:
    """Return the sidecar's own certificate chain and key as a secret."""
    secret = tls.Secret(
        name=names.LEAF_SECRET,
        tls_certificate=tls.TlsCertificate(
            certificate_chain=core.DataSource(inline_string=leaf.certificate_chain),
            private_key=core.DataSource(inline_string=leaf.private_key),
        ),
    )
    return encode(SECRET, names.LEAF_SECRET, secret)


def roots_secret(roots: Roots) -> Resource:
    """Return all trusted roots as one secret."""
    bundle = "".join(pem if pem.endswith("\n") else pem + "\n" for pem in roots.certificates)
    secret = tls.Secret(
        name=names.ROOTS_SECRET,
        validation_context=tls.CertificateValidationContext(trusted_ca=core.DataSource(inline_string=bundle)),
    )
    return encode(SECRET, names.ROOTS_SECRET, secret)


def identify_upstream(
    socket: core.TransportSocket, identities: Iterable[str], sni: str, parameters: TLSParameters, alpn: tuple[str, ...]
) -> None:
    """Make ``socket`` mutual TLS towards a service: its certificate must carry exactly one of these SPIFFE IDs."""
    context = tls.UpstreamTlsContext.FromString(_upstream(parameters, alpn))
    context.sni = sni
    accepted = context.common_tls_context.combined_validation_context.default_validation_context
    for identity in identities:
        wanted = accepted.match_typed_subject_alt_names.add(san_type=tls.SubjectAltNameMatcher.URI)
        wanted.matcher.exact = identity
    socket.name = TRANSPORT_SOCKET
    socket.typed_config.Pack(context, deterministic=True)


@functools.lru_cache(maxsize=64)
def _upstream(parameters: TLSParameters, alpn: tuple[str, ...]) -> bytes:
    """Return the peer-independent part of the upstream TLS context, cached."""
    context = tls.UpstreamTlsContext(common_tls_context=_common(tls.CertificateValidationContext(), parameters, alpn))
    return context.SerializeToString(deterministic=True)


def downstream_transport_socket(
    identities: list[matcher.StringMatcher] | None, parameters: TLSParameters, alpn: Iterable[str]
) -> core.TransportSocket:
    """Return mutual TLS on a public listener, for clients with one of these SPIFFE IDs; ``None`` is any of the mesh."""
    context = tls.DownstreamTlsContext(
        common_tls_context=_common(
            tls.CertificateValidationContext(
                match_typed_subject_alt_names=[
                    tls.SubjectAltNameMatcher(san_type=tls.SubjectAltNameMatcher.URI, matcher=identity)
                    for identity in identities or ()
                ]
            ),
            parameters,
            alpn,
        ),
        require_client_certificate=BoolValue(value=True),
    )
    return core.TransportSocket(name=TRANSPORT_SOCKET, typed_config=typed(context))


def _common(
    validation: tls.CertificateValidationContext, parameters: TLSParameters, alpn: Iterable[str]
) -> tls.CommonTlsContext:
    return tls.CommonTlsContext(
        tls_params=tls.TlsParameters(
            tls_minimum_protocol_version=parameters.minimum or "TLS_AUTO",
            tls_maximum_protocol_version=parameters.maximum or "TLS_AUTO",
            cipher_suites=parameters.cipher_suites,
        ),
        alpn_protocols=alpn,
        tls_certificate_sds_secret_configs=[tls.SdsSecretConfig(name=names.LEAF_SECRET, sds_config=ads_source())],
        combined_validation_context=tls.CommonTlsContext.CombinedCertificateValidationContext(
            default_validation_context=validation,
            validation_context_sds_secret_config=tls.SdsSecretConfig(name=names.ROOTS_SECRET, sds_config=ads_source()),
        ),
    )

"""Builds the bootstrap of a sidecar: its identity and its control plane, and nothing about the mesh.

It is built from envoy-data-plane's types, so only fields that Envoy has can be written. Names are those of ``consul
connect envoy``: the cluster ``local_agent``, the tags ``consul.source.*`` and ``consul.destination.*``.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import betterproto2
from envoy_data_plane.envoy.config.bootstrap import v3 as bootstrap
from envoy_data_plane.envoy.config.cluster import v3 as cluster
from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.config.endpoint import v3 as endpoint
from envoy_data_plane.envoy.config.metrics import v3 as metrics
from envoy_data_plane.envoy.extensions.transport_sockets.tls import v3 as envoy_tls
from envoy_data_plane.envoy.extensions.upstreams.http import v3 as http
from envoy_data_plane.envoy.service.discovery import v3 as discovery
from envoy_data_plane.envoy.type.matcher import v3 as matcher
from envoy_data_plane.google.protobuf import Any as PackedAny
from envoy_data_plane.google.protobuf import Struct

from xds.envoy import names
from xds.envoy.names import ControlPlaneIdentity
from xds.mesh.addresses import HostPort, is_ip

CONTROL_PLANE_CLUSTER = "local_agent"

CA_SECRET, CERTIFICATE_SECRET = "control_plane_ca", "control_plane_certificate"
"""The secrets that a sidecar connects to its control plane with."""

KEPT_STATS = (
    "cluster_manager.",
    "control_plane.",
    "listener_manager.",
    "listener.",
    "server.",
    "tcp.",
    "http.",
    "sds.",
    "connect_authz",
    "connection_limit.",
    "dns_filter.",
)
"""Every stat that begins so is kept: there are few of them, however large the mesh."""
KEPT_CLUSTER_STATS = (
    r"upstream_cx_(active|total|connect_fail|connect_timeout|rx_bytes_total|tx_bytes_total)|"
    r"upstream_rq_(active|total|timeout|retry|pending_overflow|[1-5]xx)|membership_(total|healthy)|"
    r"grpc\..*|outlier_detection\.ejections_(active|enforced_total)|"
    r"ssl\.(handshake|connection_error|fail_verify_(error|san|no_cert))"
)
"""Stats of each cluster that Envoy keeps, out of a hundred; all of them cost twice the memory (docs/operating.md)."""

_DESTINATION_TAGS = {
    "service": r"^cluster\.(?:[^.]+~)?(([^.]+)\.)[^.]+\.[^.]+\.internal\.[^.]+\.consul\.",
    "namespace": r"^cluster\.(?:[^.]+~)?[^.]+\.(([^.]+)\.)[^.]+\.internal\.[^.]+\.consul\.",
    "datacenter": r"^cluster\.(?:[^.]+~)?[^.]+\.[^.]+\.(([^.]+)\.)internal\.[^.]+\.consul\.",
    "trust_domain": r"^cluster\.(?:[^.]+~)?[^.]+\.[^.]+\.[^.]+\.internal\.(([^.]+\.consul)\.)",
}


@dataclass(frozen=True, slots=True)
class ControlPlaneTls:
    """Authorities and names for TLS with a control plane.

    Envoy reads files of a bootstrap once. It follows files that are named in a secret, and secrets can be in files
    themselves: see `secrets`.
    """

    ca: Path | str
    """Certificate authorities, PEM: a file, or what would be in it."""
    server_name: str = ""
    """The name in the server's certificate; empty for the host of its address."""
    identity: ControlPlaneIdentity | None = None
    """The identity in the server's certificate, in place of a name, where it is of the mesh."""
    certificate: Path | None = None
    """The sidecar's own certificate, PEM, where the control plane requires one."""
    key: Path | None = None
    ca_secret: Path | None = None
    """A file with the secret that names ``ca``; without, Envoy does not follow that."""
    certificate_secret: Path | None = None
    """A file with the secret that names ``certificate`` and ``key``."""

    def secrets(self) -> dict[str, dict[str, Any]]:
        """Return the contents of the files of secrets, as plain data by secret's name, for what is in files."""
        found: dict[str, dict[str, Any]] = {}
        if isinstance(self.ca, Path):
            context = envoy_tls.CertificateValidationContext(
                trusted_ca=_file(self.ca), watched_directory=_folder(self.ca)
            )
            found[CA_SECRET] = _secret_file(envoy_tls.Secret(name=CA_SECRET, validation_context=context))
        if self.certificate and self.key:
            certificate = envoy_tls.TlsCertificate(
                certificate_chain=_file(self.certificate),
                private_key=_file(self.key),
                watched_directory=_folder(self.certificate),
            )
            found[CERTIFICATE_SECRET] = _secret_file(
                envoy_tls.Secret(name=CERTIFICATE_SECRET, tls_certificate=certificate)
            )
        return found


@dataclass(frozen=True, slots=True)
class BootstrapInputs:
    """Inputs of a bootstrap."""

    proxy_id: str
    """The sidecar's service ID in Consul."""
    service: str
    """The service it is a sidecar of."""
    node_name: str
    """The Consul node it is registered on; empty leaves it out."""
    control_planes: tuple[HostPort, ...]
    """Addresses of ``gossamer serve``; with several, Envoy uses the next one when one fails."""
    admin: HostPort | Path | None
    """Address or Unix socket of Envoy's admin interface; ``None`` for no such interface."""
    token: str
    datacenter: str
    tls: ControlPlaneTls | None = None
    """TLS with the control plane; ``None`` is plain text."""
    dual_stack: bool = False
    """Whether the host has IPv6."""
    dns_port: int | None = None
    """Port at which the sidecar answers DNS queries, ``None`` for none."""

    def metadata(self) -> dict[str, Any]:
        """Return the node's metadata for the control plane."""
        found = {"node_name": self.node_name, "dual_stack": self.dual_stack, "dns_port": self.dns_port}
        return {name: value for name, value in found.items() if value}


def sidecar_bootstrap(inputs: BootstrapInputs) -> dict[str, Any]:
    """Return the bootstrap as plain data, ready for YAML or JSON."""
    message = bootstrap.Bootstrap(
        node=core.Node(
            id=inputs.proxy_id,
            cluster=inputs.service,
            metadata=Struct.from_dict(inputs.metadata()),
        ),
        admin=_admin(inputs.admin),
        static_resources=bootstrap.BootstrapStaticResources(
            clusters=[_control_plane(inputs.control_planes, inputs.tls)]
        ),
        dynamic_resources=bootstrap.BootstrapDynamicResources(
            ads_config=core.ApiConfigSource(
                api_type=core.ApiConfigSourceApiType.DELTA_GRPC,
                transport_api_version=core.ApiVersion.V3,
                # Without this, every request and acknowledgement contains 60 KB about Envoy.
                set_node_on_first_message_only=True,
                grpc_services=[
                    core.GrpcService(
                        envoy_grpc=core.GrpcServiceEnvoyGrpc(cluster_name=CONTROL_PLANE_CLUSTER),
                        initial_metadata=[core.HeaderValue(key=names.TOKEN_METADATA, value=inputs.token)],
                    )
                ],
            ),
            cds_config=_ads(),
            lds_config=_ads(),
        ),
        stats_config=_stats(inputs),
        layered_runtime=bootstrap.LayeredRuntime(
            layers=[
                bootstrap.RuntimeLayer(
                    name="base", static_layer=Struct.from_dict({"re2.max_program_size.error_level": 1048576})
                )
            ]
        ),
    )
    return message.to_dict(casing=betterproto2.Casing.SNAKE)


def _ads() -> core.ConfigSource:
    return core.ConfigSource(
        ads=core.AggregatedConfigSource(),
        resource_api_version=core.ApiVersion.V3,
        # A sidecar that is not registered yet waits without a time limit.
        initial_fetch_timeout=timedelta(0),
    )


def _tls_socket(tls: ControlPlaneTls, hosts: list[str]) -> core.TransportSocket:
    """Return the TLS to a control plane whose certificate has the expected name or identity, or one of ``hosts``."""
    names = _expected_names(tls, hosts)
    common = envoy_tls.CommonTlsContext(
        tls_params=envoy_tls.TlsParameters(
            tls_minimum_protocol_version=envoy_tls.TlsParametersTlsProtocol.TLSv1_2,
            tls_maximum_protocol_version=envoy_tls.TlsParametersTlsProtocol.TLSv1_3,
        ),
        alpn_protocols=["h2"],
    )
    if tls.ca_secret is not None:
        common.combined_validation_context = envoy_tls.CommonTlsContextCombinedCertificateValidationContext(
            default_validation_context=envoy_tls.CertificateValidationContext(match_typed_subject_alt_names=names),
            validation_context_sds_secret_config=_secret_in(CA_SECRET, tls.ca_secret),
        )
    else:
        common.validation_context = envoy_tls.CertificateValidationContext(
            trusted_ca=_file(tls.ca) if isinstance(tls.ca, Path) else core.DataSource(inline_string=tls.ca),
            match_typed_subject_alt_names=names,
        )
    if tls.certificate_secret is not None:
        common.tls_certificate_sds_secret_configs = [_secret_in(CERTIFICATE_SECRET, tls.certificate_secret)]
    elif tls.certificate and tls.key:
        common.tls_certificates = [
            envoy_tls.TlsCertificate(certificate_chain=_file(tls.certificate), private_key=_file(tls.key))
        ]
    context = envoy_tls.UpstreamTlsContext(
        sni=tls.server_name or next((host for host in hosts if not is_ip(host)), ""), common_tls_context=common
    )
    return core.TransportSocket(name="envoy.transport_sockets.tls", typed_config=PackedAny.pack(context))


def _expected_names(tls: ControlPlaneTls, hosts: list[str]) -> list[envoy_tls.SubjectAltNameMatcher]:
    san = envoy_tls.SubjectAltNameMatcherSanType
    if tls.identity is not None:
        exact = tls.identity.exact()
        regex = None if exact else matcher.RegexMatcher(regex=tls.identity.pattern())
        expected = matcher.StringMatcher(exact=exact, safe_regex=regex)
        return [envoy_tls.SubjectAltNameMatcher(san_type=san.URI, matcher=expected)]
    return [
        envoy_tls.SubjectAltNameMatcher(
            san_type=san.IP_ADDRESS if is_ip(name) else san.DNS, matcher=matcher.StringMatcher(exact=name)
        )
        for name in dict.fromkeys([tls.server_name] if tls.server_name else hosts)
    ]


def _secret_file(secret: envoy_tls.Secret) -> dict[str, Any]:
    response = discovery.DiscoveryResponse(resources=[PackedAny.pack(secret)])
    return response.to_dict(casing=betterproto2.Casing.SNAKE)


def _secret_in(name: str, file: Path) -> envoy_tls.SdsSecretConfig:
    return envoy_tls.SdsSecretConfig(
        name=name,
        sds_config=core.ConfigSource(
            path_config_source=core.PathConfigSource(path=str(file)), resource_api_version=core.ApiVersion.V3
        ),
    )


def _file(path: Path) -> core.DataSource:
    return core.DataSource(filename=str(path))


def _folder(path: Path) -> core.WatchedDirectory:
    return core.WatchedDirectory(path=str(path.parent))


def _control_plane(addresses: tuple[HostPort, ...], tls: ControlPlaneTls | None) -> cluster.Cluster:
    named = any(not is_ip(host) for host, _ in addresses)
    options = http.HttpProtocolOptions(
        explicit_http_config=http.HttpProtocolOptionsExplicitHttpConfig(
            http2_protocol_options=core.Http2ProtocolOptions(
                connection_keepalive=core.KeepaliveSettings(
                    interval=timedelta(seconds=30), timeout=timedelta(seconds=10)
                )
            )
        )
    )
    return cluster.Cluster(
        name=CONTROL_PLANE_CLUSTER,
        type=cluster.ClusterDiscoveryType.STRICT_DNS if named else cluster.ClusterDiscoveryType.STATIC,
        connect_timeout=timedelta(seconds=1),
        transport_socket=None if tls is None else _tls_socket(tls, [host for host, _ in addresses]),
        typed_extension_protocol_options={names.HTTP_OPTIONS: PackedAny.pack(options)},
        load_assignment=endpoint.ClusterLoadAssignment(
            cluster_name=CONTROL_PLANE_CLUSTER,
            endpoints=[
                endpoint.LocalityLbEndpoints(
                    lb_endpoints=[
                        endpoint.LbEndpoint(endpoint=endpoint.Endpoint(address=_address(address)))
                        for address in addresses
                    ]
                )
            ],
        ),
    )


def _stats(inputs: BootstrapInputs) -> metrics.StatsConfig:
    fixed = {
        "local_cluster": inputs.service,
        "consul.source.service": inputs.service,
        "consul.source.namespace": "default",
        "consul.source.partition": "default",
        "consul.source.datacenter": inputs.datacenter,
    }
    tags = [metrics.TagSpecifier(tag_name=name, fixed_value=value) for name, value in fixed.items() if value]
    tags += [
        metrics.TagSpecifier(tag_name=f"consul.destination.{name}", regex=pattern)
        for name, pattern in _DESTINATION_TAGS.items()
    ]
    kept = [matcher.StringMatcher(prefix=prefix) for prefix in KEPT_STATS]
    pattern = rf"^cluster\..*\.(?:{KEPT_CLUSTER_STATS})$"
    kept.append(matcher.StringMatcher(safe_regex=matcher.RegexMatcher(regex=pattern)))
    return metrics.StatsConfig(
        stats_tags=tags,
        use_all_default_tags=True,
        stats_matcher=metrics.StatsMatcher(inclusion_list=matcher.ListStringMatcher(patterns=kept)),
    )


def _admin(at: HostPort | Path | None) -> bootstrap.Admin | None:
    if at is None:
        return None
    if isinstance(at, Path):
        return bootstrap.Admin(address=core.Address(pipe=core.Pipe(path=str(at), mode=0o600)))
    return bootstrap.Admin(address=_address(at))


def _address(address: HostPort) -> core.Address:
    return core.Address(socket_address=core.SocketAddress(address=address[0], port_value=address[1]))

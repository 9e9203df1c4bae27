"""``gossamer serve``: the control plane."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from xds.cli.common import HostPortFlag, Network, PemFile, consul_flags, mesh_flag, state_flag
from xds.mesh.addresses import HostPort, IPNetwork, is_loopback
from xds.mesh.config_entries import ClusterMode
from xds.policy.forbidden import Forbidden
from xds.policy.mesh_wide_settings import CONSUL_VIRTUAL_IPS, MeshWideSettings
from xds.policy.quotas import DEFAULT_QUOTAS, with_changes
from xds.policy.quotas import names as quota_names
from xds.sources.consul.settings import ConsulSettings
from xds.sources.file.settings import FileSettings
from xds.workers.grpc_log import GrpcLog, take_over
from xds.workers.logs import configure


class Quota(click.ParamType[tuple[str, int]]):
    """``NAME=N``: a quota and its value."""

    name = "quota"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        name, _, number = str(value).partition("=")
        if name not in quota_names() or not number.isdecimal():
            self.fail(
                f"{value!r} is not NAME=N, N being a number and NAME one of {', '.join(quota_names())}", param, ctx
            )
        return name, int(number)


@click.command()
@consul_flags
@mesh_flag
@state_flag
@click.option(
    "--listen",
    type=HostPortFlag(),
    default="127.0.0.1:18000",
    show_default=True,
    help="Address where Envoys connect (xDS over gRPC).",
)
@click.option(
    "--admin",
    type=HostPortFlag(),
    default="127.0.0.1:18001",
    show_default=True,
    help="/ready, /metrics and /v1/sidecars over HTTP.",
)
@click.option(
    "--virtual-ip-range",
    "ranges",
    type=Network(),
    multiple=True,
    metavar="CIDR",
    help="A further range whose every address is a virtual IP, beside 240.0.0.0/4. Repeatable.",
)
@click.option(
    "--mesh-destinations-only",
    is_flag=True,
    help="Close connections to any address that is not a virtual IP, regardless of the mesh config entry.",
)
@click.option(
    "--strict-ports",
    is_flag=True,
    help="A service answers only at the port of its virtual address if that has one, otherwise at any.",
)
@click.option(
    "--clusters",
    type=click.Choice([mode.value for mode in ClusterMode]),
    default=ClusterMode.AUTO.value,
    show_default=True,
    help="When sidecars are sent their upstreams' clusters: all at once, each when it is first dialed, or at once as"
    " long as they are few.",
)
@click.option(
    "--quota",
    "quotas",
    type=Quota(),
    multiple=True,
    metavar="NAME=N",
    help="Raise or lower a limit of one service's configuration; a service above it is set aside as an upstream."
    f" Repeatable. Names: {', '.join(quota_names())}.",
)
@click.option(
    "--forbid-extensions",
    is_flag=True,
    help="Let no service-defaults entry give EnvoyExtensions; those of the proxy-defaults stay.",
)
@click.option(
    "--forbid-overrides",
    is_flag=True,
    help="Forbid Envoy's JSON (envoy_*_json) in registrations and service-defaults; what the"
    " proxy-defaults give stays.",
)
@click.option(
    "--insecure",
    is_flag=True,
    help="Listen beyond loopback although clients are not authenticated: with a Consul that has no ACLs, or a mesh file"
    " without tokens, any host gets any service's key; the admin port is open to all that reach it.",
)
@click.option(
    "--tls",
    type=click.Choice(["mesh"]),
    help="Serve xDS over TLS with a certificate of the mesh for the service 'gossamer'. Gossamer's token needs"
    " service:write on that name; a mesh file's authority makes it by itself. [where --listen is not loopback]",
)
@click.option("--plaintext", is_flag=True, help="Serve xDS without TLS beyond loopback: keys can be read on the way.")
@click.option(
    "--tls-cert",
    type=PemFile(),
    help="Serve xDS over TLS, with the certificate in this file (PEM), read again when it changes.",
)
@click.option("--tls-key", type=PemFile(), help="The file of its private key.")
@click.option(
    "--tls-client-ca",
    type=PemFile(),
    help="Require client certificates of the authorities in this file. One of the mesh with the SPIFFE ID of a service"
    " replaces that service's token.",
)
@click.option(
    "--drain",
    type=click.FloatRange(0, 3600),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="When stopping, end the streams one after the other over at most this time. A second signal ends at once.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="How many processes serve sidecars. With more than one, one more reads the mesh for all of them.",
)
@click.option(
    "--probe-source",
    "probe_sources",
    type=Network(),
    multiple=True,
    metavar="CIDR",
    help="Network that may use exposed paths. Repeatable. [all]",
)
@click.option(
    "--passthrough-connect-timeout",
    type=click.IntRange(1, 600_000),
    default=5000,
    show_default=True,
    metavar="MS",
    help="Milliseconds that a connection to an address outside the mesh may take.",
)
@click.option(
    "--default-intention-policy",
    type=click.Choice(["allow", "deny"]),
    help="Default where no intention matches. [that of Consul or the mesh file]",
)
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
def serve(
    consul: ConsulSettings,
    mesh: Path | None,
    state: Path | None,
    listen: HostPort,
    admin: HostPort,
    ranges: tuple[IPNetwork, ...],
    mesh_destinations_only: bool,
    strict_ports: bool,
    clusters: str,
    quotas: tuple[tuple[str, int], ...],
    forbid_extensions: bool,
    forbid_overrides: bool,
    insecure: bool,
    tls: str | None,
    plaintext: bool,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_client_ca: Path | None,
    drain: float,
    workers: int,
    probe_sources: tuple[IPNetwork, ...],
    passthrough_connect_timeout: int,
    default_intention_policy: str | None,
    log_level: str,
) -> None:
    """Serve every Envoy that connects, from a Consul or a mesh file.

    \b
    A sidecar presents its ACL token on its stream (gossamer bootstrap puts it there); its certificate is fetched with
    that token. Gossamer's own token needs, for all services and nodes:
      service_prefix "" { policy = "read" intentions = "read" }   node_prefix "" { policy = "read" }
      agent_prefix "" { policy = "read" }   service "gossamer" { policy = "write" }
    and from Consul 1.11 on   mesh = "read"

    Beyond loopback, the port is opened when the certificate for it is there (--tls mesh), which sidecars verify.

    With --mesh FILE there is no Consul: services, intentions and defaults come from the file, which is followed as it
    is edited, and certificates from an authority of Gossamer's own.
    """
    if state is not None and mesh is None:
        raise click.UsageError("--state is for a mesh file: it goes with --mesh")
    if (tls_cert is None) != (tls_key is None) or (tls_client_ca is not None and tls_cert is None):
        raise click.UsageError("certificate files are --tls-cert and --tls-key; --tls-client-ca goes with both of them")
    if plaintext + (tls is not None) + (tls_cert is not None) > 1:
        raise click.UsageError("--plaintext, --tls mesh and --tls-cert exclude each other")
    # This has to precede the import of gRPC. With several workers, they have the connections and gRPC's log.
    grpc_log = take_over(os.environ) if workers == 1 else GrpcLog()
    from xds.ads.tls import MeshTls, TlsFiles
    from xds.app import ServeSettings
    from xds.cli.serve_process import run
    from xds.workers.xds_settings import XdsSettings

    files = TlsFiles(tls_cert, tls_key, tls_client_ca) if tls_cert and tls_key else None
    configure(log_level.upper())
    mesh_tls = tls is not None or not (plaintext or is_loopback(listen.host))
    settings = ServeSettings(
        source=consul if mesh is None else FileSettings.resolve(mesh, state),
        serving=XdsSettings(
            listen=listen,
            tls=files or (MeshTls() if mesh_tls else None),
            mesh_wide=MeshWideSettings(
                virtual_ranges=(CONSUL_VIRTUAL_IPS, *ranges),
                destinations_only=mesh_destinations_only,
                strict_ports=strict_ports,
                probe_sources=probe_sources,
                passthrough_connect_timeout_ms=passthrough_connect_timeout,
                quotas=with_changes(DEFAULT_QUOTAS, dict(quotas)),
                clusters=ClusterMode(clusters),
                forbidden=Forbidden(extensions=forbid_extensions, overrides=forbid_overrides),
            ),
        ),
        admin=admin,
        default_allow=None if default_intention_policy is None else default_intention_policy == "allow",
        insecure=insecure,
        drain=drain,
        workers=workers,
    )
    run(settings, grpc_log)

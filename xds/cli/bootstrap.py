"""``gossamer bootstrap``: prints an Envoy bootstrap for a sidecar."""

from __future__ import annotations

import asyncio
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from xds.cli.common import PEM_FILE, Failure, HostPort, consul_flags, mesh_flag
from xds.cli.envoy_admin import AdminAddress, default_socket
from xds.sources.consul import registration as in_consul
from xds.sources.consul.client import ConsulError
from xds.sources.consul.settings import ConsulSettings, SettingsError
from xds.sources.file import registration as in_file
from xds.sources.file.document import RefusedError
from xds.sources.registration import NotRegisteredError, Registration

if TYPE_CHECKING:
    from xds.envoy.bootstrap import ControlPlaneTls


def sidecar_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the arguments that name a sidecar and its control plane, for ``bootstrap`` and ``sidecar``.

    The command gets how to connect to the control plane as ``tls``, ``None`` for plain text.
    """
    flags = [
        click.argument("proxy_id", metavar="[PROXY_ID]", default=""),
        click.option(
            "--sidecar-for",
            metavar="SERVICE_ID",
            default="",
            help="The service it is the sidecar of, in place of PROXY_ID.",
        ),
        click.option(
            "--node-name",
            metavar="NODE",
            default="",
            help="The Consul node it is registered on, when that is not the agent's.",
        ),
        click.option(
            "--xds",
            type=HostPort(),
            multiple=True,
            default=["127.0.0.1:18000"],
            show_default=True,
            help="Where gossamer serve listens. Repeatable: Envoy goes on to another when one fails.",
        ),
        click.option(
            "--xds-ca",
            type=PEM_FILE,
            help="Connect to it over TLS, and verify its certificate with the authorities in this file (PEM).",
        ),
        click.option(
            "--xds-sni", metavar="NAME", default="", help="The name in its certificate. [the host given with --xds]"
        ),
        click.option("--xds-cert", type=PEM_FILE, help="The client certificate for it, where it requires one (PEM)."),
        click.option("--xds-key", type=PEM_FILE, help="The file of its private key."),
        click.option(
            "--admin",
            type=AdminAddress(),
            help="Where Envoy's own admin interface listens, which has no authentication and shows the ACL token."
            " [for gossamer sidecar: a Unix socket of its own user; for gossamer bootstrap: nowhere]",
        ),
        click.option(
            "--dual-stack/--ipv4-only",
            default=None,
            help="Whether its listeners take IPv6 as well. [for gossamer sidecar: where the host has it]",
        ),
        click.option(
            "--dns-port",
            type=click.IntRange(1, 65535),
            help="Answer DNS queries over UDP at this port of loopback: the virtual IPs by name, the rest forwarded.",
        ),
    ]

    @functools.wraps(command)
    def resolved(xds_ca: Path | None, xds_sni: str, xds_cert: Path | None, xds_key: Path | None, **about: Any) -> Any:
        return command(tls=_control_plane_tls(xds_ca, xds_sni, xds_cert, xds_key), **about)

    for flag in reversed(flags):
        resolved = flag(resolved)
    return consul_flags(mesh_flag(resolved))


def make_bootstrap(
    consul: ConsulSettings,
    mesh: Path | None,
    proxy_id: str,
    sidecar_for: str,
    node_name: str,
    xds: tuple[tuple[str, int], ...],
    tls: ControlPlaneTls | None,
    admin: tuple[str, int] | Path | None,
    dual_stack: bool | None,
    dns_port: int | None,
    *,
    runs_here: bool = False,
) -> dict[str, Any]:
    """The bootstrap for a sidecar that is registered in Consul or in the file ``mesh``.

    ``runs_here`` says that Envoy is started on this host, by this user: its admin interface can then have a socket.

    Raises:
        click.UsageError: not exactly one of ``proxy_id`` and ``sidecar_for``.
        Failure: it is not registered, or Consul can't be read.
    """
    from xds.envoy.bootstrap import BootstrapInputs, sidecar_bootstrap

    registration = look_up(consul, mesh, proxy_id, sidecar_for, node_name)
    sidecar = registration.sidecar
    for problem in sidecar.problems:
        click.echo(f"{sidecar.service_id}: {problem}", err=True)
    if admin is None and runs_here:
        admin = default_socket(sidecar.service_id, os.environ)
    return sidecar_bootstrap(
        BootstrapInputs(
            proxy_id=sidecar.service_id,
            service=sidecar.service,
            node_name=node_name,
            control_planes=xds,
            admin=admin,
            token=consul.read_token() or registration.token,
            datacenter=registration.datacenter,
            tls=tls,
            dual_stack=bool(dual_stack),
            dns_port=dns_port,
        )
    )


def _control_plane_tls(ca: Path | None, sni: str, certificate: Path | None, key: Path | None) -> ControlPlaneTls | None:
    """Return how to connect to the control plane, ``None`` for plain text.

    Raises:
        click.UsageError: flags that go together are not given together.
    """
    if (certificate is None) != (key is None):
        raise click.UsageError("a client certificate needs both --xds-cert and --xds-key")
    if ca is None:
        if sni or certificate:
            raise click.UsageError("--xds-sni and --xds-cert are for TLS: give the authorities as well, with --xds-ca")
        return None
    from xds.envoy.bootstrap import ControlPlaneTls

    return ControlPlaneTls(ca, sni, certificate, key)


def look_up(consul: ConsulSettings, mesh: Path | None, proxy_id: str, sidecar_for: str, node_name: str) -> Registration:
    """The registration of a sidecar.

    Raises:
        click.UsageError: not exactly one of ``proxy_id`` and ``sidecar_for``.
        Failure: it is not registered, or Consul or the mesh file can't be read.
    """
    if bool(proxy_id) == bool(sidecar_for):
        raise click.UsageError("name the sidecar by either its own service ID (PROXY_ID) or --sidecar-for SERVICE_ID")
    if mesh is not None and node_name:
        raise click.UsageError("--node-name is for Consul: a mesh file knows no nodes")
    try:
        if mesh is not None:
            found = in_file.find(mesh, proxy_id=proxy_id, sidecar_for=sidecar_for)
        else:
            found = asyncio.run(in_consul.find(consul, proxy_id=proxy_id, sidecar_for=sidecar_for, node_name=node_name))
    except (ConsulError, NotRegisteredError, SettingsError, RefusedError) as error:
        raise Failure(str(error)) from error
    if not found.sidecar.service:
        raise Failure(
            f"sidecar {found.sidecar.service_id!r} points at no service: it needs Proxy.DestinationServiceName"
        )
    return found


@click.command()
@sidecar_flags
@click.option("--format", "style", type=click.Choice(["yaml", "json"]), default="yaml", show_default=True)
def bootstrap(style: str, **sidecar: Any) -> None:
    """Print an Envoy bootstrap for the sidecar PROXY_ID.

    It holds who the sidecar is and where its control plane is; everything else comes from there. It also holds the
    ACL token, if one is given: keep it to those who may have that.

    \b
      gossamer bootstrap web-sidecar-proxy > web.yaml && envoy -c web.yaml
      gossamer bootstrap --sidecar-for web --xds 10.0.0.5:18000 --xds 10.0.0.6:18000
    """
    document = make_bootstrap(**sidecar)
    click.echo(
        json.dumps(document, indent=2) if style == "json" else yaml.safe_dump(document, sort_keys=False),
        nl=style == "json",
    )

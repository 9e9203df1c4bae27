"""``gossamer bootstrap``: prints an Envoy bootstrap for a sidecar."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from xds.cli.common import Failure, consul_flags, mesh_flag
from xds.cli.control_plane_connection import ControlPlane, control_plane_flags
from xds.cli.envoy_admin import AdminAddress
from xds.mesh.addresses import HostPort
from xds.sources.consul import registration as in_consul
from xds.sources.consul.client import ConsulError
from xds.sources.consul.settings import ConsulSettings, SettingsError
from xds.sources.file import registration as in_file
from xds.sources.file.document import RefusedError
from xds.sources.registration import NotRegisteredError, Registration

if TYPE_CHECKING:
    from xds.envoy.bootstrap import ControlPlaneTls


def sidecar_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the arguments that name a sidecar and its control plane, for ``bootstrap`` and ``sidecar``."""
    flags: list[Callable[[Callable[..., Any]], Callable[..., Any]]] = [
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
        control_plane_flags,
        click.option(
            "--admin",
            type=AdminAddress(),
            help="Address of Envoy's own admin interface, which has no authentication and shows the ACL token."
            " [for gossamer sidecar: a Unix socket of its own user; for gossamer bootstrap: nowhere]",
        ),
        click.option(
            "--dual-stack/--ipv4-only",
            default=None,
            help="Whether its listeners accept IPv6 as well. [for gossamer sidecar: if the host has it]",
        ),
        click.option(
            "--dns-port",
            type=click.IntRange(1, 65535),
            help="Answer DNS queries over UDP at this port of loopback: the virtual IPs by name, the rest forwarded.",
        ),
    ]
    for flag in reversed(flags):
        command = flag(command)
    return consul_flags(mesh_flag(command))


@dataclass(frozen=True, slots=True)
class SidecarFlags:
    """Values of the flags of ``bootstrap`` and ``sidecar``."""

    consul: ConsulSettings
    mesh: Path | None
    proxy_id: str
    sidecar_for: str
    node_name: str
    control_plane: ControlPlane
    admin: HostPort | Path | None
    dual_stack: bool | None
    dns_port: int | None

    def look_up(self) -> Registration:
        """Return the sidecar's registration, with the mesh's authorities where TLS needs them.

        Raises:
            click.UsageError: not exactly one of ``proxy_id`` and ``sidecar_for``.
            Failure: it is not registered, or Consul or the mesh file can't be read.
        """
        found = look_up(
            self.consul, self.mesh, self.proxy_id, self.sidecar_for, self.node_name, self.control_plane.mesh
        )
        for problem in found.sidecar.problems:
            click.echo(f"{found.sidecar.service_id}: {problem}", err=True)
        return found


def make_bootstrap(flags: SidecarFlags, registration: Registration, tls: ControlPlaneTls | None) -> dict[str, Any]:
    """Return the bootstrap of a sidecar.

    Args:
        flags: values of the command's flags.
        registration: the sidecar's.
        tls: TLS with the control plane; ``None`` for plain text.

    Raises:
        Failure: the token can't be read.
    """
    from xds.envoy.bootstrap import BootstrapInputs, sidecar_bootstrap

    return sidecar_bootstrap(
        BootstrapInputs(
            proxy_id=registration.sidecar.service_id,
            service=registration.sidecar.service,
            node_name=flags.node_name,
            control_planes=flags.control_plane.addresses,
            admin=flags.admin,
            token=flags.consul.read_token() or registration.token,
            datacenter=registration.datacenter,
            tls=tls,
            dual_stack=bool(flags.dual_stack),
            dns_port=flags.dns_port,
        )
    )


def look_up(
    consul: ConsulSettings,
    mesh: Path | None,
    proxy_id: str,
    sidecar_for: str,
    node_name: str,
    with_roots: bool = False,
) -> Registration:
    """Return the registration of a sidecar, and the mesh's authorities ``with_roots``.

    Raises:
        click.UsageError: not exactly one of ``proxy_id`` and ``sidecar_for``.
        Failure: it is not registered, or Consul or the mesh file can't be read.
    """
    if bool(proxy_id) == bool(sidecar_for):
        raise click.UsageError("name the sidecar by either its own service ID (PROXY_ID) or --sidecar-for SERVICE_ID")
    if mesh is not None and node_name:
        raise click.UsageError("--node-name is for Consul: a mesh file knows no nodes")
    name = {"proxy_id": proxy_id, "sidecar_for": sidecar_for}
    try:
        if mesh is not None:
            found = in_file.find(mesh, **name, with_roots=with_roots)
        else:
            found = asyncio.run(in_consul.find(consul, **name, node_name=node_name, with_roots=with_roots))
    except (ConsulError, NotRegisteredError, SettingsError, RefusedError, in_file.NoRootsError) as error:
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

    With TLS of the mesh, it also holds the mesh's certificate authorities as they are now: print it again after these
    were rotated. gossamer sidecar follows them by itself.
    """
    flags = SidecarFlags(**sidecar)
    registration = flags.look_up()
    document = make_bootstrap(flags, registration, flags.control_plane.tls(registration, None))
    click.echo(
        json.dumps(document, indent=2) if style == "json" else yaml.safe_dump(document, sort_keys=False),
        nl=style == "json",
    )

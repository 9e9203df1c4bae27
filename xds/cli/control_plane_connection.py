"""Flags for the connection of a sidecar to its control plane: plain text, or TLS and its authorities.

Plain text is the default for loopback only. TLS is verified with certificate files where these are given, otherwise
with the authorities of the mesh, which are read from the same place as the sidecar's registration.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xds.cli.common import HostPortFlag, PemFile
from xds.mesh.addresses import HostPort, is_loopback

if TYPE_CHECKING:
    from xds.envoy.bootstrap import ControlPlaneTls
    from xds.sources.registration import Registration


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """Addresses of the control plane, and the way in which a sidecar connects to them."""

    addresses: tuple[HostPort, ...]
    files: ControlPlaneTls | None = None
    """TLS that is verified with certificate files."""
    mesh: bool = False
    """Whether TLS is verified with the authorities of the mesh."""

    def tls(self, registration: Registration, roots_file: Path | None) -> ControlPlaneTls | None:
        """Return the TLS with the control plane, ``None`` for plain text.

        Args:
            registration: the sidecar's, with the mesh's authorities where these are needed.
            roots_file: a file that holds these authorities and follows them; ``None`` puts them into the bootstrap.
        """
        if not self.mesh:
            return self.files
        from xds.envoy.bootstrap import ControlPlaneTls
        from xds.envoy.names import ControlPlaneIdentity

        roots = registration.roots
        assert roots is not None
        identity = ControlPlaneIdentity(roots.trust_domain, registration.datacenter)
        return ControlPlaneTls(roots_file or roots.pem(), identity=identity)


def control_plane_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags; the command gets them resolved, as ``control_plane``."""
    flags = [
        click.option(
            "--xds",
            type=HostPortFlag(),
            multiple=True,
            default=["127.0.0.1:18000"],
            show_default=True,
            help="Address of gossamer serve. Repeatable: Envoy uses the next one when one fails.",
        ),
        click.option(
            "--tls",
            type=click.Choice(["mesh"]),
            help="Connect over TLS, and verify the control plane with the mesh's own certificate authority. [where an"
            " address of --xds is not loopback]",
        ),
        click.option("--plaintext", is_flag=True, help="Connect without TLS, wherever the control plane is."),
        click.option(
            "--xds-ca",
            type=PemFile(),
            help="Verify it with the authorities in this file instead (PEM): for a server with --tls-cert.",
        ),
        click.option(
            "--xds-sni", metavar="NAME", default="", help="The name in its certificate. [the host given with --xds]"
        ),
        click.option("--xds-cert", type=PemFile(), help="The client certificate for it, where it requires one (PEM)."),
        click.option("--xds-key", type=PemFile(), help="The file of its private key."),
    ]

    @functools.wraps(command)
    def resolved(
        xds: tuple[HostPort, ...],
        tls: str | None,
        plaintext: bool,
        xds_ca: Path | None,
        xds_sni: str,
        xds_cert: Path | None,
        xds_key: Path | None,
        **others: Any,
    ) -> Any:
        if plaintext + (tls is not None) + (xds_ca is not None) > 1:
            raise click.UsageError("--plaintext, --tls mesh and --xds-ca exclude each other")
        if (xds_cert is None) != (xds_key is None):
            raise click.UsageError("a client certificate needs both --xds-cert and --xds-key")
        if xds_ca is None and (xds_sni or xds_cert):
            raise click.UsageError("--xds-sni and --xds-cert are for certificate files: give --xds-ca as well")
        files = None
        if xds_ca is not None:
            from xds.envoy.bootstrap import ControlPlaneTls

            files = ControlPlaneTls(xds_ca, xds_sni, certificate=xds_cert, key=xds_key)
        away = not all(is_loopback(host) for host, _ in xds)
        mesh = tls is not None or (away and not plaintext and files is None)
        return command(control_plane=ControlPlane(xds, files, mesh), **others)

    for flag in reversed(flags):
        resolved = flag(resolved)
    return resolved

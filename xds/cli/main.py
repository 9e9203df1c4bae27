"""``gossamer``: the group of all commands."""

from __future__ import annotations

import click

from xds import __version__
from xds.cli.bootstrap import bootstrap
from xds.cli.ca import ca
from xds.cli.demo import demo
from xds.cli.kubernetes import kubernetes_group
from xds.cli.mesh_files import mesh_group
from xds.cli.redirect_traffic import redirect_traffic
from xds.cli.serve import serve
from xds.cli.sidecar import sidecar


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="gossamer")
def gossamer() -> None:
    """Make a Consul service mesh transparent: virtual IPs, Envoy sidecars, no upstream configured by hand.

    \b
    gossamer serve              the control plane, beside a Consul or on a mesh file
    gossamer sidecar            on each host: an Envoy that gets its configuration from it
    gossamer redirect-traffic   on each host: the kernel's redirection into that Envoy

    Exit codes: 0 done, 1 it failed (one line says why), 2 the command line is wrong, 3 (redirect-traffic --verify) the
    rules are not applied.
    """


for command in (serve, bootstrap, sidecar, redirect_traffic, mesh_group, kubernetes_group, ca, demo):
    gossamer.add_command(command)

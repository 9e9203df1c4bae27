"""``gossamer ca``: the certificate authority of a mesh without a Consul."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from xds.cli.common import Failure, state_flag
from xds.sources.authority import OLD_ROOT_TRUSTED
from xds.sources.file.settings import FileSettings
from xds.sources.file.state import StateError, StateFolder


@click.group()
def ca() -> None:
    """Manage the certificate authority of a mesh without a Consul."""


@ca.command()
@click.option(
    "--mesh",
    metavar="FILE",
    type=click.Path(path_type=Path, readable=False),
    help="The mesh file whose authority it is.",
)
@state_flag
@click.option(
    "--distrust-old",
    is_flag=True,
    help="Trust no certificate from before, from now on: for a key that others may have. New connections may fail until"
    " every sidecar has its new certificate.",
)
def rotate(mesh: Path | None, state: Path | None, distrust_old: bool) -> None:
    """Replace the mesh's root certificate, breaking no connection.

    The old root signs the new one once (cross-signing), so that proxies accept each other's certificates whichever of
    the two they know. A gossamer serve on this state folder follows at once: every sidecar is given the new root and a
    new certificate. The old root stays trusted until every certificate of its has expired twice over.

    \b
      gossamer ca rotate --mesh mesh.yaml
    """
    if mesh is not None:
        folder = FileSettings.resolve(mesh, state).state
    elif state is not None:
        folder = state
    else:
        raise click.UsageError("say whose authority: --mesh FILE, or the folder with --state DIR")
    now = datetime.now(UTC)
    try:
        authority = StateFolder(folder).rotate(now, distrust_old=distrust_old)
    except StateError as error:
        raise Failure(str(error)) from error
    until = (now + OLD_ROOT_TRUSTED).strftime("%Y-%m-%d %H:%M UTC")
    click.echo(f"the root is now {authority.fingerprint}")
    click.echo("no other is trusted" if distrust_old else f"the root before it stays trusted until {until}")

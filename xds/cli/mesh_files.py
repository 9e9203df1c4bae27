"""``gossamer mesh``: checks mesh files, writes them from a Consul, prints their schema."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import click
import yaml

from xds.cli.common import Failure, consul_flags, state_flag
from xds.cli.mesh_check import set_aside
from xds.sources.consul.client import ConsulError
from xds.sources.consul.settings import ConsulSettings, SettingsError
from xds.sources.export import export
from xds.sources.file.document import RefusedError, parse
from xds.sources.file.facts import facts_of, warnings
from xds.sources.file.loading import read_text
from xds.sources.file.models import json_schema
from xds.sources.file.settings import FileSettings
from xds.sources.file.state import StateError, StateFolder


@click.group("mesh")
def mesh_group() -> None:
    """Mesh files: a mesh without a Consul, in Consul's own words."""


@mesh_group.command()
@click.argument("file", type=click.Path(path_type=Path, readable=False))
@state_flag
def check(file: Path, state: Path | None) -> None:
    """Check the mesh file FILE without serving it.

    Prints all its problems with their lines (exit code 1), or the result: each service with its instances, its virtual
    IP if one was assigned already, and the services that may call it. Warnings are about what is allowed and may not be
    intended, and about everything that sidecars would be served without.
    """
    try:
        document = parse(str(file), read_text(file))
        facts = facts_of(document)
        known = StateFolder(FileSettings.resolve(file, state).state).virtual_ips()
        given = known.by_service
    except RefusedError as error:
        raise Failure(f"{file} can't be used\n{error}") from error
    except StateError as error:
        raise Failure(str(error)) from error
    listed = warnings(document, facts)
    texts = "\n".join(text for _, text in listed)
    listed += [
        (0, f"{service!r}: {problem}")
        for service, problem in dict.fromkeys(set_aside(facts, known))
        if problem not in texts
    ]
    for line, text in listed:
        click.echo(f"{file}:{line}: warning: {text}" if line else f"{file}: warning: {text}", err=True)
    rows = [("SERVICE", "INSTANCES", "VIRTUAL IP", "MAY BE CALLED BY")]
    for service, found in facts.instances.items():
        addresses = facts.claimed(service) or (given.get(service, "given when served"),)
        rows.append((service, str(len(found.instances)), " ".join(addresses), facts.callers(service)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        click.echo("  ".join([*(cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True)), row[3]]))
    if not facts.declares_tokens:
        click.echo("no service has a token, so gossamer serves this on loopback only")


@mesh_group.command("export")
@consul_flags
@click.option("--format", "style", type=click.Choice(["yaml", "json"]), default="yaml", show_default=True)
def export_command(consul: ConsulSettings, style: str) -> None:
    """Write a mesh file from a running Consul.

    Services, sidecars with their virtual IPs, intentions and config entries; no tokens, no certificates. What can't be
    exported is reported on standard error. Opaque Config maps are copied: check whether they contain secrets.

    \b
      gossamer mesh export --consul http://127.0.0.1:8500 > mesh.yaml
    """
    try:
        document, left_out = asyncio.run(export(consul))
    except (ConsulError, SettingsError) as error:
        raise Failure(str(error)) from error
    for text in left_out:
        click.echo(f"warning: {text}", err=True)
    if style == "json":
        click.echo(json.dumps(document, indent=2))
    else:
        click.echo(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), nl=False)


@mesh_group.command()
def schema() -> None:
    """Print the JSON Schema of a mesh file, by which editors complete and check it.

    \b
      gossamer mesh schema > mesh.schema.json
      # and in the first line of the file:   # yaml-language-server: $schema=mesh.schema.json
    """
    click.echo(json.dumps(json_schema(), indent=2))

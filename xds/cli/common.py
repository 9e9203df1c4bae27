"""Parts that several commands share: Consul's flags, types of arguments, errors that end a command in one line."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from xds.mesh.addresses import HostPort, IPAddress, IPNetwork, parse_ip, parse_network
from xds.sources.consul.settings import ConsulSettings, SettingsError


class Failure(click.ClickException):
    """Error that ends a command with exit code 1; its one line says what happened and what to do."""


def consul_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags of the connection to Consul; the command gets them resolved, as ``consul``."""
    flags = [
        click.option(
            "--consul",
            "address",
            metavar="URL",
            help="Consul's HTTP address. [CONSUL_HTTP_ADDR, or http://127.0.0.1:8500]",
        ),
        click.option("--token", help="ACL token. Better in a file or the environment. [CONSUL_HTTP_TOKEN]"),
        click.option(
            "--token-file",
            metavar="FILE",
            help="File that holds the ACL token; re-read when it changes. [CONSUL_HTTP_TOKEN_FILE]",
        ),
        click.option("--ca-file", metavar="FILE", help="CA certificates to verify Consul with. [CONSUL_CACERT]"),
        click.option("--ca-path", metavar="DIR", help="Folder of CA certificates. [CONSUL_CAPATH]"),
        click.option("--client-cert", metavar="FILE", help="Client certificate for Consul. [CONSUL_CLIENT_CERT]"),
        click.option("--client-key", metavar="FILE", help="Its key. [CONSUL_CLIENT_KEY]"),
        click.option(
            "--tls-server-name", metavar="NAME", help="Name expected in Consul's certificate. [CONSUL_TLS_SERVER_NAME]"
        ),
        click.option("--datacenter", metavar="NAME", help="Datacenter to read. [the agent's own]"),
    ]

    @functools.wraps(command)
    def resolved(**arguments: Any) -> Any:
        fields = (
            "address", "token", "token_file", "ca_file", "ca_path", "client_cert", "client_key", "tls_server_name",
            "datacenter",
        )  # fmt: skip
        given = {field: arguments.pop(field) for field in fields}
        try:
            # A mesh file has its own tokens: the environment variables for a Consul do not apply to it.
            consul = ConsulSettings.resolve(given, {} if arguments.get("mesh") else os.environ)
            consul.read_token()
        except SettingsError as error:
            raise Failure(str(error)) from error
        return command(consul=consul, **arguments)

    for flag in reversed(flags):
        resolved = flag(resolved)
    return resolved


def mesh_flag(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--mesh``, a mesh file in place of Consul; the command gets ``mesh``, ``None`` where it is not given."""

    @functools.wraps(command)
    def checked(**arguments: Any) -> Any:
        context = click.get_current_context()
        if arguments["mesh"] is not None and context.get_parameter_source("address") is ParameterSource.COMMANDLINE:
            raise click.UsageError("--mesh and --consul exclude each other: a mesh is read from one of them")
        return command(**arguments)

    return click.option(
        "--mesh",
        metavar="FILE",
        type=click.Path(path_type=Path, readable=False),
        help="Read the mesh from this file, not from Consul.",
    )(checked)


def state_flag(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--state``, the folder of a mesh file's certificate authority and virtual IPs."""
    return click.option(
        "--state",
        metavar="DIR",
        type=click.Path(path_type=Path, readable=False),
        help="Folder of the certificate authority and the virtual IPs of a mesh file. [beside it: FILE.state]",
    )(command)


class Network(click.ParamType[IPNetwork]):
    """A network in CIDR notation, or one address."""

    name = "cidr"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> IPNetwork:
        try:
            return parse_network(str(value))
        except ValueError:
            self.fail(
                f"{value!r} is not a network: expected an address and a prefix, like 240.0.0.0/4, or an address",
                param,
                ctx,
            )


class Ip(click.ParamType[IPAddress]):
    """An IP address."""

    name = "ip"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> IPAddress:
        try:
            return parse_ip(str(value))
        except ValueError:
            self.fail(f"{value!r} is not an IP address", param, ctx)


class HostPortFlag(click.ParamType[HostPort]):
    """``HOST:PORT``; an IPv6 host in brackets."""

    name = "host:port"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> HostPort:
        if isinstance(value, HostPort):
            return value
        try:
            return HostPort.parse(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class PemFile(click.ParamType[Path]):
    """A file of certificates or of a key, as an absolute path.

    Links in it stay: certbot and Kubernetes replace a certificate by moving a link, which is then followed.
    """

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        file: str = click.Path(dir_okay=False).convert(str(value), param, ctx)  # type: ignore[assignment]  # no bytes
        return Path(file).absolute()

"""``gossamer redirect-traffic``: applies the kernel's redirection into a sidecar."""

from __future__ import annotations

import ipaddress
import pwd
import signal
from pathlib import Path
from typing import Any

import click

from xds.cli.bootstrap import look_up
from xds.cli.common import Failure, Ip, Network, consul_flags, mesh_flag
from xds.mesh.config_entries import ProxyMode
from xds.outbound_port import OUTBOUND_LISTENER_PORT
from xds.redirect.apply import RedirectError, Redirector, installed_backends, marked
from xds.redirect.rules import DnsRedirect, IPAddress, IPNetwork, Rules
from xds.sources.consul.settings import ConsulSettings

VERIFY_FAILED = 3
PORT = click.IntRange(1, 65535)


class Uid(click.ParamType[int]):
    """A user, by number or by name."""

    name = "uid"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if str(value).isdecimal():
            return int(value)
        try:
            return pwd.getpwnam(str(value)).pw_uid
        except KeyError:
            self.fail(f"{value!r} is neither a user's number nor the name of one on this host", param, ctx)


@click.command()
@consul_flags
@mesh_flag
@click.option("--proxy-id", metavar="ID", default="", help="Read the ports from this sidecar's registration.")
@click.option(
    "--node-name", metavar="NODE", default="", help="The Consul node it is registered on, when that is not the agent's."
)
@click.option("--proxy-uid", type=Uid(), help="The user that Envoy runs as; its own connections are not redirected.")
@click.option("--proxy-inbound-port", type=PORT, help="Port of Envoy's public listener.")
@click.option("--proxy-outbound-port", type=PORT, help=f"Port of its outbound listener. [{OUTBOUND_LISTENER_PORT}]")
@click.option(
    "--exclude-inbound-port",
    "exclude_inbound",
    type=PORT,
    multiple=True,
    help="A port that is reached past the sidecar. Repeatable.",
)
@click.option(
    "--exclude-outbound-port",
    "exclude_outbound",
    type=PORT,
    multiple=True,
    help="A port that is dialed past it. Repeatable.",
)
@click.option(
    "--exclude-outbound-cidr",
    "exclude_cidrs",
    type=Network(),
    multiple=True,
    metavar="CIDR",
    help="A network that is dialed past it. Repeatable.",
)
@click.option(
    "--exclude-uid", "exclude_uids", type=Uid(), multiple=True, help="A user whose connections go past it. Repeatable."
)
@click.option("--consul-dns-ip", type=Ip(), help="Send DNS queries to this address.")
@click.option(
    "--consul-dns-port", type=PORT, help="Send DNS queries for --consul-dns-ip (127.0.0.1) to this port of it."
)
@click.option(
    "--dns-port",
    type=PORT,
    help="Send every DNS query over UDP to this port of the sidecar (gossamer sidecar --dns-port); Envoy's own go on.",
)
@click.option(
    "--netns",
    metavar="PATH",
    default="",
    help="Work in this network namespace: its name as in ip netns, or the path of its file.",
)
@click.option("--dry-run", is_flag=True, help="Print the rules and change nothing.")
@click.option("--undo", is_flag=True, help="Remove the rules.")
@click.option(
    "--verify", is_flag=True, help="Report whether the rules of the same flags are applied; exit code 3 if not."
)
@click.option(
    "--hold",
    is_flag=True,
    help="Apply the rules and keep running until SIGTERM, for a container that owns the network namespace of others."
    " They see in /proc/net/unix that the rules are applied: it has @gossamer-redirected from then on.",
)
def redirect_traffic(
    consul: ConsulSettings,
    mesh: Path | None,
    proxy_id: str,
    node_name: str,
    proxy_uid: int | None,
    proxy_inbound_port: int | None,
    proxy_outbound_port: int | None,
    exclude_inbound: tuple[int, ...],
    exclude_outbound: tuple[int, ...],
    exclude_cidrs: tuple[IPNetwork, ...],
    exclude_uids: tuple[int, ...],
    consul_dns_ip: IPAddress | None,
    consul_dns_port: int | None,
    dns_port: int | None,
    netns: str,
    dry_run: bool,
    undo: bool,
    verify: bool,
    hold: bool,
) -> None:
    """Redirect this host's TCP connections into its sidecar.

    Every connection that a program here opens goes to Envoy's outbound listener, every one that arrives goes to its
    public listener; Envoy's own don't. One nftables transaction for IPv4 and IPv6; running it again replaces it.

    \b
      gossamer redirect-traffic --proxy-id web-sidecar-proxy --proxy-uid envoy
      gossamer redirect-traffic --proxy-uid 5678 --proxy-inbound-port 20000 --exclude-inbound-port 22
      gossamer redirect-traffic --undo
    """
    if sum((dry_run, undo, verify, hold)) > 1:
        raise click.UsageError("--dry-run, --undo, --verify and --hold exclude each other")
    if hold and netns:
        raise click.UsageError("--hold is for the network namespace that it runs in: it excludes --netns")
    try:
        redirector, *others = [Redirector(backend, netns) for backend in installed_backends()]
        if undo:
            for each in (redirector, *others):
                each.undo()
            click.echo("nothing is redirected")
            return
        ports = _ports(consul, mesh, proxy_id, node_name, proxy_inbound_port, proxy_outbound_port)
        if ports[0] == ports[1]:
            raise click.UsageError(f"the inbound and the outbound port are both {ports[0]}: they are two listeners")
        if dns_port is not None and (consul_dns_ip is not None or consul_dns_port is not None):
            raise click.UsageError("DNS queries go either to the sidecar (--dns-port) or to Consul (--consul-dns-ip)")
        if proxy_uid is None:
            raise click.UsageError("--proxy-uid is missing: the user that Envoy runs as")
        rules = Rules(
            proxy_uid=proxy_uid,
            inbound_port=ports[0],
            outbound_port=ports[1],
            exclude_inbound_ports=tuple(sorted({*exclude_inbound, *ports[2]})),
            exclude_outbound_ports=tuple(sorted(set(exclude_outbound))),
            exclude_outbound_cidrs=exclude_cidrs,
            exclude_uids=tuple(sorted(set(exclude_uids))),
            dns=_dns(consul_dns_ip, consul_dns_port),
            sidecar_dns_port=dns_port,
        )
        if dry_run:
            click.echo(redirector.text(rules), nl=False)
        elif not verify:
            redirector.apply(rules)
            for other in others:
                other.undo()  # rules of a run before nft was installed may be left
            click.echo(
                f"redirected: what arrives to port {rules.inbound_port}, what is dialed to {rules.outbound_port}"
            )
            if hold:
                _hold()
        elif redirector.is_applied(rules):
            click.echo("the rules stand")
        else:
            click.echo("the rules are not applied as they should be: run the same command without --verify", err=True)
            raise SystemExit(VERIFY_FAILED)
    except RedirectError as error:
        raise Failure(str(error)) from error


def _hold() -> None:
    """Keep the mark of the redirection in this network namespace until SIGTERM or SIGINT.

    Raises:
        RedirectError: another process has it.
    """
    # The first process of a container ignores signals that it neither handles nor waits for.
    ending = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    with marked():
        signal.sigwait(ending)


def _ports(
    consul: ConsulSettings,
    mesh: Path | None,
    proxy_id: str,
    node_name: str,
    inbound: int | None,
    outbound: int | None,
) -> tuple[int, int, tuple[int, ...]]:
    """Return the inbound and the outbound port, and the sidecar's ports that are not part of the mesh."""
    if bool(proxy_id) == bool(inbound):
        raise click.UsageError(
            "give either --proxy-id, to take the ports from the registration, or --proxy-inbound-port"
        )
    if inbound is not None:
        return inbound, outbound or OUTBOUND_LISTENER_PORT, ()
    if outbound is not None:
        raise click.UsageError("--proxy-outbound-port comes from the registration when --proxy-id is given")
    found = look_up(consul, mesh, proxy_id, "", node_name)
    if found.settings.mode is not ProxyMode.TRANSPARENT:
        raise Failure(
            f"sidecar {proxy_id!r} is not transparent, so nothing would listen where connections are redirected to: set"
            " its mode, or give --proxy-inbound-port"
        )
    return (
        found.settings.bind_port or found.sidecar.port,
        found.settings.outbound_listener_port or OUTBOUND_LISTENER_PORT,
        found.plain_ports,
    )


def _dns(address: IPAddress | None, port: int | None) -> DnsRedirect | None:
    if address is None and port is None:
        return None
    return DnsRedirect(address or ipaddress.ip_address("127.0.0.1"), port)

"""``gossamer kubernetes``: sidecars for pods, and what runs in these pods."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import click

from xds.cli.common import Failure, HostPortFlag
from xds.workers.logs import configure

if TYPE_CHECKING:
    from xds.kubernetes.settings import InjectionSettings

log = logging.getLogger("gossamer")


@click.group("kubernetes")
def kubernetes_group() -> None:
    """Kubernetes: give pods a sidecar when they are created."""


@kubernetes_group.command("inject")
@click.option("--image", required=True, help="Gossamer's image, for the containers that pods get.")
@click.option("--image-pull-policy", default="IfNotPresent", show_default=True, help="When that image is pulled.")
@click.option("--consul", "consul_url", metavar="URL", required=True, help="Consul's HTTP address, as pods reach it.")
@click.option(
    "--xds",
    type=HostPortFlag(),
    multiple=True,
    required=True,
    help="Address of Gossamer's xDS port, as pods reach it. Repeatable.",
)
@click.option("--plaintext", is_flag=True, help="Whether that port is plain text.")
@click.option(
    "--listen", type=HostPortFlag(), default="0.0.0.0:8443", show_default=True, help="Address of the webhook."
)
@click.option(
    "--namespace", metavar="NAME", default="", help="Namespace that Gossamer runs in. [that of its ServiceAccount]"
)
@click.option("--service", default="gossamer-webhook", show_default=True, help="Service that the API server calls.")
@click.option(
    "--webhook-configuration",
    default="gossamer",
    show_default=True,
    help="MutatingWebhookConfiguration in which the authority of its certificate is kept.",
)
@click.option(
    "--secret", default="gossamer-webhook", show_default=True, help="Secret in which its certificates are kept."
)
@click.option("--inject-by-default", is_flag=True, help="Give every pod a sidecar, unless its annotation says no.")
@click.option(
    "--transparent-proxy/--no-transparent-proxy", default=True, show_default=True, help="Redirect pods by default."
)
@click.option(
    "--overwrite-probes/--no-overwrite-probes",
    default=True,
    show_default=True,
    help="Have sidecars answer the kubelet's probes by default.",
)
@click.option("--dns/--no-dns", default=False, show_default=True, help="Have sidecars answer DNS queries by default.")
@click.option(
    "--native-sidecars/--regular-sidecars",
    default=True,
    show_default=True,
    help="Make sidecars native sidecar containers (Kubernetes 1.29 or newer) or regular containers.",
)
@click.option(
    "--allow-namespace", "allowed", multiple=True, default=("*",), show_default=True, help="Namespace to serve."
)
@click.option("--deny-namespace", "denied", multiple=True, help="Namespace not to serve, even if it is allowed.")
@click.option("--concurrency", type=click.IntRange(0), default=2, show_default=True, help="Worker threads of Envoys.")
@click.option(
    "--sidecar-resource",
    "resources",
    multiple=True,
    metavar="NAME=QUANTITY",
    help="Default of a sidecar's resources: cpu-limit, cpu-request, memory-limit or memory-request. Repeatable.",
)
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
def inject(**flags: Any) -> None:
    """Serve the mutating webhook that gives pods their sidecar.

    The webhook keeps its certificates in a Secret, replaces them in time, and keeps their authority in its
    registration. Several replicas can run. Its ServiceAccount may read namespaces, read and write that Secret, and
    read and update that registration.
    """
    _need_client()
    from xds.ads.listening import ListenError
    from xds.kubernetes.process import run_webhook

    configure(flags["log_level"].upper())
    settings = _settings(flags)
    try:
        asyncio.run(
            run_webhook(
                settings,
                flags["listen"],
                namespace=flags["namespace"],
                secret=flags["secret"],
                service=flags["service"],
                registration=flags["webhook_configuration"],
            )
        )
    except (ListenError, ValueError) as error:
        raise Failure(str(error)) from error


def _need_client() -> None:
    try:
        import lightkube  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise Failure("the packages for Kubernetes are not installed: pip install 'gossamer[kubernetes]'") from error


def _settings(flags: dict[str, Any]) -> InjectionSettings:
    from xds.kubernetes.settings import InjectionSettings, Resources
    from xds.kubernetes.values import QUANTITY

    resources: dict[str, str] = {}
    for given in flags["resources"]:
        name, _, quantity = given.partition("=")
        field = name.replace("-", "_")
        try:
            if field not in Resources.__dataclass_fields__:
                raise ValueError
            resources[field] = QUANTITY.parse(quantity, {})
        except ValueError:
            expected = ", ".join(each.replace("_", "-") for each in Resources.__dataclass_fields__)
            raise click.UsageError(
                f"--sidecar-resource {given!r} is not NAME=QUANTITY, NAME being one of {expected}, such as"
                " cpu-limit=100m"
            ) from None
    return InjectionSettings(
        image=flags["image"],
        consul=flags["consul_url"],
        xds=tuple(flags["xds"]),
        plaintext=flags["plaintext"],
        inject=flags["inject_by_default"],
        transparent=flags["transparent_proxy"],
        overwrite_probes=flags["overwrite_probes"],
        dns=flags["dns"],
        native=flags["native_sidecars"],
        allow_namespaces=frozenset(flags["allowed"]),
        deny_namespaces=frozenset(flags["denied"]),
        concurrency=flags["concurrency"],
        sidecar=Resources(**resources),
        image_pull_policy=flags["image_pull_policy"],
    )

"""``gossamer kubernetes``: sidecars for pods, and what runs in these pods."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from xds.cli.common import Failure, HostPortFlag, consul_flags
from xds.cli.redirect_traffic import redirect_traffic
from xds.sources.consul.settings import ConsulSettings, SettingsError
from xds.workers.logs import configure

if TYPE_CHECKING:
    from xds.kubernetes.settings import InjectionSettings
    from xds.sources.consul.client import Consul

Result = TypeVar("Result")


def _of_process(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags that both processes have: their namespace, the namespaces that they serve, and the log's level."""
    flags = [
        click.option(
            "--namespace",
            metavar="NAME",
            default="",
            help="Namespace that Gossamer runs in. [that of its ServiceAccount]",
        ),
        click.option(
            "--allow-namespace",
            "allowed",
            multiple=True,
            default=("*",),
            show_default=True,
            help="Namespace to serve.",
        ),
        click.option(
            "--deny-namespace", "denied", multiple=True, help="Namespace not to serve, even if it is allowed."
        ),
        click.option(
            "--log-level",
            type=click.Choice(["debug", "info", "warning", "error"]),
            default="info",
            show_default=True,
        ),
    ]
    for flag in reversed(flags):
        command = flag(command)
    return command


async def _with_consul(settings: ConsulSettings, work: Callable[[Consul], Awaitable[Result]]) -> Result:
    """Return what ``work`` returns, with a client of Consul that is closed afterwards."""
    from xds.sources.consul.client import Consul

    client = Consul(settings)
    try:
        return await work(client)
    finally:
        await client.close()


@click.group("kubernetes")
def kubernetes_group() -> None:
    """Kubernetes: give pods a sidecar when they are created, and register them in Consul."""


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
@click.option("--auth-method", default="", help="Consul's auth method, with which pods log in. [Consul has no ACLs]")
@click.option("--plaintext", is_flag=True, help="Whether that port is plain text.")
@click.option(
    "--listen", type=HostPortFlag(), default="0.0.0.0:8443", show_default=True, help="Address of the webhook."
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
@click.option("--concurrency", type=click.IntRange(0), default=2, show_default=True, help="Worker threads of Envoys.")
@click.option(
    "--sidecar-resource",
    "resources",
    multiple=True,
    metavar="NAME=QUANTITY",
    help="Default of a sidecar's resources: cpu-limit, cpu-request, memory-limit or memory-request. Repeatable.",
)
@_of_process
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
    from xds.kubernetes.settings import InjectionSettings, Namespaces, Resources
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
        auth_method=flags["auth_method"],
        plaintext=flags["plaintext"],
        inject=flags["inject_by_default"],
        transparent=flags["transparent_proxy"],
        overwrite_probes=flags["overwrite_probes"],
        dns=flags["dns"],
        native=flags["native_sidecars"],
        namespaces=Namespaces(frozenset(flags["allowed"]), frozenset(flags["denied"])),
        concurrency=flags["concurrency"],
        sidecar=Resources(**resources),
        image_pull_policy=flags["image_pull_policy"],
    )


@kubernetes_group.command("register")
@consul_flags
@click.option("--lease", default="gossamer-register", show_default=True, help="Lease that elects the one that acts.")
@click.option("--acls", is_flag=True, help="Pods log in, each as the service of its ServiceAccount's name.")
@click.option("--identity", envvar="POD_NAME", default="", help="Name of this replica. [POD_NAME, or the host's]")
@_of_process
def register(
    consul: ConsulSettings,
    namespace: str,
    lease: str,
    allowed: tuple[str, ...],
    denied: tuple[str, ...],
    acls: bool,
    identity: str,
    log_level: str,
) -> None:
    """Register the pods that have a sidecar in Consul, and deregister those that are gone.

    Several replicas can run; one of them acts. Gossamer's ServiceAccount may read pods, Services and EndpointSlices,
    patch pods, create Events, and use the Lease. Its token of Consul needs node:write and service:write.
    """
    _need_client()
    from xds.kubernetes.process import run_registrar
    from xds.kubernetes.settings import Namespaces

    configure(log_level.upper())
    try:
        name = identity or socket.gethostname()
        serves = Namespaces(frozenset(allowed), frozenset(denied)).serves
        asyncio.run(run_registrar(consul, namespace=namespace, lease=lease, identity=name, acls=acls, serves=serves))
    except (ValueError, SettingsError) as error:
        raise Failure(str(error)) from error


@kubernetes_group.command("init")
@consul_flags
@click.option("--id-file", type=click.Path(path_type=Path), required=True, help="File for the ID of the sidecar.")
@click.option("--problem-file", type=click.Path(path_type=Path), help="File with the reason why it is not registered.")
@click.option("--auth-method", default="", help="Consul's auth method with which the pod logs in.")
@click.option("--account-file", type=click.Path(path_type=Path), help="Token of its ServiceAccount, for the login.")
@click.option("--pod-name", envvar="POD_NAME", required=True, help="Name of this pod. [POD_NAME]")
@click.option("--pod-namespace", envvar="POD_NAMESPACE", required=True, help="Its namespace. [POD_NAMESPACE]")
@click.option("--pod-uid", envvar="POD_UID", required=True, help="Its UID. [POD_UID]")
@click.option("--node", envvar="NODE_NAME", required=True, help="Its node. [NODE_NAME]")
@click.argument("redirection", nargs=-1, type=click.UNPROCESSED, metavar="[-- REDIRECT_TRAFFIC_FLAGS...]")
def init(
    consul: ConsulSettings,
    id_file: Path,
    problem_file: Path | None,
    auth_method: str,
    account_file: Path | None,
    pod_name: str,
    pod_namespace: str,
    pod_uid: str,
    node: str,
    redirection: tuple[str, ...],
) -> None:
    """Wait in a pod until it is registered, then redirect its connections if flags for that are given.

    It is the first of the pod's containers, so that nothing of the pod is ever dialed past its sidecar.
    """
    from xds.kubernetes.waiting import OwnPod, logged_out, login, registered
    from xds.sources.consul.client import ConsulError

    configure("INFO")
    if bool(auth_method) != (account_file is not None):
        raise click.UsageError("--auth-method and --account-file go together")
    pod = OwnPod(pod_name, pod_namespace, pod_uid, node)

    async def wait(client: Consul) -> str:
        if account_file is None:
            return await registered(client, pod, problem_file)
        client.token = await login(client, pod, auth_method, account_file)
        try:
            return await registered(client, pod, problem_file)
        finally:
            with contextlib.suppress(ConsulError):  # what this container waited for is there
                await logged_out(client)

    found = asyncio.run(_with_consul(consul, wait))
    _replace(id_file, found, mode=0o444)
    click.echo(f"registered as {found}")
    if redirection:  # from here on, this process could not reach Consul
        redirect_traffic.main([*redirection], prog_name="gossamer redirect-traffic", standalone_mode=False)


@kubernetes_group.command("login")
@consul_flags
@click.option("--auth-method", required=True, help="Consul's auth method.")
@click.option(
    "--account-file", type=click.Path(path_type=Path), required=True, help="Token of the pod's ServiceAccount."
)
@click.option("--login-file", type=click.Path(path_type=Path), required=True, help="File for the token of Consul.")
@click.option("--pod-name", envvar="POD_NAME", required=True, help="Name of this pod. [POD_NAME]")
@click.option("--pod-namespace", envvar="POD_NAMESPACE", required=True, help="Its namespace. [POD_NAMESPACE]")
def log_in(
    consul: ConsulSettings, auth_method: str, account_file: Path, login_file: Path, pod_name: str, pod_namespace: str
) -> None:
    """Log a pod in to Consul with the token of its ServiceAccount; wait until that works."""
    from xds.kubernetes.waiting import OwnPod, login

    configure("INFO")
    pod = OwnPod(pod_name, pod_namespace, "", "")
    token = asyncio.run(_with_consul(consul, lambda client: login(client, pod, auth_method, account_file)))
    _replace(login_file, token, mode=0o600)


def _replace(file: Path, line: str, *, mode: int) -> None:
    """Write a file of one line that only this mode's users may read; one that is there may be closed to this user.

    Raises:
        Failure: it can't be written.
    """
    try:
        file.unlink(missing_ok=True)
        file.touch(mode=0o600)
        file.write_text(f"{line}\n")
        file.chmod(mode)
    except OSError as error:
        raise Failure(f"can't write {file}: {error.strerror}") from error


@kubernetes_group.command("logout")
@consul_flags
def logout(consul: ConsulSettings) -> None:
    """Give back the token that a pod's login gave, before its sidecar is stopped."""
    from xds.kubernetes.waiting import logged_out
    from xds.sources.consul.client import ConsulError

    try:
        asyncio.run(_with_consul(consul, logged_out))
    except ConsulError as error:
        raise Failure(str(error)) from error

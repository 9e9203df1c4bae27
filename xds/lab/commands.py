"""Commands of a mesh, for the lab's namespaces and the containers of the demo alike.

Each is a list that begins with ``gossamer`` or ``python``, as in an image; `here` converts it for this machine.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

ENVOY_UID = 5678
PUBLIC_PORT = 20000
APPLICATION_PORT = 8080
XDS_PORT = 18000
ADMIN_PORT = XDS_PORT + 1
ENVOY_ADMIN_PORT = 19000
ENVOY_ADMIN_SOCKET = "/run/envoy/admin.sock"
"""Path in a container of a sidecar's own."""


def serve(source: Sequence[str], address: str, port: int = XDS_PORT) -> list[str]:
    """Return the command of the control plane, on ``address`` and ``port``, with the admin port after that.

    ``source`` says where the mesh is read from (``--consul``, ``--mesh``). A lab's network is nobody else's, so who
    reaches its admin port, and a Consul without ACLs, need not be told apart.
    """
    return [
        "gossamer", "serve", *source, "--listen", f"{address}:{port}", "--admin", f"{address}:{port + 1}",
        "--insecure",
    ]  # fmt: skip


def redirect(*, netns: str = "", exclude_inbound: Sequence[int] = (), hold: bool = False) -> list[str]:
    """Return the command that redirects a host, or a namespace where one is given.

    Args:
        netns: the namespace.
        exclude_inbound: ports that are not redirected.
        hold: whether it keeps running, with a mark for the other containers of the namespace.
    """
    return [
        "gossamer", "redirect-traffic", *(["--netns", netns] if netns else []), "--proxy-uid", str(ENVOY_UID),
        "--proxy-inbound-port", str(PUBLIC_PORT),
        *(part for port in exclude_inbound for part in ("--exclude-inbound-port", str(port))),
        *(["--hold"] if hold else []),
    ]  # fmt: skip


def sidecar(
    proxy_id: str,
    registration: Sequence[str],
    *,
    xds: str,
    port: int = XDS_PORT,
    admin: str,
    envoy: str = "",
    more: Sequence[str] = (),
) -> list[str]:
    """Return the command of a sidecar.

    Args:
        proxy_id: its service ID.
        registration: where that is looked up (``--consul``, ``--mesh``).
        xds: the address of the control plane.
        port: its port.
        admin: where Envoy's admin interface is, as ``--admin`` takes it.
        envoy: the Envoy to run, where it is not the installed one.
        more: further flags.
    """
    return [
        "gossamer", "sidecar", proxy_id, *registration, "--xds", f"{xds}:{port}", "--admin", admin,
        *(["--envoy", envoy] if envoy else []), *more, "--", "--concurrency", "1",
    ]  # fmt: skip


def application(
    name: str,
    port: int = APPLICATION_PORT,
    *,
    speaks: str = "tcp",
    calls: Sequence[str] = (),
    address: str = "127.0.0.1",
) -> list[str]:
    """Return the command of an application that ``speaks`` tcp, http or grpc; ``calls`` as `xds.lab.application`
    expects them."""
    return [
        "python", "-m", "xds.lab.application", name, str(port), "--address", address,
        *([f"--{speaks}"] if speaks != "tcp" else []), *(part for call in calls for part in ("--calls", call)),
    ]  # fmt: skip


def envoy_ready() -> list[str]:
    """Return a command that succeeds once a sidecar has its configuration."""
    asks = (
        "import http.client, socket; made = http.client.HTTPConnection('envoy', timeout=2);"
        f" made.sock = socket.socket(socket.AF_UNIX); made.sock.connect('{ENVOY_ADMIN_SOCKET}');"
        " made.request('GET', '/ready'); raise SystemExit(made.getresponse().status != 200)"
    )
    return ["python", "-c", asks]


def control_plane_ready() -> list[str]:
    """Return a command that succeeds once the control plane of this host has read the mesh."""
    asks = f"import urllib.request; urllib.request.urlopen('http://127.0.0.1:{ADMIN_PORT}/ready', timeout=2)"
    return ["python", "-c", asks]


def listens(port: int) -> list[str]:
    """Return a command that succeeds once a program of this host listens on ``port``."""
    return ["python", "-c", f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)"]


def here(command: Sequence[str]) -> list[str]:
    """Return the same command, run by this interpreter."""
    program = {"gossamer": [sys.executable, "-m", "xds"], "python": [sys.executable]}[command[0]]
    return [*program, *command[1:]]


def gossamer(*arguments: str) -> list[str]:
    """Return the command line of ``gossamer``, run by this interpreter."""
    return here(["gossamer", *arguments])

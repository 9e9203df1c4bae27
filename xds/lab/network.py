"""Makes hosts: network namespaces on a bridge in a namespace of its own.

Names contain the process ID of their maker, so that the next run can remove what a crashed one left behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from pathlib import Path
from types import TracebackType

PREFIX = "gossamer"
SUBNET = "10.77.0"
_NETNS = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_numbers = itertools.count(1)


class NetworkError(Exception):
    """Refusal of the kernel or of ``ip`` to make a host."""


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NetworkError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


class Host:
    """A network namespace with one address on the lab's bridge."""

    def __init__(self, namespace: str, name: str, address: str) -> None:
        self.namespace = namespace
        self.name = name
        self.address = address

    @property
    def path(self) -> str:
        """The namespace's file, for ``nsenter`` and ``--netns``."""
        return str(_NETNS / self.namespace)

    def command(self, *arguments: str, uid: int | None = None) -> list[str]:
        """Return a command line that runs ``arguments`` on this host, as the user ``uid`` where one is given.

        Another user keeps the right to read every file, since the checkout may be where only root can read.
        """
        enter = ["nsenter", f"--net={self.path}", "--"]
        if uid is None:
            return [*enter, *arguments]
        capability = "+dac_read_search"
        # The kernel resets the parent-death signal when the user changes, so it is set after that.
        user = [f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--pdeathsig=KILL"]
        return [*enter, "setpriv", *user, f"--inh-caps={capability}", f"--ambient-caps={capability}", *arguments]

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
        """Return a socket on this host. A socket stays in the namespace it was made in, so it can be used from
        anywhere."""
        made: list[socket.socket | OSError] = []

        def make() -> None:
            libc = ctypes.CDLL(None, use_errno=True)
            with Path(self.path).open("rb") as file:
                if libc.setns(file.fileno(), _CLONE_NEWNET) != 0:
                    made.append(OSError(ctypes.get_errno(), f"can't enter {self.path}"))
                    return
            made.append(socket.socket(family, kind, protocol))

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        if isinstance(made[0], OSError):
            raise made[0]
        made[0].setblocking(False)
        return made[0]


class Network:
    """The bridge and its hosts. A context manager: leaving it removes them all."""

    def __init__(self) -> None:
        self._prefix = f"{PREFIX}-{os.getpid()}-{next(_numbers)}"
        self._hosts: list[Host] = []
        self._made: list[str] = []

    def __enter__(self) -> Network:
        remove_left_over()
        self._namespace("bridge")
        bridge = f"{self._prefix}-bridge"
        _ip("-n", bridge, "link", "add", "br0", "type", "bridge")
        _ip("-n", bridge, "link", "set", "br0", "up")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for namespace in reversed(self._made):
            _remove(namespace)

    def _namespace(self, name: str) -> str:
        namespace = f"{self._prefix}-{name}"
        _ip("netns", "add", namespace)
        self._made.append(namespace)
        _ip("-n", namespace, "link", "set", "lo", "up")
        return namespace

    def host(self, name: str, address: str = "") -> Host:
        """Add a host with a default route (to nowhere), at the next free address where none is given."""
        number = len(self._hosts) + 1
        host = Host(self._namespace(name), name, address or f"{SUBNET}.{number}")
        port = f"host{number}"
        bridge = f"{self._prefix}-bridge"
        peer = ["peer", "name", "eth0", "netns", host.namespace]
        _ip("link", "add", port, "netns", bridge, "type", "veth", *peer)
        _ip("-n", bridge, "link", "set", port, "master", "br0", "up")
        _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
        _ip("-n", host.namespace, "link", "set", "eth0", "up")
        # A virtual IP needs a route before the kernel can redirect it.
        _ip("-n", host.namespace, "route", "add", "default", "via", f"{SUBNET}.254")
        self._hosts.append(host)
        return host


def _remove(namespace: str) -> None:
    """Remove a namespace, and end what still runs in it."""
    found = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
    for number in set(found.stdout.split()) - {str(os.getpid())}:  # benchmarks enter one themselves
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(number), signal.SIGKILL)
    with contextlib.suppress(NetworkError):
        _ip("netns", "delete", namespace)


def temporary_folder() -> Path:
    """Make a new folder for what a run writes; a later run removes one that is left over."""
    return Path(tempfile.mkdtemp(prefix=f"{PREFIX}-{os.getpid()}-lab-"))


def remove_left_over() -> None:
    """Remove the namespaces and folders of runs that are no longer there."""
    folders = Path(tempfile.gettempdir()).glob(f"{PREFIX}-*-lab-*")
    namespaces = _NETNS.glob(f"{PREFIX}-*") if _NETNS.is_dir() else ()
    for path in (*namespaces, *folders):
        owner = re.match(rf"{PREFIX}-(\d+)-", path.name)
        if owner is None or Path(f"/proc/{owner[1]}").exists():
            continue
        if path.parent == _NETNS:
            _remove(path.name)
        else:
            shutil.rmtree(path, ignore_errors=True)

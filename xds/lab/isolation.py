"""Runs the demo in namespaces of its own, so that nothing it makes can outlive it.

The demo runs in a mount namespace with a ``/run`` in memory, which holds the network namespaces' names, the logs and
the mesh file; the kernel removes all of it when the last process ends, however it ends. Without root, a user namespace
gives the necessary rights, within itself only.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

from xds.lab.binaries import MissingError

_INSIDE = "GOSSAMER_DEMO_INSIDE"
FOLDER = Path("/run/gossamer")
"""Folder where the demo writes inside its namespaces."""
_PREPARE = "mount -t tmpfs -o mode=755 tmpfs /run && mkdir -p /run/netns /run/gossamer"
_PROBE = f"""
set -e
{_PREPARE}
ip netns add probe
ip -n probe link add br0 type bridge
ip -n probe link add probe0 type veth peer name probe1
nsenter --net=/run/netns/probe nft add table inet probe
setpriv --reuid=5678 --regid=5678 --clear-groups true
"""
_SYSCTLS = (
    ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone is 0"),
    ("user/max_user_namespaces", "0", "user.max_user_namespaces is 0"),
    (
        "kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "kernel.apparmor_restrict_unprivileged_userns is 1 (Ubuntu's default)",
    ),
)


def inside() -> bool:
    """Return whether this process is in namespaces of its own already."""
    return os.environ.get(_INSIDE) == str(os.getpid())


def enter(arguments: list[str]) -> None:
    """Replace this process by ``gossamer`` with these arguments, in namespaces of its own.

    Raises:
        MissingError: this machine does not allow it; the message says what is missing.
    """
    # Debian's folder of programs that is not on the path of users other than root.
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    unshare = _unshare()
    tried = subprocess.run([*unshare, "sh", "-c", _PROBE], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        raise MissingError(
            f"network namespaces with nftables can't be made here: {_last_line(tried.stderr)}"
            + ("" if os.geteuid() == 0 else "; as root the demo needs no user namespace")
        )
    os.environ[_INSIDE] = str(os.getpid())  # exec keeps the process ID
    command = [*unshare, "sh", "-c", f'{_PREPARE} && exec "$@"', "sh", sys.executable, "-m", "xds", *arguments]
    os.execvp(command[0], command)  # noqa: S606 - becoming it is the point


def _unshare() -> list[str]:
    """Return the command line that makes the namespaces.

    Raises:
        MissingError: without root, a user namespace with more than one user can't be made here.
    """
    if shutil.which("unshare") is None:
        raise MissingError("unshare is not installed: install util-linux")
    if os.geteuid() == 0:
        return ["unshare", "--mount", "--propagation", "private"]
    user = _user()
    without_root = f"without root (user {user}) the demo runs in a user namespace, and"
    for file, closed, what in _SYSCTLS:
        sysctl = Path("/proc/sys") / file
        if sysctl.exists() and sysctl.read_text().strip() == closed:
            raise MissingError(f"{without_root} this kernel allows none: {what}; change that, or run as root")
    if shutil.which("newuidmap") is None:
        raise MissingError(f"{without_root} newuidmap is not installed (Debian: uidmap); install it, or run as root")
    for file in ("/etc/subuid", "/etc/subgid"):
        owners = [line.partition(":")[0] for line in Path(file).read_text().splitlines()] if Path(file).exists() else []
        if not {user, str(os.getuid())} & set(owners):
            raise MissingError(
                f"{without_root} {file} gives this user no further IDs, which Envoy's user would be one of; as root:"
                f" usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}"
            )
    return [
        "unshare", "--user", "--map-root-user", "--map-auto", "--mount", "--net", "--propagation", "private",
    ]  # fmt: skip


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1]

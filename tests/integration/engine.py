"""A Docker engine in namespaces of its own: this machine's rules and containers stay as they are.

When its process ends, so does everything that it started. Images are built by a first engine, which has this machine's
network and no container network, and are run by a second one, which has a network namespace without a way out.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from tests.integration.machine import ROOT
from xds.lab.processes import CommandError, Process, eventually, run_to_end

TOOLS = ROOT / ".cache" / "docker"
BASE = TOOLS / "base.tar"
"""Root file system of Debian with Python, from which images are made."""
STOPS_WITHIN_S = 60
MISSING = "no Docker engine: run 'scripts/fetch-docker' as root, which says what it lacks"


class Engine:
    """A Docker engine, running while its ``async with`` block does.

    Args:
        folder: for its images, containers and logs; a second engine finds those of a first one there.
        isolated: whether containers have a network, without a way out of this machine. Otherwise they have none, and
            only what is built with the machine's own network works.
    """

    def __init__(self, folder: Path, *, isolated: bool) -> None:
        self._folder = folder
        self._isolated = isolated
        self._process: Process | None = None

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which ``docker`` talks to it."""
        programs = [TOOLS / "usr/sbin", TOOLS / "usr/bin"]
        return {
            **os.environ,
            "PATH": os.pathsep.join([*map(str, programs), os.environ["PATH"], "/usr/sbin"]),
            "DOCKER_HOST": f"unix://{self._folder}/docker.sock",
            "DOCKER_CONFIG": str(self._folder / "config"),
        }

    async def __aenter__(self) -> Engine:
        plugins = self._folder / "config" / "cli-plugins"
        plugins.mkdir(parents=True, exist_ok=True)
        for plugin in (TOOLS / "usr/libexec/docker/cli-plugins").iterdir():
            if not (plugins / plugin.name).exists():
                (plugins / plugin.name).symlink_to(plugin)
        command = [
            "dockerd", "--host", self.environment["DOCKER_HOST"], "--data-root", f"{self._folder}/data",
            "--exec-root", f"{self._folder}/exec", "--pidfile", f"{self._folder}/pid",
            "--init-path", str(TOOLS / "usr/bin/docker-init"), "--cgroup-parent", self._folder.name,
        ]  # fmt: skip
        if not self._isolated:
            command += [
                "--iptables=false",
                "--ip6tables=false",
                "--ip-forward=false",
                "--ip-masq=false",
                "--bridge=none",
            ]
        # The first process of a PID namespace has to wait for others, and takes all of them along when it ends.
        script = f'mount --make-rshared / && {"ip link set lo up && " if self._isolated else ""}"$@" & wait'
        flags = ["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", *(["--net"] if self._isolated else [])]
        self._process = await Process.start(
            "dockerd",
            ["unshare", *flags, "sh", "-c", script, "sh", *command],
            self._folder / "dockerd.log",
            self.environment,
        )
        try:
            await eventually("the engine", self._answers, within_s=120)
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self._stop()

    async def _answers(self) -> bool:
        assert self._process is not None
        self._process.alive()
        if not _children(self._process.pid):
            return False
        try:
            await self.run("docker", "version")
        except CommandError:
            return False
        return True

    async def _stop(self) -> None:
        assert self._process is not None
        if self._process.running:
            for first in _children(self._process.pid):
                for daemon in _children(first):
                    os.kill(daemon, signal.SIGTERM)
            try:
                async with asyncio.timeout(STOPS_WITHIN_S):
                    await self._process.ended()
            except TimeoutError:
                await self._process.stop(signal.SIGKILL)
        await asyncio.to_thread(_remove_cgroups, self._folder.name)

    def _first(self) -> int:
        """Return the first process of the engine's PID namespace, by its number outside."""
        assert self._process is not None
        (first,) = _children(self._process.pid)
        return first

    async def run(self, *command: str, folder: Path | None = None) -> str:
        """Run ``command`` in the engine's network, in ``folder``. Return what it printed.

        Raises:
            CommandError: it failed.
        """
        return await run_to_end(*self.command(*command), environment=self.environment, folder=folder)

    def command(self, *command: str) -> list[str]:
        """Return a command line that runs ``command`` in the engine's network and among its processes."""
        inside = ["nsenter", "--target", str(self._first()), "--net", "--pid", "--"] if self._isolated else []
        return [*inside, *command]


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _remove_cgroups(name: str) -> None:
    """Remove the cgroups of this name, in which no process is left, of every hierarchy."""
    root = Path("/sys/fs/cgroup")
    for hierarchy in (root, *root.iterdir()):
        for path, _, _ in os.walk(hierarchy / name, topdown=False):
            Path(path).rmdir()

"""A lab host that is a machine of its own as far as files go: what is typed there can add users and write to ``/etc``.

Every command runs in a mount namespace of its own over the same few private folders, so that what one command leaves
behind the next one finds, and this machine's own files stay as they are.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from xds.lab.network import Host

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


class Machine:
    """A host with an ``/etc``, a ``/run``, a ``/var/lib`` and a ``/usr/local/bin`` of its own; ``gossamer`` is there.

    Args:
        host: its network.
        folder: where its files are kept.
        programs: further programs by name, for ``/usr/local/bin``.
    """

    def __init__(self, host: Host, folder: Path, programs: dict[str, str] | None = None) -> None:
        self.host = host
        self.etc, self.run = folder / "etc", folder / "run"
        self._folder = folder
        shutil.copytree("/etc", self.etc, symlinks=True, ignore_dangling_symlinks=True)
        for name in ("run", "lib", "bin", "aside"):
            (folder / name).mkdir()
        self.run.chmod(0o777)  # for the folder of whichever user runs a sidecar
        for name, path in ({"gossamer": str(BIN / "gossamer")} | (programs or {})).items():
            # A script, since from 3.13 on Python does not find its virtual environment through a link elsewhere.
            script = folder / "bin" / name
            script.write_text(f'#!/bin/sh\nexec {path} "$@"\n')
            script.chmod(0o755)

    def command(self, *arguments: str, cwd: Path | None = None) -> list[str]:
        """Return a command line that runs ``arguments`` there."""
        private = {"etc": "/etc", "run": "/run", "lib": "/var/lib", "bin": "/usr/local/bin"}
        steps = [f"mount --bind {self._folder / name} {target}" for name, target in private.items()]
        steps += self._make_readable()
        steps += ["export XDG_RUNTIME_DIR=/run"]
        steps += [f"cd {cwd}"] if cwd else []
        script = " && ".join([*steps, 'exec "$@"'])
        return self.host.command("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *arguments)

    def _make_readable(self) -> list[str]:
        """Return commands that let other users read the interpreter and the checkout, which only root may reach."""
        steps: list[str] = []
        closed = {path: _closed_above(path) for path in (Path(sys.base_prefix), ROOT)}
        for number, (path, above) in enumerate(closed.items()):
            if above:
                aside = self._folder / "aside" / str(number)
                aside.mkdir(exist_ok=True)
                steps.append(f"mount --bind {path} {aside}")
        steps += [f"mount -t tmpfs -o mode=755 tmpfs {above}" for above in sorted({a for a in closed.values() if a})]
        for number, (path, above) in enumerate(closed.items()):
            if above:
                steps.append(f"mkdir -p {path} && mount --bind {self._folder / 'aside' / str(number)} {path}")
        return steps


def _closed_above(path: Path) -> Path | None:
    """Return the outermost folder above ``path`` that not every user may enter."""
    return next((folder for folder in reversed(path.parents) if not folder.stat().st_mode & 0o001), None)

"""Places Envoy's admin interface: by default at a Unix socket that only Envoy's own user can open.

The interface has no authentication. Its ``/config_dump`` contains the ACL token and its ``/quitquitquit`` ends the
sidecar, so a port of loopback gives both to every program of the host.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from xds.cli.common import Failure, HostPort

INSTEAD = "give another place with --admin unix:PATH, or a port with --admin HOST:PORT"
LONGEST_PATH = 107
"""Bytes of a Unix socket's path that Linux takes."""


class AdminAddress(click.ParamType["tuple[str, int] | Path"]):
    """``HOST:PORT``, or ``unix:PATH``."""

    name = "host:port|unix:path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int] | Path:
        if not isinstance(value, str) or not value.startswith("unix:"):
            return HostPort().convert(value, param, ctx)
        path = value.removeprefix("unix:")
        if not path.startswith("/") or len(os.fsencode(path)) > LONGEST_PATH:
            self.fail(f"{value!r}: expected an absolute path of at most {LONGEST_PATH} bytes", param, ctx)
        return Path(path)


def default_socket(proxy_id: str, environment: Mapping[str, str]) -> Path:
    """Return where the admin interface of a sidecar is, in a folder that is this user's alone.

    The folder is the service manager's (``RUNTIME_DIRECTORY``), else the user's (``XDG_RUNTIME_DIR``), else one below
    the folder for temporary files.

    Raises:
        Failure: that folder can't be made, or somebody else can write to it.
    """
    given = environment.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    user = environment.get("XDG_RUNTIME_DIR", "")
    if given:
        folder = Path(given)
    elif user and os.access(user, os.W_OK):
        folder = Path(user) / "gossamer"
    else:
        folder = Path(tempfile.gettempdir()) / f"gossamer-{os.getuid()}"
    _make(folder)
    path = folder / f"{quote(proxy_id, safe='')}.sock"
    if len(os.fsencode(path)) > LONGEST_PATH:
        path = folder / f"{hashlib.sha256(proxy_id.encode()).hexdigest()[:32]}.sock"
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise Failure(f"{path}, for Envoy's admin socket, is longer than {LONGEST_PATH} bytes; {INSTEAD}")
    return path


def _make(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise Failure(f"{folder}, for Envoy's admin socket, can't be made: {error.strerror}; {INSTEAD}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise Failure(
            f"{folder}, for Envoy's admin socket, is not a folder that only this user can write to; {INSTEAD}"
        )

"""Places files that a running sidecar needs in a folder that only its own user can write to."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from xds.cli.common import Failure

LONGEST_PATH = 107
"""Bytes of a Unix socket's path that Linux takes."""


def runtime_path(proxy_id: str, suffix: str, environment: Mapping[str, str], *, what: str, instead: str) -> Path:
    """Return the path of a file of a sidecar, in a folder that is this user's alone and is made where there is none.

    The folder is the service manager's (``RUNTIME_DIRECTORY``), else the user's (``XDG_RUNTIME_DIR``), else one below
    the folder for temporary files.

    Args:
        proxy_id: the sidecar's service ID.
        suffix: the end of the file's name.
        environment: the environment variables.
        what: what the file is for, for messages.
        instead: what to do when it can't be there, for messages.

    Raises:
        Failure: the folder can't be made, other users can write to it, or the path is too long for a socket.
    """
    given = environment.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    user = environment.get("XDG_RUNTIME_DIR", "")
    if given:
        folder = Path(given)
    elif user and os.access(user, os.W_OK):
        folder = Path(user) / "gossamer"
    else:
        folder = Path(tempfile.gettempdir()) / f"gossamer-{os.getuid()}"
    _make(folder, what, instead)
    path = folder / f"{quote(proxy_id, safe='')}{suffix}"
    if len(os.fsencode(path)) > LONGEST_PATH:
        path = folder / f"{hashlib.sha256(proxy_id.encode()).hexdigest()[:32]}{suffix}"
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise Failure(f"{path}, for {what}, is longer than {LONGEST_PATH} bytes; {instead}")
    return path


def _make(folder: Path, what: str, instead: str) -> None:
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise Failure(f"{folder}, for {what}, can't be made: {error.strerror}; {instead}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise Failure(f"{folder}, for {what}, is not a folder that only this user can write to; {instead}")

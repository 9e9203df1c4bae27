"""Places Envoy's admin interface: by default at a Unix socket that only Envoy's own user can open.

The interface has no authentication. Its ``/config_dump`` contains the ACL token and its ``/quitquitquit`` ends the
sidecar, so a port of loopback gives both to every program of the host.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from xds.cli.common import HostPortFlag
from xds.cli.runtime import LONGEST_PATH, runtime_path
from xds.mesh.addresses import HostPort

INSTEAD = "give another place with --admin unix:PATH, or a port with --admin HOST:PORT"


class AdminAddress(click.ParamType["HostPort | Path"]):
    """``HOST:PORT``, or ``unix:PATH``."""

    name = "host:port|unix:path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> HostPort | Path:
        if not isinstance(value, str) or not value.startswith("unix:"):
            return HostPortFlag().convert(value, param, ctx)
        path = value.removeprefix("unix:")
        if not path.startswith("/") or len(os.fsencode(path)) > LONGEST_PATH:
            self.fail(f"{value!r}: expected an absolute path of at most {LONGEST_PATH} bytes", param, ctx)
        return Path(path)


def default_socket(proxy_id: str, environment: Mapping[str, str]) -> Path:
    """Return where the admin interface of a sidecar is by default.

    Raises:
        Failure: there is no place for it that is this user's alone.
    """
    return runtime_path(proxy_id, ".sock", environment, what="Envoy's admin socket", instead=INSTEAD)

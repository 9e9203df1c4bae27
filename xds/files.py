"""States of files that are followed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

FileState = tuple[int, int, int]
"""A file's inode, time of modification and size."""


def states(paths: Iterable[Path]) -> tuple[FileState | None, ...]:
    """Return what differs when one of these files is written to or replaced; ``None`` for one that can't be had."""
    return tuple(map(_state, paths))


def _state(path: Path) -> FileState | None:
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_ino, about.st_mtime_ns, about.st_size

"""The tasks that a companion is started with, and its end with its Envoy. Imports little: see ``__main__``."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from dataclasses import asdict, dataclass, field
from typing import Any

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Tasks:
    """The tasks of a companion.

    Its sockets are open already, and given by number: ``gossamer sidecar`` fails where one can't be opened.
    """

    envoy: int
    """The process that becomes Envoy."""
    dns_sockets: tuple[int, ...] = ()
    """The UDP sockets at which DNS queries arrive."""
    dns_upstream: int = 0
    """The port of 127.0.0.1 at which Envoy answers them in small letters."""
    roots_file: str = ""
    """The file in which the mesh's certificate authorities are kept current."""
    trust_domain: str = ""
    consul: dict[str, Any] = field(default_factory=dict, repr=False)
    """Fields of the ``ConsulSettings`` with which these authorities are read."""

    def as_file(self) -> int:
        """Return a descriptor of the tasks in memory. Arguments of a process are seen by all users, this is not."""
        descriptor = os.memfd_create("gossamer-companion", 0)  # inherited, unlike Python's default
        os.write(descriptor, json.dumps(asdict(self)).encode())
        os.lseek(descriptor, 0, os.SEEK_SET)
        return descriptor

    @classmethod
    def from_file(cls, descriptor: int) -> Tasks:
        """Read what :meth:`as_file` wrote, and close it."""
        with os.fdopen(descriptor, "rb") as file:
            read = json.loads(file.read())
        return cls(**{**read, "dns_sockets": tuple(read["dns_sockets"])})

    def __bool__(self) -> bool:
        """Return whether there are any tasks."""
        return bool(self.dns_sockets or self.roots_file)


def end_with_parent(parent: int) -> None:
    """Have the kernel end this process when its parent ends (prctl(2), PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before the call
        sys.exit(0)

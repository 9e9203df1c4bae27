"""The tasks that a companion is started with, and its end with its Envoy. Imports little: see ``__main__``."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from dataclasses import asdict, dataclass

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

    def to_json(self) -> str:
        """Return the tasks as the process's argument."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Tasks:
        """Read what :meth:`to_json` wrote."""
        read = json.loads(text)
        return cls(**{**read, "dns_sockets": tuple(read["dns_sockets"])})

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.dns_sockets)


def end_with_parent(parent: int) -> None:
    """Have the kernel end this process when its parent ends (prctl(2), PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before the call
        sys.exit(0)

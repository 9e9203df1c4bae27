"""The log of a process that serves: its format, and limits for lines that others cause.

Any client can cause a line: a refused stream, a rejected resource, a failed handshake. So all lines are limited, in one
place: the same text once a minute, and lines of one kind at a small rate.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

SAME_TEXT_INTERVAL = 60.0
"""Seconds before a line is logged again with the same text."""
TEXTS_KEPT = 1000
KINDS_KEPT = 1000
KIND_BURST = 50
"""Lines of one kind, that is with one format string, that are logged at once."""
KIND_RATE = 1.0
"""Lines of one kind in each second after these."""


@dataclass(slots=True)
class _Kind:
    """The lines with one format string."""

    allowance: float
    at: float
    left_out: int = 0


class LineLimit(logging.Filter):
    """Limit on the number of lines of one kind; those of the debug level are all kept.

    Args:
        clock: the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._texts: dict[str, float] = {}
        self._kinds: dict[str, _Kind] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a line is logged; the next one of its kind says how many were left out before it."""
        if record.levelno <= logging.DEBUG:
            return True
        try:
            text = record.getMessage()
        except Exception:  # logging reports a line that can't be formatted, and its caller goes on
            return True
        now = self._clock()
        kind = self._kinds.setdefault(str(record.msg), _Kind(KIND_BURST, now))
        if len(self._kinds) > KINDS_KEPT:
            del self._kinds[next(iter(self._kinds))]
        kind.allowance = min(KIND_BURST, kind.allowance + (now - kind.at) * KIND_RATE)
        kind.at = now
        last = self._texts.get(text)
        if kind.allowance < 1 or (last is not None and now - last < SAME_TEXT_INTERVAL):
            kind.left_out += 1
            return False
        kind.allowance -= 1
        self._texts.pop(text, None)
        self._texts[text] = now
        if len(self._texts) > TEXTS_KEPT:
            del self._texts[next(iter(self._texts))]
        if kind.left_out:
            record.msg, record.args = f"{text} ({kind.left_out} lines of this kind were left out before it)", None
            kind.left_out = 0
        return True


def configure(level: str | int, name: str = "") -> None:
    """Configure logging to standard error.

    Args:
        level: the least level that is logged.
        name: the process's name, which lines begin with.
    """
    prefix = f"{name} %(process)d: " if name else ""
    logging.basicConfig(level=level, format=f"%(asctime)s %(levelname)-7s {prefix}%(message)s")
    for handler in logging.getLogger().handlers:
        handler.addFilter(LineLimit())
    logging.getLogger("watchfiles").setLevel(logging.ERROR)

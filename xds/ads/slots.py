"""Slots for large responses.

A response with a thousand resources takes milliseconds to make, and a megabyte of memory until it is sent. When a
change affects all sidecars, a thousand such responses at once would block everything else and fill the memory; so they
are made one after the other, and small responses pass them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import islice

AT_ONCE = 2
"""Large responses that are made or written at a time."""
PASS_ON_S = 0.05
"""Seconds after which a response that is still being written releases its slot."""

Wake = Callable[[], None]


class Slots:
    """Slots for large responses: two at a time, so that one is made while another is written. A stream is known by the
    function that wakes it."""

    def __init__(self) -> None:
        self._waiting: dict[Wake, None] = {}

    def ask(self, wake: Wake) -> None:
        """Request a slot: call ``wake`` when the stream has it, at once if it has it already."""
        self._waiting.setdefault(wake)
        if self.has(wake):
            wake()

    def has(self, wake: Wake) -> bool:
        """Return whether the stream has a slot."""
        return bool(self._waiting) and any(each == wake for each in islice(self._waiting, AT_ONCE))

    def writes(self, wake: Wake) -> asyncio.TimerHandle | None:
        """Note that a stream writes a response, and release its slot after PASS_ON_S even if the write is unfinished.

        A proxy that reads nothing must not keep others from a slot. A stream that only waits for a slot loses its place
        too; it asks again when its write is done.

        Returns:
            The timer to cancel when the write is done; ``None`` where the stream has no slot.
        """
        if not self.has(wake):
            self._waiting.pop(wake, None)
            return None
        return asyncio.get_running_loop().call_later(PASS_ON_S, self.done, wake)

    def done(self, wake: Wake) -> None:
        """Release the stream's slot, or its place among those that wait for one."""
        if not self._waiting:
            return
        had = self.has(wake)
        self._waiting.pop(wake, None)
        if had:
            for admitted in islice(self._waiting, AT_ONCE - 1, AT_ONCE):
                admitted()

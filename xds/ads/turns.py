"""Whose turn it is to be sent something large.

A response of a thousand resources takes milliseconds to make, and a megabyte until it is taken. When a change is about
everybody, a thousand of them at once would hold up everything else and fill the memory; so they are made one after the
other, and whatever is small passes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import islice

AT_ONCE = 2
"""So many large responses are made or written at a time."""
PASS_ON_S = 0.05
"""A large response that is not taken within this time does not keep the next one waiting any more."""

Wake = Callable[[], None]


class Turns:
    """Whose turn it is: two at a time, one is made while another is written. Each is known by what wakes it."""

    def __init__(self) -> None:
        self._waiting: dict[Wake, None] = {}

    def ask(self, wake: Wake) -> None:
        """Have ``wake`` called when it is its turn; at once, if it is already."""
        self._waiting.setdefault(wake)
        if self.has(wake):
            wake()

    def has(self, wake: Wake) -> bool:
        """Whether it is its turn."""
        return bool(self._waiting) and any(each == wake for each in islice(self._waiting, AT_ONCE))

    def writes(self, wake: Wake) -> asyncio.TimerHandle | None:
        """It is being written to. If it has its turn, it gives it away soon, whether what is written is taken or not.

        A proxy that takes nothing must not keep others from their turn; nor must one that only waits for its own, so
        that one asks again when it has taken what it was sent.

        Returns:
            What to cancel when it is written; ``None`` where it is not its turn.
        """
        if not self.has(wake):
            self._waiting.pop(wake, None)
            return None
        return asyncio.get_running_loop().call_later(PASS_ON_S, self.done, wake)

    def done(self, wake: Wake) -> None:
        """It needs no turn any more."""
        if not self._waiting:
            return
        had = self.has(wake)
        self._waiting.pop(wake, None)
        if had:
            for admitted in islice(self._waiting, AT_ONCE - 1, AT_ONCE):
                admitted()

"""Work that would hold others up: on many, in slices between which the event loop does whatever else has come; and the
same again and again, with rests between."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from typing import TypeVar

Item = TypeVar("Item")
FEW = 16
"""Number of items that are processed at once."""
SLICE = 4
"""Number of items in a slice, where there are more: about three milliseconds in which other work waits, several times
in a row, since what is read takes a few iterations of the event loop until it is sent."""


class Slices:
    """Queue of work that runs in order, in slices; ``soon`` runs a function after what the event loop already waits to
    run."""

    def __init__(self, soon: Callable[[Callable[[], None]], object]) -> None:
        self._soon = soon
        self._rest: deque[Callable[[], None]] = deque()

    def run(self, step: Callable[[Item], None], items: Collection[Item], *, in_order: bool = False) -> None:
        """Do ``step`` with each of ``items``: with a few at once, with many in slices.

        ``in_order``: not before what was asked for earlier is done.
        """
        if len(items) <= FEW and not (in_order and self._rest):
            for item in items:
                step(item)
            return
        idle = not self._rest
        self._rest.extend(_bound(step, item) for item in items)
        if idle:
            self._soon(self._go_on)

    def finish(self) -> None:
        """Do all that is left, now."""
        while self._rest:
            self._rest.popleft()()

    def _go_on(self) -> None:
        for _ in range(min(SLICE, len(self._rest))):
            self._rest.popleft()()
        if self._rest:
            self._soon(self._go_on)


def _bound(step: Callable[[Item], None], item: Item) -> Callable[[], None]:
    return lambda: step(item)


class Rests:
    """Throttle: calls ``step`` at once, and then with all items that were requested meanwhile, after a pause.

    Args:
        step: takes all that was asked for since it was last done.
        later: runs something when a rest is over.
    """

    def __init__(self, step: Callable[[set[str]], None], later: Callable[[Callable[[], None]], object]) -> None:
        self._step = step
        self._later = later
        self.waiting: set[str] = set()
        """Items to process after the pause."""
        self._resting = False

    def ask(self, items: Collection[str]) -> None:
        """Have these done."""
        self.waiting.update(items)
        if self.waiting and not self._resting:
            self._go()

    def _go(self) -> None:
        asked = set(self.waiting)
        self.waiting.clear()
        self._resting = True
        self._step(asked)
        self._later(self._rested)

    def _rested(self) -> None:
        self._resting = False
        self.ask(())

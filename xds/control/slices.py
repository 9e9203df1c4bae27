"""Work that would hold others up: on many, in slices between which the event loop does whatever else has come; and the
same again and again, with rests between."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from typing import TypeVar

Item = TypeVar("Item")
FEW = 16
"""So many are done at once."""
SLICE = 4
"""Of more, as many at a time: some three milliseconds for whoever waits behind them, several times over, since what is
read takes a few turns of the loop until it is sent."""


class Slices:
    """Does many things one after the other, some of them at a time; ``soon`` runs something after what waits now."""

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
    """Does ``step`` with what is asked for: at once, and then what is asked for meanwhile together, after a rest.

    Args:
        step: takes all that was asked for since it was last done.
        later: runs something when a rest is over.
    """

    def __init__(self, step: Callable[[set[str]], None], later: Callable[[Callable[[], None]], object]) -> None:
        self._step = step
        self._later = later
        self.waiting: set[str] = set()
        """What is to be done after the rest."""
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

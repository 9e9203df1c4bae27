"""Work on many, in slices, between which the event loop does whatever else has come."""

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

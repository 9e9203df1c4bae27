"""Work that would block the event loop, done in slices; and work that is requested often, throttled."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from typing import TypeVar

Item = TypeVar("Item")
AT_ONCE = 16
"""Number of items that are processed at once."""
SLICE = 4
"""Number of items in a slice, where there are more: about three milliseconds in which other work waits, several times
in a row, since what is read takes a few iterations of the event loop until it is sent."""


class WorkQueue:
    """Queue of work that runs in order, in slices; ``soon`` runs a function after what the event loop already waits to
    run."""

    def __init__(self, soon: Callable[[Callable[[], None]], object]) -> None:
        self._soon = soon
        self._rest: deque[Callable[[], None]] = deque()

    def run(self, step: Callable[[Item], None], items: Collection[Item], *, in_order: bool = False) -> None:
        """Call ``step`` with each of ``items``: a few at once, many in slices.

        Args:
            step: the work on one item.
            items: the items, in order.
            in_order: whether to wait until the work that was queued earlier is done.
        """
        if len(items) <= AT_ONCE and not (in_order and self._rest):
            for item in items:
                step(item)
            return
        idle = not self._rest
        self._rest.extend(_bound(step, item) for item in items)
        if idle:
            self._soon(self._run_slice)

    def finish(self) -> None:
        """Do all that is left at once."""
        while self._rest:
            self._rest.popleft()()

    def _run_slice(self) -> None:
        for _ in range(min(SLICE, len(self._rest))):
            self._rest.popleft()()
        if self._rest:
            self._soon(self._run_slice)


def _bound(step: Callable[[Item], None], item: Item) -> Callable[[], None]:
    return lambda: step(item)


class Throttle:
    """Throttle: calls ``step`` at once, and then with all items that were requested meanwhile, after a pause.

    Args:
        step: called with all that was requested since its last call.
        later: calls a function when the pause is over.
    """

    def __init__(self, step: Callable[[set[str]], None], later: Callable[[Callable[[], None]], object]) -> None:
        self._step = step
        self._later = later
        self._waiting: set[str] = set()
        """Items to process after the pause."""
        self._pausing = False

    def ask(self, items: Collection[str]) -> None:
        """Have these items processed."""
        self._waiting.update(items)
        if self._waiting and not self._pausing:
            self._run()

    def is_waiting(self, item: str) -> bool:
        """Return whether an item is to be processed after the pause."""
        return item in self._waiting

    def _run(self) -> None:
        items = set(self._waiting)
        self._waiting.clear()
        self._pausing = True
        self._step(items)
        self._later(self._paused)

    def _paused(self) -> None:
        self._pausing = False
        self.ask(())

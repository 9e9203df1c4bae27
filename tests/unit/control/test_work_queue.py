"""Work on many in slices: what is done at once, what waits, and in which order."""

from __future__ import annotations

from collections.abc import Callable

from xds.control.work_queue import AT_ONCE, SLICE, Throttle, WorkQueue


class Loop:
    """An event loop that is the test."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []
        self.done: list[object] = []
        self.queue = WorkQueue(self.waiting.append)

    def turn(self) -> None:
        waiting, self.waiting[:] = list(self.waiting), []
        for each in waiting:
            each()


def test_few_items_are_done_at_once() -> None:
    loop = Loop()
    loop.queue.run(loop.done.append, range(AT_ONCE))
    assert len(loop.done) == AT_ONCE
    assert not loop.waiting


def test_many_items_are_done_in_slices_and_a_few_overtake_them() -> None:
    loop = Loop()
    loop.queue.run(loop.done.append, range(AT_ONCE + SLICE))
    assert not loop.done
    loop.turn()
    assert loop.done == list(range(SLICE))
    loop.queue.run(loop.done.append, ["urgent"])
    assert loop.done[-1] == "urgent"
    while loop.waiting:
        loop.turn()
    assert [each for each in loop.done if each != "urgent"] == list(range(AT_ONCE + SLICE))


def test_ordered_work_does_not_overtake() -> None:
    loop = Loop()
    loop.queue.run(loop.done.append, range(2 * AT_ONCE))
    loop.queue.run(loop.done.append, ["after"], in_order=True)
    while loop.waiting:
        loop.turn()
    assert loop.done == [*range(2 * AT_ONCE), "after"]


def test_queued_work_can_be_run_at_once() -> None:
    loop = Loop()
    loop.queue.run(loop.done.append, range(5 * AT_ONCE))
    loop.turn()
    loop.queue.finish()
    assert loop.done == list(range(5 * AT_ONCE))
    loop.turn()
    assert not loop.waiting
    loop.queue.run(loop.done.append, range(2 * AT_ONCE))
    assert loop.waiting, "and then it begins anew"


def test_requests_within_the_interval_are_run_once_after_it() -> None:
    resting: list[Callable[[], None]] = []
    done: list[set[str]] = []
    rests = Throttle(done.append, resting.append)
    rests.ask(())
    rests.ask({"a"})
    assert done == [{"a"}], "at once"
    rests.ask({"b"})
    rests.ask({"b", "c"})
    assert done == [{"a"}]
    resting.pop()()
    assert done == [{"a"}, {"b", "c"}]
    resting.pop()()
    assert not resting, "nothing was asked for in the second rest"
    rests.ask({"d"})
    assert done[-1] == {"d"}

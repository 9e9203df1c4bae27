"""Index rules and the watch loop, on a Consul that is a script."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from xds.sources.consul.blocking import Backoff, IndexRules, Pace, Watch
from xds.sources.consul.client import ConsulError, Reply

WAIT = 40.0


def rules_at(index: int) -> IndexRules:
    rules = IndexRules()
    rules.answered(index, elapsed_s=0, wait_s=WAIT)
    return rules


def test_the_first_read_does_not_block_and_gives_the_index() -> None:
    rules = IndexRules()
    assert rules.index is None
    assert not rules.answered(7, elapsed_s=0, wait_s=WAIT)
    assert rules.index == 7


def test_an_index_is_at_least_one() -> None:
    assert rules_at(0).index == 1


def test_a_change_advances_the_index() -> None:
    rules = rules_at(7)
    assert not rules.answered(9, elapsed_s=0.1, wait_s=WAIT)
    assert rules.index == 9


def test_a_timeout_keeps_the_index() -> None:
    rules = rules_at(7)
    assert not rules.answered(7, elapsed_s=WAIT, wait_s=WAIT)
    assert rules.index == 7


@pytest.mark.parametrize(("index", "elapsed"), [(6, WAIT), (6, 0.1), (7, 0.1)])
def test_a_lower_index_or_an_early_answer_with_the_same_one_means_a_replaced_state(index: int, elapsed: float) -> None:
    rules = rules_at(7)
    assert rules.answered(index, elapsed_s=elapsed, wait_s=WAIT)
    assert rules.index is None


def test_backoff_doubles_up_to_a_bound_is_jittered_and_starts_over() -> None:
    backoff = Backoff(random.Random(1))
    waits = [backoff.after(ConsulError("down")) for _ in range(12)]
    assert all(0.05 <= wait <= 5 for wait in waits)
    assert waits[-1] >= 2.5
    backoff.reset()
    assert backoff.after(ConsulError("down")) <= 0.1


def test_retries_after_a_missing_permission_or_a_full_server_are_slow() -> None:
    backoff = Backoff(random.Random(1))
    assert backoff.after(ConsulError("no", 403)) >= 5
    assert backoff.after(ConsulError("too many", 429)) >= 2.5


def test_a_few_reads_in_a_row_do_not_wait_and_many_are_paced() -> None:
    pace = Pace(1.0)
    assert [pace.next_wait(100.0) for _ in range(5)] == [0, 0, 0, 1, 2]
    assert pace.next_wait(200.0) == 0


class Script:
    """Answers reads in turn; then blocks for ever. ``asked`` has the index of each read."""

    def __init__(self, *answers: Reply | ConsulError) -> None:
        self.answers = list(answers)
        self.asked: list[int | None] = []
        self.blocked = asyncio.Event()
        self.cancelled = 0

    async def read(self, index: int | None, wait_s: float) -> Reply:
        self.asked.append(index)
        if not self.answers:
            self.blocked.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        answer = self.answers.pop(0)
        if isinstance(answer, ConsulError):
            raise answer
        return answer


def watch(script: Script, deliver: Callable[[Reply], object], replaced: Callable[[], None] = lambda: None) -> Watch:
    return Watch(
        "test",
        script.read,
        deliver,
        on_replaced=replaced,
        report=lambda *_: None,
        pace_s=0,
        patience=lambda: 30.0,
        chance=random.Random(1),
    )


async def run_until_blocked(script: Script, watched: Watch) -> None:
    task = asyncio.create_task(watched.run())
    async with asyncio.timeout(10):
        await script.blocked.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_each_answer_is_delivered_and_the_next_query_waits_for_its_index() -> None:
    script = Script(Reply("a", 5), Reply("b", 6))
    seen: list[Reply] = []
    await run_until_blocked(script, watch(script, seen.append))
    assert [r.data for r in seen] == ["a", "b"]
    assert script.asked == [None, 5, 6]


async def test_an_error_changes_nothing_and_the_next_read_does_not_block() -> None:
    script = Script(Reply("a", 5), ConsulError("500"), Reply("b", 5))
    seen: list[Reply] = []
    watched = watch(script, seen.append)
    await run_until_blocked(script, watched)
    assert [r.data for r in seen] == ["a", "b"]
    assert script.asked == [None, 5, None, 5]
    assert watched.state.error is None


async def test_a_refused_answer_counts_as_a_failure_and_is_read_again() -> None:
    script, taken = Script(Reply("filtered", 5), Reply("whole", 5)), []

    def take(reply: Reply) -> None:
        if reply.data == "filtered":
            raise ConsulError("may not see everything")
        taken.append(reply.data)

    await run_until_blocked(script, watch(script, take))
    assert taken == ["whole"]
    assert script.asked == [None, None, 5]


async def test_a_replaced_state_is_reported_and_read_again() -> None:
    script = Script(Reply("a", 9), Reply("old", 4), Reply("new", 4))
    told: list[bool] = []
    seen: list[Reply] = []
    await run_until_blocked(script, watch(script, seen.append, lambda: told.append(True)))
    assert told == [True]
    assert script.asked == [None, 9, None, 4]
    assert seen[-1].data == "new"


async def test_reading_again_does_not_wait_for_the_blocking_query() -> None:
    script = Script(Reply("a", 5))
    seen: list[Reply] = []
    watched = watch(script, seen.append)
    task = asyncio.create_task(watched.run())
    await script.blocked.wait()
    script.blocked.clear()
    script.answers = [Reply("b", 3)]
    watched.read_again()
    async with asyncio.timeout(10):
        await script.blocked.wait()
    assert script.asked == [None, 5, None, 3]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_cancelling_a_watch_cancels_its_query() -> None:
    script = Script()
    await run_until_blocked(script, watch(script, lambda _: None))
    assert script.cancelled == 1

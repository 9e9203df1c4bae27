"""Turns of large responses."""

from __future__ import annotations

import asyncio

import pytest

from xds.ads import turns as turns_module
from xds.ads.turns import AT_ONCE, Turns


class Waiting:
    """Somebody who waits for a turn."""

    def __init__(self) -> None:
        self.woken = asyncio.Event()

    def wake(self) -> None:
        self.woken.set()


def test_large_responses_take_turns_in_the_order_of_asking() -> None:
    turns = Turns()
    everybody = [Waiting() for _ in range(AT_ONCE + 3)]
    for each in everybody:
        turns.ask(each.wake)
    *having, second, third, fourth = everybody
    assert [turns.has(each.wake) for each in everybody] == [True] * len(having) + [False] * 3
    assert [each.woken.is_set() for each in everybody] == [True] * len(having) + [False] * 3
    turns.done(second.wake)
    assert not third.woken.is_set(), "those before still have their turn"
    turns.done(having[-1].wake)
    assert third.woken.is_set()
    assert turns.has(third.wake)
    assert not fourth.woken.is_set()
    turns.done(third.wake)
    assert not turns.has(third.wake)
    assert fourth.woken.is_set()


async def test_a_turn_is_given_away_even_if_what_was_made_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns_module, "PASS_ON_S", 0.01)
    turns = Turns()
    everybody = [Waiting() for _ in range(AT_ONCE + 1)]
    for each in everybody:
        turns.ask(each.wake)
    assert turns.writes(everybody[0].wake) is not None
    assert not turns.has(everybody[-1].wake)
    async with asyncio.timeout(20):
        await everybody[-1].woken.wait()
    assert turns.has(everybody[-1].wake)


async def test_who_writes_without_a_turn_asks_again_when_it_has_written() -> None:
    turns = Turns()
    everybody = [Waiting() for _ in range(AT_ONCE + 2)]
    for each in everybody:
        turns.ask(each.wake)
    assert turns.writes(everybody[AT_ONCE].wake) is None
    for each in everybody[:AT_ONCE]:
        turns.done(each.wake)
    assert not turns.has(everybody[AT_ONCE].wake)
    assert turns.has(everybody[AT_ONCE + 1].wake)

"""Slots of large responses."""

from __future__ import annotations

import asyncio

import pytest

from xds.ads import slots as slots_module
from xds.ads.slots import AT_ONCE, Slots


class Waiting:
    """Somebody who waits for a turn."""

    def __init__(self) -> None:
        self.woken = asyncio.Event()

    def wake(self) -> None:
        self.woken.set()


def test_large_responses_get_slots_in_the_order_of_requests() -> None:
    slots = Slots()
    everybody = [Waiting() for _ in range(AT_ONCE + 3)]
    for each in everybody:
        slots.ask(each.wake)
    *having, second, third, fourth = everybody
    assert [slots.has(each.wake) for each in everybody] == [True] * len(having) + [False] * 3
    assert [each.woken.is_set() for each in everybody] == [True] * len(having) + [False] * 3
    slots.done(second.wake)
    assert not third.woken.is_set(), "the earlier ones still have their slots"
    slots.done(having[-1].wake)
    assert third.woken.is_set()
    assert slots.has(third.wake)
    assert not fourth.woken.is_set()
    slots.done(third.wake)
    assert not slots.has(third.wake)
    assert fourth.woken.is_set()


async def test_a_slot_is_released_even_if_the_write_is_unfinished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots_module, "PASS_ON_S", 0.01)
    slots = Slots()
    everybody = [Waiting() for _ in range(AT_ONCE + 1)]
    for each in everybody:
        slots.ask(each.wake)
    assert slots.writes(everybody[0].wake) is not None
    assert not slots.has(everybody[-1].wake)
    async with asyncio.timeout(20):
        await everybody[-1].woken.wait()
    assert slots.has(everybody[-1].wake)


async def test_a_stream_that_writes_without_a_slot_requests_one_again_when_it_has_written() -> None:
    slots = Slots()
    everybody = [Waiting() for _ in range(AT_ONCE + 2)]
    for each in everybody:
        slots.ask(each.wake)
    assert slots.writes(everybody[AT_ONCE].wake) is None
    for each in everybody[:AT_ONCE]:
        slots.done(each.wake)
    assert not slots.has(everybody[AT_ONCE].wake)
    assert slots.has(everybody[AT_ONCE + 1].wake)

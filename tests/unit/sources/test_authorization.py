"""Tests of the authorization of streams: shared requests, refusals that are kept, requests about served streams."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from xds.mesh.facts import Authorized, LeafKey, StreamKey, StreamRefused, StreamUndecided
from xds.mesh.mesh import Batch, Key
from xds.sources.consul import authorization
from xds.sources.consul.authorization import StreamAuthorizer
from xds.sources.consul.blocking import Backoff
from xds.sources.consul.client import ConsulError

WEB = LeafKey("web", "t")
NO_RIGHT = ConsulError("the token that the sidecar presents needs service:write on 'web'", 403)


class Asked:
    """A Consul whose answer about every token is ``error``; a test lets each request go on."""

    def __init__(self) -> None:
        self.error: ConsulError | None = None
        self.requests = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def check_may_write_service(self, service: str, token: str) -> None:
        self.requests += 1
        await self.may_answer.wait()
        if self.error is not None:
            raise self.error


class Authorizing:
    """An authorizer, and the last answer about each stream."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self.consul = Asked()
        self.answers: dict[object, object] = {}
        self._tasks = tasks
        self.authorizer = StreamAuthorizer(self.consul, self._take, random.Random(1))  # type: ignore[arg-type]
        self.rechecking = tasks.create_task(self.authorizer.recheck(tasks))

    def _take(self, batch: Batch) -> None:
        key: Key
        for key, fact in batch.items():
            self.answers.pop(key.of, None) if fact is None else self.answers.update({key.of: fact})

    def follow(self, *streams: StreamKey) -> None:
        self.authorizer.follow(frozenset(streams), self._tasks)

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not true():  # noqa: ASYNC110 - the authorizer has no event for it
                await asyncio.sleep(0.001)


@asynccontextmanager
async def authorizing() -> AsyncIterator[Authorizing]:
    async with asyncio.TaskGroup() as tasks:
        made = Authorizing(tasks)
        yield made
        made.follow()
        made.rechecking.cancel()


def stream(number: int, leaf: LeafKey = WEB) -> StreamKey:
    return StreamKey(leaf, str(number))


async def test_streams_that_arrive_together_share_a_request() -> None:
    async with authorizing() as made:
        many = [stream(number) for number in range(100)]
        made.follow(*many)
        await made.until(lambda: len(made.answers) == 100)
        assert set(made.answers.values()) == {Authorized()}
        assert made.consul.requests == 1


async def test_a_stream_that_arrives_during_a_request_gets_the_next_answer() -> None:
    async with authorizing() as made:
        made.consul.may_answer.clear()
        made.follow(stream(1))
        await made.until(lambda: made.consul.requests == 1)
        made.follow(stream(1), stream(2))
        made.consul.may_answer.set()
        await made.until(lambda: len(made.answers) == 2)
        assert made.consul.requests == 2


async def test_streams_of_a_burst_gather_for_the_next_request(monkeypatch: pytest.MonkeyPatch) -> None:
    sleep, pauses, over = asyncio.sleep, list[float](), asyncio.Semaphore(0)

    async def pause(seconds: float) -> None:
        if seconds < 1000:
            await sleep(seconds)
        else:
            pauses.append(seconds)
            await over.acquire()

    monkeypatch.setattr(authorization, "GATHERING_PAUSE", 1000.0)
    monkeypatch.setattr(authorization, "LONGEST_PAUSE", 3000.0)
    monkeypatch.setattr(asyncio, "sleep", pause)
    async with authorizing() as made:
        made.follow(stream(0))
        for burst in (1, 2, 3):
            await made.until(lambda burst=burst: len(pauses) == burst)  # type: ignore[misc]
            for number in range(5 * burst):
                made.follow(*map(stream, range(number)))
            assert made.consul.requests == burst
            over.release()
        await made.until(lambda: len(pauses) == 4)
        assert set(made.answers.values()) == {Authorized()}
        assert len(made.answers) == 14
        assert pauses == [1000.0, 2000.0, 3000.0, 3000.0]
        over.release()


@pytest.mark.parametrize(
    ("token", "error", "unauthenticated"),
    [
        ("", NO_RIGHT, True),
        ("t", NO_RIGHT, False),
        ("gone", ConsulError("403 (ACL not found)", 403), True),
    ],
)
async def test_a_refusal_says_what_is_missing_and_answers_others_for_a_while(
    token: str, error: ConsulError, unauthenticated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaf = LeafKey("web", token)
    async with authorizing() as made:
        made.consul.error = error
        made.follow(stream(1, leaf))
        await made.until(lambda: len(made.answers) == 1)
        (refusal,) = made.answers.values()
        assert isinstance(refusal, StreamRefused)
        assert refusal.unauthenticated == unauthenticated
        assert "consul acl token create -service-identity web" in refusal.reason
        made.consul.error = None
        made.follow(stream(2, leaf))
        assert made.answers == {stream(2, leaf): refusal}
        assert made.consul.requests == 1
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: 1e12)
        made.follow(stream(3, leaf))
        monkeypatch.undo()
        await made.until(lambda: made.answers == {stream(3, leaf): Authorized()})


async def test_without_an_answer_of_consul_a_new_stream_waits_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backoff, "after", lambda *_: 0.01)
    async with authorizing() as made:
        made.consul.error = ConsulError("no leader", 500)
        made.follow(stream(1))
        await made.until(lambda: made.answers.get(stream(1)) == StreamUndecided("no leader"))
        made.consul.error = None
        await made.until(lambda: made.answers.get(stream(1)) == Authorized())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RECHECK_INTERVAL", "CONFIRMATION_PAUSE", "LOOK_INTERVAL"):
        monkeypatch.setattr(authorization, name, 0.01)


@pytest.mark.usefixtures("quick")
async def test_a_served_stream_is_authorized_again() -> None:
    async with authorizing() as made:
        made.follow(stream(1), stream(2))
        await made.until(lambda: made.consul.requests > 3)
        made.consul.error = ConsulError("no leader", 500)
        asked = made.consul.requests
        await made.until(lambda: made.consul.requests > asked + 3)
        assert set(made.answers.values()) == {Authorized()}, "an outage ends no stream"
        made.consul.error = NO_RIGHT
        await made.until(lambda: all(isinstance(each, StreamRefused) for each in made.answers.values()))


@pytest.mark.usefixtures("quick")
async def test_a_refusal_that_is_not_confirmed_ends_no_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    async with authorizing() as made:
        made.follow(stream(1))
        await made.until(lambda: len(made.answers) == 1)
        found = iter([NO_RIGHT, None] * 5)
        answered = asyncio.Event()

        async def check(service: str, token: str) -> None:
            error = next(found, None)
            if error is not None:
                raise error
            if next(found, "end") == "end":
                answered.set()

        monkeypatch.setattr(made.consul, "check_may_write_service", check)
        async with asyncio.timeout(20):
            await answered.wait()
        assert made.answers == {stream(1): Authorized()}


@pytest.mark.usefixtures("quick")
async def test_ended_streams_are_not_authorized_again() -> None:
    async with authorizing() as made:
        made.follow(stream(1))
        await made.until(lambda: len(made.answers) == 1)
        made.follow()
        assert made.answers == {}
        await made.until(lambda: not made.authorizer._due)
        asked = made.consul.requests
        await asyncio.sleep(0.05)
        assert made.consul.requests == asked

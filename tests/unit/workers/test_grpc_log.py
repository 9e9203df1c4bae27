"""Tests of gRPC's log: who takes which of its lines, and when it is left as it is."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from xds.ads.handshakes import Event, Finished
from xds.lab.processes import eventually
from xds.workers.grpc_log import VARIABLES, GrpcLog, take_over

FINISHED = (
    b"I1127 12:24:51.961192   16705 handshaker.cc:155] CallNextHandshakerLocked: error=OK shutdown=false index=2,"
    b" args={grpc.internal.endpoint_peer_address=ipv4:10.0.0.7:1, x=1}\n"
)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


async def test_connections_are_handed_over_and_the_rest_is_quoted(
    pipe: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    reader, writer = pipe
    events: list[Event] = []

    async def handed_over() -> bool:
        return len(events) == 1

    os.write(writer, b"a\x1b[31m\n\nW1127 12:24:51.961192   16705 server.cc:1] b\x1b[31m\n" + FINISHED)
    with GrpcLog(reader).followed(events.append):
        await eventually("the connection", handed_over)
    assert events == [Finished("10.0.0.7:1")]
    assert caplog.messages == [r"standard error: 'a\x1b[31m'", r"gRPC: 'b\x1b[31m'"]


async def test_a_log_that_is_left_as_it_is_hands_nothing_over() -> None:
    with GrpcLog().followed(lambda _: pytest.fail("nothing was taken over")):
        pass


@pytest.mark.parametrize("name", VARIABLES)
def test_an_operator_who_asks_for_the_log_gets_it_as_it_is(name: str) -> None:
    environment = {name: "debug"}
    assert take_over(environment)._reader is None
    assert environment == {name: "debug"}

"""Tests of gRPC's log: who takes which of its lines, and when it is left as it is."""

from __future__ import annotations

import io
import os
import subprocess
import sys
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


async def test_connections_are_reported_and_other_output_is_quoted(
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


async def test_a_log_that_is_not_taken_over_reports_no_events() -> None:
    with GrpcLog().followed(lambda _: pytest.fail("nothing was taken over")):
        pass


PROGRAM = """
import os, sys
from xds.workers.grpc_log import take_over
found = take_over(os.environ)
os.write(2, b"of the process")
print("of Python", file=sys.stderr)
print(found._reader is None, os.environ.get("GRPC_TRACE"))
"""


@pytest.mark.parametrize(
    ("given", "said", "written"),
    [
        ({}, "False handshaker", "of Python"),
        ({"GRPC_TRACE": "handshaker"}, "False handshaker", "of Python"),
        ({"GRPC_TRACE": "api"}, "True api", "of the processof Python"),
        ({"GRPC_VERBOSITY": "debug"}, "True None", "of the processof Python"),
    ],
)
def test_standard_error_is_taken_over_unless_the_variables_are_set(
    given: dict[str, str], said: str, written: str
) -> None:
    inherited = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={**inherited, **given}, capture_output=True, text=True, check=True
    )
    assert (found.stdout.strip(), found.stderr.strip()) == (said, written)


def test_standard_error_is_not_taken_over_while_something_captures_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    environment: dict[str, str] = {}
    assert take_over(environment)._reader is None
    assert environment == {}

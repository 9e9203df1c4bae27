"""gRPC's messages out of a stream's data, and what is said of a call in headers."""

from __future__ import annotations

from itertools import pairwise
from urllib.parse import unquote

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xds.transport import messages
from xds.transport.headers import headers_block
from xds.transport.messages import Assembler, CallError, Status


@given(st.lists(st.binary(max_size=300), max_size=6), st.lists(st.integers(0, 1900), max_size=8))
def test_messages_come_out_as_they_went_in_however_they_were_cut(sent: list[bytes], at: list[int]) -> None:
    stream = b"".join(messages.prefix(len(message)) + message for message in sent)
    cuts = sorted({0, len(stream), *(each for each in at if each < len(stream))})
    assembler, found = Assembler(), list[bytes]()
    for start, stop in pairwise(cuts):
        found += assembler.feed(stream[start:stop])
    assert found == sent


def test_a_compressed_message_is_refused() -> None:
    with pytest.raises(CallError, match="compressed") as refused:
        list(Assembler().feed(b"\x01\x00\x00\x00\x01x"))
    assert refused.value.status is Status.UNIMPLEMENTED


def test_a_message_that_is_too_large_is_refused_before_it_is_here() -> None:
    with pytest.raises(CallError, match="more than 8388608") as refused:
        list(Assembler().feed(messages.prefix(messages.MOST_MESSAGE + 1)))
    assert refused.value.status is Status.RESOURCE_EXHAUSTED


def test_what_came_before_a_message_that_is_refused_is_heard() -> None:
    found = Assembler().feed(messages.prefix(3) + b"one" + b"\x01\x00\x00\x00\x01x")
    assert next(found) == b"one"
    with pytest.raises(CallError, match="compressed"):
        next(found)


@given(st.text(st.characters(codec="utf-8"), max_size=200))
def test_whatever_is_said_at_the_end_fits_in_a_header(details: str) -> None:
    block = headers_block(*messages.trailers(Status.INTERNAL, details))
    decoded = {bytes(name): bytes(value) for name, value in hpack.Decoder().decode(block, raw=True)}
    assert decoded[b"grpc-status"] == b"13"
    assert unquote(decoded.get(b"grpc-message", b"").decode("ascii")) == details


@pytest.mark.parametrize(
    ("method", "kind", "grpc"),
    [
        (b"POST", b"application/grpc", True),
        (b"POST", b"application/grpc+proto", True),
        (b"GET", b"application/grpc", False),
        (b"POST", b"text/html", False),
    ],
)
def test_what_is_a_call(method: bytes, kind: bytes, grpc: bool) -> None:
    assert messages.is_grpc([(b":method", method), (b"content-type", kind)]) is grpc

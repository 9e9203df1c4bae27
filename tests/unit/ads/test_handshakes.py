"""Tests of what gRPC's log says of connections, in the words that gRPC 1.7x writes."""

from __future__ import annotations

import logging
import re

import pytest

from xds.ads.handshakes import (
    SILENT_CONNECTIONS,
    STREAM_TIMEOUT,
    Failed,
    Finished,
    Handshakes,
    Other,
    Parser,
    explanation,
)

HEADER = b"I1127 12:24:51.961192   16705 "
ARGUMENTS = b"args={endpoint=0x7f, args={grpc.internal.endpoint_local_address=ipv4:127.0.0.1:18000, %s, grpc.x=0x1}}"
PEER = ARGUMENTS % b"grpc.internal.endpoint_peer_address=ipv4:10.0.0.7:54078"
PEER_6 = ARGUMENTS % b"grpc.internal.endpoint_peer_address=ipv6:%5B::1%5D:80"
BEGUN = HEADER + b"handshaker.cc:155] CallNextHandshakerLocked: error=OK shutdown=false index=1, " + PEER + b"\n"
DONE = HEADER + b"handshaker.cc:155] CallNextHandshakerLocked: error=OK shutdown=false index=2, " + PEER + b"\n"


def failed(reason: bytes, peer: bytes = PEER) -> bytes:
    return (
        HEADER
        + b"handshaker.cc:155] CallNextHandshakerLocked: error=UNKNOWN: Ssl handshake failed (TSI_PROTOCOL_FAILURE):"
        + b" SSL_ERROR_SSL: error:100000c0:SSL routines:OPENSSL_internal:"
        + reason
        + b": OK\n=== Source Location Trace: ===\nsrc/core/util/status_helper.cc:68\n shutdown=false index=2, "
        + peer
        + b"\n"
    )


def test_a_failure_is_reported_with_its_address_and_reason_however_the_bytes_are_split() -> None:
    text = BEGUN + failed(b"WRONG_VERSION_NUMBER") + DONE + failed(b"TLSV1_ALERT_UNKNOWN_CA", PEER_6)
    expected = [
        Failed("10.0.0.7:54078", "WRONG_VERSION_NUMBER", "OK"),
        Finished("10.0.0.7:54078"),
        Failed("[::1]:80", "TLSV1_ALERT_UNKNOWN_CA", "OK"),
    ]
    assert Parser().feed(text) == expected
    for size in (1, 7, 100):
        parser = Parser()
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        assert [event for piece in pieces for event in parser.feed(piece)] == expected


def test_a_connection_that_is_closed_early_is_not_reported() -> None:
    text = HEADER + b"handshaker.cc:155] CallNextHandshakerLocked: error=UNKNOWN: Socket closed shutdown=false, "
    assert Parser().feed(text + PEER + b"\n") == []


def test_a_server_name_of_several_lines_is_left_out() -> None:
    name = b"E1127 12:24:51.961192   16705 ssl.cc:3238] No match found for server name: x\n2026 ERROR forged\nagain\n"
    assert Parser().feed(name + DONE) == [Finished("10.0.0.7:54078")]


def test_lines_that_are_not_about_a_handshake_are_kept() -> None:
    warning = b"E1127 12:24:51.961192   16705 server.cc:1] out of something\n"
    crash = b"Fatal Python error: Segmentation fault\n\n"
    noise = b"W1127 12:24:51.961192   16705 log.cc:102] Log level INFO is not suitable for production.\n"
    found = Parser().feed(b"before\n" + noise + BEGUN + warning + crash)
    assert found == [
        Other(b"before", grpc=False),
        Other(b"out of something", grpc=True),
        Other(b"Fatal Python error: Segmentation fault", grpc=False),
        Other(b"", grpc=False),
    ]


@pytest.mark.parametrize(
    ("reason", "detail", "words"),
    [
        ("WRONG_VERSION_NUMBER", "", "the client speaks plain text, and this port TLS"),
        ("PEER_DID_NOT_RETURN_A_CERTIFICATE", "", "--tls-client-ca requires one"),
        ("CERTIFICATE_VERIFY_FAILED", "certificate has expired", r"is refused \(certificate has expired\)"),
        ("TLSV1_ALERT_UNKNOWN_CA", "OK", "does not accept this server's certificate .its authority is unknown"),
        ("SSLV3_ALERT_CERTIFICATE_EXPIRED", "", "it has expired, by the client's clock"),
        ("SSLV3_ALERT_BAD_CERTIFICATE", "", "it is for another name"),
        ("SSLV3_ALERT_HANDSHAKE_FAILURE", "", r"does not accept this server's certificate \(SSLV3_ALERT_HANDSHAKE"),
        ("SOMETHING_NEW", "OK", "the handshake failed with SOMETHING_NEW"),
    ],
)
def test_a_failure_is_explained(reason: str, detail: str, words: str) -> None:

    assert re.search(words, explanation(Failed("10.0.0.7:1", reason, detail)))


def test_connections_without_a_call_are_reported_after_a_few(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    handshakes = Handshakes()
    for number in range(SILENT_CONNECTIONS - 1):
        handshakes.take(Finished(f"10.0.0.7:{number}"), now=number)
        handshakes.take(Finished(f"10.0.0.8:{number}"), now=number)
        handshakes.called(f"10.0.0.8:{number}")
    handshakes.check(now=5 + STREAM_TIMEOUT)
    assert not caplog.messages
    handshakes.take(Finished("10.0.0.7:99"), now=20)
    handshakes.check(now=19 + STREAM_TIMEOUT)
    assert not caplog.messages
    handshakes.check(now=20 + STREAM_TIMEOUT)
    (line,) = caplog.messages
    assert line.startswith("3 connections of 10.0.0.7 within a minute had no xDS stream: where its sidecar expects TLS")


def test_connections_that_are_far_apart_are_checks_of_the_port(caplog: pytest.LogCaptureFixture) -> None:
    handshakes = Handshakes()
    for number in range(20):
        handshakes.take(Finished(f"10.0.0.7:{number}"), now=number * 40)
        handshakes.check(now=number * 40 + STREAM_TIMEOUT)
    assert not caplog.messages


def test_connections_without_a_call_to_a_tls_port_are_not_counted(caplog: pytest.LogCaptureFixture) -> None:
    handshakes = Handshakes()
    handshakes.tls = True
    for number in range(20):
        handshakes.take(Finished(f"10.0.0.7:{number}"), now=0)
    handshakes.check(now=100)
    assert not caplog.messages

"""Tests of the command operators in strings that another service's owner wrote, and in formats of logs."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xds.policy.formats import OF_LOGS, OF_REQUESTS, FormatError, checked, header_value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("100%", "100%%"),
        ("100%% of %REQ(x-a)%", "100%% of %REQ(x-a)%"),
        ("%REQ(x-a?y)%:7", "%REQ(x-a?y)%:7"),
        ("%REQ(x-a):10%", "%REQ(x-a):10%"),
        ("%START_TIME%", "%START_TIME%"),
        ("%REQ(", "%%REQ("),
        ("%lower%", "%%lower%%"),
        ("%%ENVIRONMENT(HOME)%%", "%%ENVIRONMENT(HOME)%%"),
    ],
)
def test_a_value_that_is_accepted(text: str, expected: str) -> None:
    assert header_value(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "%ENVIRONMENT(CONSUL_HTTP_TOKEN)%",
        "%%%ENVIRONMENT(CONSUL_HTTP_TOKEN)%",
        "%FILE_CONTENT(/proc/self/environ)%",
        "%SECRET(leaf)%",
        "%FILTER_STATE(x)%",
        "%DYNAMIC_METADATA(a:b)%",
        "%DOWNSTREAM_PEER_CERT%",
        "%UPSTREAM_METADATA(a:b)%",
        "%HOSTNAME%",
        "%NOSUCH%",
        "%REQ(no/name)%",
        "%REQ%",
        "%PROTOCOL(x)%",
        "%START_TIME(%s)%",
        "a\nb",
        "a\0b",
        "x" * 16385,
    ],
)
def test_a_value_that_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        header_value(text)


def test_a_log_may_use_more_operators_than_a_header_but_not_all() -> None:
    for text in ("%DYNAMIC_METADATA(a:b)%", "%START_TIME(%s.%3f)%", "%GRPC_STATUS(CAMEL_STRING)%", "%HOSTNAME%"):
        assert checked(text, OF_LOGS) == text
        with pytest.raises(FormatError):
            header_value(text)
    for text in ("%ENVIRONMENT(HOME)%", "%NOSUCH%", "%METADATA(NONE:x)%"):
        with pytest.raises(FormatError):
            checked(text, OF_LOGS)


@given(st.text(st.sampled_from("%AR(EQ)_x-a:1") | st.characters(codec="utf-8"), max_size=12))
def test_no_operator_but_the_listed_ones_is_ever_evaluated(text: str) -> None:
    try:
        made = header_value(text)
    except FormatError:
        return
    # As Envoy reads it: a doubled sign is one, and every other begins an operator.
    rest = made.replace("%%", "")
    for name in re.findall(r"%([^%(:]*)[^%]*%", rest):
        assert name in OF_REQUESTS
    assert rest.count("%") % 2 == 0

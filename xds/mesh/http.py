"""Conditions on HTTP requests, of routes and of intentions, and changes of headers."""

from __future__ import annotations

import enum
from dataclasses import dataclass

HTTP_PROTOCOLS = ("http", "http2", "grpc")
"""Protocols whose requests can be distinguished (Consul: "http-like"). Others are carried as TCP."""
MULTIPLEXED = ("http2", "grpc")
"""Protocols that are HTTP/2 from end to end."""


class Match(enum.Enum):
    """Kind of a comparison. ``PRESENT`` only requires that the value exists."""

    EXACT = "exact"
    PREFIX = "prefix"
    SUFFIX = "suffix"
    REGEX = "regex"
    CONTAINS = "contains"
    PRESENT = "present"


@dataclass(frozen=True, slots=True)
class TextMatch:
    """Comparison of a text; a regular expression (RE2) must match the whole text."""

    match: Match
    text: str = ""
    ignore_case: bool = False


@dataclass(frozen=True, slots=True)
class HeaderMatch:
    """Condition on a header, or with ``invert`` its opposite."""

    name: str
    value: TextMatch
    invert: bool = False


@dataclass(frozen=True, slots=True)
class QueryMatch:
    """Condition on a query parameter."""

    name: str
    value: TextMatch


@dataclass(frozen=True, slots=True)
class RequestMatch:
    """Conditions on a request, all of which must hold. Without conditions every request matches."""

    path: TextMatch | None = None
    headers: tuple[HeaderMatch, ...] = ()
    query: tuple[QueryMatch, ...] = ()
    methods: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HeaderChanges:
    """Changes of headers, each ordered by name so that equal changes are encoded equally.

    Values are Envoy's format strings, with no operators but those in `xds.policy.formats.OF_REQUESTS`.
    """

    add: tuple[tuple[str, str], ...] = ()
    set: tuple[tuple[str, str], ...] = ()
    remove: tuple[str, ...] = ()

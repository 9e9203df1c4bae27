"""What is asked of an HTTP request, by routes and by intentions alike, and what is done to its headers."""

from __future__ import annotations

import enum
from dataclasses import dataclass

HTTP_PROTOCOLS = ("http", "http2", "grpc")
"""The protocols whose requests can be told apart (Consul: "http-like"). Any other is carried as TCP."""
MULTIPLEXED = ("http2", "grpc")
"""Those that are HTTP/2 on every leg."""


class Match(enum.Enum):
    """How a text is compared. ``PRESENT``: it is enough that there is one."""

    EXACT = "exact"
    PREFIX = "prefix"
    SUFFIX = "suffix"
    REGEX = "regex"
    CONTAINS = "contains"
    PRESENT = "present"


@dataclass(frozen=True, slots=True)
class TextMatch:
    """One comparison; a regular expression (RE2) has to match the whole text."""

    match: Match
    text: str = ""
    ignore_case: bool = False


@dataclass(frozen=True, slots=True)
class HeaderMatch:
    """What a header has to be, or with ``invert`` must not be."""

    name: str
    value: TextMatch
    invert: bool = False


@dataclass(frozen=True, slots=True)
class QueryMatch:
    """What a query parameter has to be."""

    name: str
    value: TextMatch


@dataclass(frozen=True, slots=True)
class RequestMatch:
    """What a request has to be: all that is said here. One that says nothing is matched by every request."""

    path: TextMatch | None = None
    headers: tuple[HeaderMatch, ...] = ()
    query: tuple[QueryMatch, ...] = ()
    methods: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HeaderChanges:
    """What is done to headers; each in the order of the names, so that equal changes are encoded equally.

    Values are Envoy's format strings, with no operators but those in `xds.policy.formats.OF_REQUESTS`.
    """

    add: tuple[tuple[str, str], ...] = ()
    set: tuple[tuple[str, str], ...] = ()
    remove: tuple[str, ...] = ()

"""Encodes comparisons of texts, headers and paths."""

from __future__ import annotations

import re

from xds.mesh.http import HeaderMatch, Match, QueryMatch, TextMatch
from xds.wire.envoy.config import core_pb2 as core
from xds.wire.envoy.config import route_pb2 as route
from xds.wire.envoy.type import matcher_pb2 as matcher


def text(match: TextMatch) -> matcher.StringMatcher:
    """Return a comparison with a text that is present."""
    match match.match:
        case Match.EXACT:
            found = matcher.StringMatcher(exact=match.text)
        case Match.PREFIX:
            found = matcher.StringMatcher(prefix=match.text)
        case Match.SUFFIX:
            found = matcher.StringMatcher(suffix=match.text)
        case Match.CONTAINS:
            found = matcher.StringMatcher(contains=match.text)
        case _:
            return matcher.StringMatcher(safe_regex=matcher.RegexMatcher(regex=match.text))
    found.ignore_case = match.ignore_case
    return found


def header(match: HeaderMatch, *, missing_too: bool = False) -> route.HeaderMatcher:
    """Return a comparison with a header's value.

    A missing header matches nothing, inverted or not, as in Envoy and so in Consul; with ``missing_too`` it matches
    where the comparison is inverted.
    """
    if match.value.match is Match.PRESENT:
        return route.HeaderMatcher(name=match.name, present_match=True, invert_match=match.invert)
    return route.HeaderMatcher(
        name=match.name,
        string_match=text(match.value),
        invert_match=match.invert,
        treat_missing_header_as_empty=match.invert and missing_too,
    )


def methods(names: tuple[str, ...]) -> route.HeaderMatcher:
    """Return a condition that the method is one of some."""
    pattern = "|".join(map(re.escape, names))
    return route.HeaderMatcher(
        name=":method", string_match=matcher.StringMatcher(safe_regex=matcher.RegexMatcher(regex=pattern))
    )


def query(match: QueryMatch) -> route.QueryParameterMatcher:
    """Return a comparison with a query parameter."""
    if match.value.match is Match.PRESENT:
        return route.QueryParameterMatcher(name=match.name, present_match=True)
    return route.QueryParameterMatcher(name=match.name, string_match=text(match.value))


def header_options(changes: tuple[tuple[str, str], ...], action: int) -> list[core.HeaderValueOption]:
    """Return headers to add or to set. Envoy evaluates the command operators (``%...%``) in a value."""
    return [
        core.HeaderValueOption(header=core.HeaderValue(key=name, value=value), append_action=action)  # type: ignore[arg-type]
        for name, value in changes
    ]

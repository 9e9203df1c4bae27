"""Decodes conditions on HTTP requests in routers and intentions, and changes of headers."""

from __future__ import annotations

from xds.mesh.http import HeaderChanges, HeaderMatch, Match, QueryMatch, RequestMatch, TextMatch
from xds.policy.formats import FormatError, header_value
from xds.sources.decode.values import Fields, header_name

LONGEST_PARAMETER = 1024
"""Bytes of a query parameter's name that Envoy takes."""


def request_match(fields: Fields, *, query: bool = True) -> RequestMatch:
    """Decode ``Match.HTTP`` of a route and, without ``query``, ``HTTP`` of a permission."""
    found = RequestMatch(
        path=_path(fields),
        headers=tuple(_header(header) for header in fields.each("Header")),
        query=tuple(map(_query, fields.each("QueryParam"))) if query else (),
        methods=tuple(method.upper() for method in fields.texts("Methods")),
    )
    fields.done()
    return found


def _path(fields: Fields) -> TextMatch | None:
    kinds = {"PathExact": Match.EXACT, "PathPrefix": Match.PREFIX, "PathRegex": Match.REGEX}
    found = {field: text for field in kinds if (text := fields.text(field))}
    if len(found) > 1:
        fields.problem(f"{fields.where}: give one of {', '.join(kinds)}, not {len(found)} of them")
    for field, text in found.items():
        if field == "PathRegex":
            _check_expression(fields, field, text)
        elif not text.startswith("/"):
            fields.report(field, f"a path begins with a slash, not {text!r}")
        return TextMatch(kinds[field], text)
    return None


def _check_expression(fields: Fields, field: str, text: str) -> None:
    wrong = fields.limits.expressions.problem(text)
    if wrong is not None:
        fields.report(field, wrong)


def _check_header_name(fields: Fields, name: str) -> None:
    wrong = header_name(name.removeprefix(":"))  # :method and similar ones may be matched
    if wrong is not None:
        fields.report("Name", wrong)


_KINDS = {"Exact": Match.EXACT, "Prefix": Match.PREFIX, "Suffix": Match.SUFFIX, "Contains": Match.CONTAINS}


def _header(fields: Fields) -> HeaderMatch:
    name = fields.text("Name")
    _check_header_name(fields, name)
    found = HeaderMatch(name, _text(fields, _KINDS), fields.flag("Invert"))
    fields.done()
    return found


def _query(fields: Fields) -> QueryMatch:
    name = fields.text("Name")
    if not 0 < len(name.encode("utf-8", "replace")) <= LONGEST_PARAMETER:
        fields.report("Name", f"expected 1 to {LONGEST_PARAMETER} bytes")
    found = QueryMatch(name, _text(fields, {"Exact": Match.EXACT}))
    fields.done()
    return found


def _text(fields: Fields, kinds: dict[str, Match]) -> TextMatch:
    found = {field: text for field in (*kinds, "Regex") if (text := fields.text(field))}
    present, ignore_case = fields.flag("Present"), fields.flag("IgnoreCase")
    if len(found) + present != 1:
        fields.problem(f"{fields.where}: give one of {', '.join((*kinds, 'Regex', 'Present'))}")
    for field, text in found.items():
        if field == "Regex":
            _check_expression(fields, field, text)
            return TextMatch(Match.REGEX, f"(?i:{text})" if ignore_case else text)
        return TextMatch(kinds[field], text, ignore_case)
    return TextMatch(Match.PRESENT)


def header_changes(fields: Fields) -> HeaderChanges:
    """Decode ``RequestHeaders`` and ``ResponseHeaders``.

    Values are Envoy's format strings, which the sidecars of all callers evaluate: one that uses an operator that it may
    not (`xds.policy.formats`) is left out.
    """
    removed = fields.texts("Remove")
    found = HeaderChanges(_values(fields, "Add"), _values(fields, "Set"), removed)
    for name in removed:
        _check_changed(fields, "Remove", name)
    fields.done()
    return found


def _values(fields: Fields, field: str) -> tuple[tuple[str, str], ...]:
    found = []
    for name, value in fields.pairs(field):
        _check_changed(fields, field, name)
        try:
            found.append((name, header_value(value)))
        except FormatError as error:
            fields.leave_out(f"{field}[{name!r}]", str(error))
    return tuple(found)


def _check_changed(fields: Fields, field: str, name: str) -> None:
    wrong = header_name(name)
    if wrong is not None:
        fields.report(field, wrong)
    elif name.lower() == "host":
        fields.report(field, "the Host header can't be changed this way")

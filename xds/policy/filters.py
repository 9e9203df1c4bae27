"""Parses and evaluates filter expressions, with which a service-resolver selects the instances of a subset.

Consul's language (documentation, "Filtering": ``Service.Meta.version == v2 and "canary" not in Service.Tags``) over the
known fields of an instance. An expression with any other field is refused when it is parsed, because it would select
wrong instances.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from xds.mesh.facts import Instance
from xds.policy.expressions import ExpressionError, compiled

Predicate = Callable[[Mapping[str, Any]], bool]
Field = Callable[[Mapping[str, Any]], Any]


class FilterError(Exception):
    """Text that is no filter expression, or uses unknown fields; the message says which and where."""


FIELDS: Mapping[str, type] = {
    "Node.Node": str,
    "Node.Address": str,
    "Node.Meta": dict,
    "Service.ID": str,
    "Service.Service": str,
    "Service.Address": str,
    "Service.Port": int,
    "Service.Tags": list,
    "Service.Meta": dict,
    "Service.Weights.Passing": int,
    "Service.Weights.Warning": int,
}
"""Fields that a filter may use."""

DEEPEST = 50
LONGEST = 8192
"""Characters of one expression."""
MOST_TERMS = 256
"""Comparisons of one expression."""

_TOKEN = re.compile(
    r"""\s*(?:(?P<text>"[^"\n]*"|`[^`]*`)|(?P<sign>==|!=|\(|\))|(?P<word>[-A-Za-z0-9_][^\s()="!\[`]*"""
    r"""(?:\["[^"\n]*"\][^\s()="!\[`]*)*))"""
)
_STEP = re.compile(r'\.?(?:([^.\["]+)|\["([^"\n]*)"\])')
_SELECTOR = re.compile(r'[A-Za-z][A-Za-z0-9_]*(?:\.[A-Za-z][A-Za-z0-9_]*|\["[^"\n]*"\])*')
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?")
_ESCAPE = re.compile(r"""\\(?:([abfnrtv\\"])|x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|([0-7]{3})|(.?))""")
_ESCAPED = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\", '"': '"'}
"""The language is that of ``hashicorp/go-bexpr`` 0.1, and what is between double quotes a Go string without quotes."""


def chosen(expression: str, instance: Instance) -> bool:
    """Return whether ``expression`` selects ``instance``; an empty one selects all.

    Raises:
        FilterError: the expression can't be evaluated.
    """
    return parse_filter(expression)(_known(instance))


def _known(instance: Instance) -> dict[str, Any]:
    return {
        "Node.Node": instance.node,
        "Node.Address": instance.node_address,
        "Node.Meta": dict(instance.node_meta),
        "Service.ID": instance.service_id,
        "Service.Service": instance.name,
        "Service.Address": instance.service_address,
        "Service.Port": instance.port,
        "Service.Tags": list(instance.tags),
        "Service.Meta": dict(instance.meta),
        "Service.Weights.Passing": instance.weight_passing,
        "Service.Weights.Warning": instance.weight_warning,
    }


def parse_filter(expression: str) -> Predicate:
    """Parse an expression.

    Raises:
        FilterError: it is none, or too long a one.
    """
    return _parsed(expression)[0]


def terms(expression: str) -> int:
    """Return how many comparisons an expression makes of one instance.

    Raises:
        FilterError: as for `parse_filter`.
    """
    return _parsed(expression)[1]


@functools.lru_cache(maxsize=1024)
def _parsed(expression: str) -> tuple[Predicate, int]:
    if not expression.strip():
        return lambda _: True, 0
    if len(expression) > LONGEST:
        raise FilterError(f"longer than {LONGEST} characters")
    parser = _Parser(expression)
    found = parser.either()
    parser.end()
    return found, parser.terms


class _Parser:
    """Recursive-descent parser: ``or`` binds weakest, then ``and``, then ``not``."""

    def __init__(self, expression: str) -> None:
        self._expression = expression
        self._tokens = list(self._split())
        self._at = 0
        self.terms = 0
        """The comparisons that were read so far."""

    def _split(self) -> Iterator[tuple[str, str]]:
        text, position = self._expression.rstrip(), 0
        while position < len(text):
            found = _TOKEN.match(text, position)
            if found is None:
                raise FilterError(f"{self._expression!r}: not understood from {text[position:]!r} on")
            position = found.end()
            assert found.lastgroup is not None
            yield found.lastgroup, found.group(found.lastgroup)

    def _fail(self, expected: str) -> FilterError:
        here = repr(self._tokens[self._at][1]) if self._at < len(self._tokens) else "the end"
        return FilterError(f"{self._expression!r}: expected {expected}, not {here}")

    def _take(self, *words: str) -> bool:
        """Take these words, if they come next."""
        following = [text for kind, text in self._tokens[self._at : self._at + len(words)] if kind != "text"]
        if following != list(words):
            return False
        self._at += len(words)
        return True

    def _next(self, expected: str) -> tuple[str, str]:
        if self._at >= len(self._tokens):
            raise self._fail(expected)
        self._at += 1
        return self._tokens[self._at - 1]

    def end(self) -> None:
        if self._at < len(self._tokens):
            raise self._fail("'and', 'or' or the end")

    def either(self, depth: int = 0) -> Predicate:
        found = [self._both(depth)]
        while self._take("or"):
            found.append(self._both(depth))
        return found[0] if len(found) == 1 else lambda known: any(each(known) for each in found)

    def _both(self, depth: int) -> Predicate:
        found = [self._single(depth)]
        while self._take("and"):
            found.append(self._single(depth))
        return found[0] if len(found) == 1 else lambda known: all(each(known) for each in found)

    def _single(self, depth: int) -> Predicate:
        if depth > DEEPEST:
            raise FilterError(f"nested more than {DEEPEST} deep")
        if self._take("not"):
            return _not(self._single(depth + 1))
        if self._take("("):
            found = self.either(depth + 1)
            if not self._take(")"):
                raise self._fail("')'")
            return found
        return self._comparison()

    def _comparison(self) -> Predicate:
        self.terms += 1
        if self.terms > MOST_TERMS:
            raise FilterError(f"more than {MOST_TERMS} comparisons")
        kind, first = self._next("a field or a value")
        if kind == "sign":
            self._at -= 1
            raise self._fail("a field or a value")
        negated = self._take("not", "in")
        if negated or self._take("in"):
            held = _contains(self._holder(self._next("a field")[1]), _value(kind, first))
            return _not(held) if negated else held
        field = self._field(first)
        if self._take("is", "not", "empty"):
            return lambda known: bool(field(known))
        if self._take("is", "empty"):
            return lambda known: not field(known)
        for words, make in _COMPARISONS.items():
            if self._take(*words):
                if make is _contains:
                    field = self._holder(first)
                found = make(field, _value(*self._next("a value")))
                return _not(found) if words[0] in ("!=", "not") else found
        raise self._fail("a comparison such as '=='")

    def _holder(self, text: str) -> Field:
        """Return the object whose field a selector names."""
        if FIELDS.get(text) is int:
            raise FilterError(f"{self._expression!r}: {text} is a number, in which nothing is")
        return self._field(text)

    def _field(self, text: str) -> Field:
        if not _SELECTOR.fullmatch(text):
            raise FilterError(f"{self._expression!r}: {text!r} is no field")
        steps, position = [], 0
        while position < len(text):
            found = _STEP.match(text, position)
            if found is None:
                raise FilterError(f"{self._expression!r}: {text!r} is no field")
            steps.append(found.group(1) if found.group(1) is not None else found.group(2))
            position = found.end()
        for length in (2, 3):
            name = ".".join(steps[:length])
            if name in FIELDS and len(steps) == length:
                return lambda known: known[name]
            if FIELDS.get(name) is dict and len(steps) == length + 1:
                return lambda known: known[name].get(steps[length])
        raise FilterError(f"{self._expression!r}: {text!r} is not known of an instance here")


def _value(kind: str, text: str) -> str:
    if kind == "text":
        return text[1:-1] if text[0] == "`" else _ESCAPE.sub(_unescaped, text[1:-1])
    if kind == "sign":
        raise FilterError(f"expected a value, not {text!r}")
    if not (_SELECTOR.fullmatch(text) or _NUMBER.fullmatch(text)):
        raise FilterError(f"the value {text!r} has to be quoted: only words and plain numbers may stand alone")
    return text.replace('["', ".").replace('"]', "")  # as Consul joins the parts of a selector


def _unescaped(found: re.Match[str]) -> str:
    plain, *codes, wrong = found.groups()
    if wrong is not None:
        raise FilterError(f"{found[0]!r} is no escape sequence")
    if plain is not None:
        return _ESCAPED[plain]
    *hexadecimal, octal = codes
    digits = next((each for each in hexadecimal if each is not None), None)
    try:
        return chr(int(digits, 16) if digits is not None else int(octal, 8))
    except (ValueError, OverflowError):
        raise FilterError(f"{found[0]!r} is no character") from None


def _equals(field: Field, value: str) -> Predicate:
    return lambda known: (found := field(known)) is not None and str(found) == value


def _contains(field: Field, value: str) -> Predicate:
    return lambda known: value in (field(known) or ())


def _matches(field: Field, value: str) -> Predicate:
    try:
        pattern = compiled(value)
    except ExpressionError as error:
        raise FilterError(f"the regular expression {value!r} does not compile: {error}") from None
    return lambda known: (found := field(known)) is not None and bool(pattern.search(str(found)))


_COMPARISONS: Mapping[tuple[str, ...], Callable[[Field, str], Predicate]] = {
    ("==",): _equals,
    ("!=",): _equals,
    ("contains",): _contains,
    ("not", "contains"): _contains,
    ("matches",): _matches,
    ("not", "matches"): _matches,
}


def _not(inner: Predicate) -> Predicate:
    return lambda known: not inner(known)

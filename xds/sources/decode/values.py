"""Reads Consul's JSON field by field: what is not understood is reported with its place, and never raises."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from xds.policy.expressions import Allowance
from xds.policy.quotas import DEFAULT_QUOTAS, Quotas

Problem = Callable[[str], None]
"""Function that reports what can't be followed, in a sentence."""

LARGEST = 2**31 - 1
"""The largest number that is taken from a configuration; Envoy's fields hold no more."""

_DURATION = re.compile(r"-?(?:\d+(?:\.\d+)?(?:ns|us|µs|ms|s|m|h))+")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_MILLISECONDS = {"ns": 1e-6, "us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4, "h": 3.6e6}
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def milliseconds(text: str) -> int | None:
    """Return a Go duration (``1m30s``) in milliseconds, ``None`` if it is none. A negative one is -1."""
    total = exact_milliseconds(text)
    if total is None:
        return None
    return -1 if text.startswith("-") else round(min(total, LARGEST))


def exact_milliseconds(text: str) -> float | None:
    """Return how many milliseconds a Go duration has, whatever its sign; ``None`` if it is none."""
    if text in ("0", "+0", "-0"):
        return 0  # the only number that Go accepts without a unit
    if not _DURATION.fullmatch(text):
        return None
    return sum(float(number) * _MILLISECONDS[unit] for number, unit in _DURATION_PART.findall(text))


def header_name(text: str) -> str | None:
    """Return the problem with the name of a header (RFC 9110, 5.1), ``None`` where there is none."""
    return None if _HEADER_NAME.fullmatch(text) else f"{text!r} can't be the name of a header"


class Limits:
    """Limits on the configuration of one owner while it is read."""

    def __init__(self, quotas: Quotas = DEFAULT_QUOTAS) -> None:
        self.quotas = quotas
        self.expressions = Allowance(quotas.expressions)


class Fields:
    """Object of Consul's JSON.

    Args:
        data: the object; anything else is reported and treated as an empty one.
        where: its place in its entry, as an operator would write it; empty for the entry itself.
        problem: called with what is not understood.
        minor: called with what is left out, where the rest works without it; ``problem`` where there is no difference.
        limits: limits of one configuration; the default ones where none are given.
    """

    def __init__(
        self,
        data: Any,
        where: str,
        problem: Problem,
        minor: Problem | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.where = where
        self.problem = problem
        self.minor = minor or problem
        self.limits = limits or Limits()
        self._read: set[str] = set()
        self._data: Mapping[str, Any] = {}
        if isinstance(data, Mapping):
            self._data = data
        elif data is not None:
            problem(f"{where or 'the entry'}: expected fields, not {data!r}")

    def __bool__(self) -> bool:
        return bool(self._data)

    def at(self, field: str) -> str:
        """Return the place of a field."""
        return f"{self.where}.{field}" if self.where else field

    def report(self, field: str, what: str) -> None:
        """Report what is wrong with a field."""
        self.problem(f"{self.at(field)}: {what}")

    def leave_out(self, field: str, what: str) -> None:
        """Report why a field is left out, though the rest is followed."""
        self.minor(f"{self.at(field)}: {what}; it is left out")

    def raw(self, field: str) -> Any:
        """Return a field as it is, ``None`` where it is missing."""
        self._read.add(field)
        return self._data.get(field)

    def text(self, field: str) -> str:
        """Return a text, empty where there is none."""
        value = self.raw(field)
        if value is None or isinstance(value, str):
            return value or ""
        self.report(field, f"expected a text, not {value!r}")
        return ""

    def texts(self, field: str) -> tuple[str, ...]:
        """Return a list of texts."""
        value = self.raw(field) or []
        if isinstance(value, list) and all(isinstance(each, str) for each in value):
            return tuple(value)
        self.report(field, f"expected a list of texts, not {value!r}")
        return ()

    def flag(self, field: str) -> bool:
        """Return a flag; false where there is none."""
        value = self.raw(field)
        if value is None or isinstance(value, bool):
            return bool(value)
        self.report(field, f"expected true or false, not {value!r}")
        return False

    def number(self, field: str, most: int = LARGEST) -> int | None:
        """Return a number from 0 to ``most``; ``None`` where there is none."""
        value = self.raw(field)
        if value is None:
            return None
        try:
            number = None if isinstance(value, bool) else int(value)
        except (TypeError, ValueError, OverflowError):
            number = None
        if number is None or not 0 <= number <= most:
            self.report(field, f"expected a number from 0 to {most}, not {value!r:.60}; taken as not given")
            return None
        return number

    def percent(self, field: str) -> int | None:
        """Return a number from 0 to 100; ``None`` where there is none."""
        return self.number(field, 100)

    def positive(self, field: str) -> int | None:
        """Return a duration of at least a millisecond; ``None`` where there is none, or one of 0, which stands for
        none."""
        found = self.duration(field)
        if found is not None and found < 0:
            self.report(field, f"expected no negative duration, not {self.raw(field)!r}; taken as not given")
            return None
        return found or None

    def port(self, field: str) -> int | None:
        """Return a port; 0 is none."""
        port = self.number(field)
        if not port:
            return None
        if port > 65535:
            self.report(field, f"expected a port from 1 to 65535, not {port}; taken as not given")
            return None
        return port

    def duration(self, field: str) -> int | None:
        """Return a duration (Go's ``1m30s``, or nanoseconds) in milliseconds; -1 for any negative one, ``None`` for
        none."""
        value = self.raw(field)
        if value in (None, "", 0):
            return None
        if isinstance(value, int) and not isinstance(value, bool):
            return -1 if value < 0 else round(min(value / 1e6, LARGEST))
        found = milliseconds(value) if isinstance(value, str) else None
        if found is None:
            self.report(field, f"expected a duration such as 1m30s, not {value!r}; taken as not given")
        return found

    def limit(self, field: str) -> int | None:
        """Return a time limit in milliseconds; 0 lifts it (any negative duration, as from Consul 1.18 on)."""
        found = self.duration(field)
        return None if not found else max(found, 0)

    def choice(self, field: str, *choices: str) -> str:
        """Return one of some words, or an empty text."""
        value = self.text(field)
        if value and value not in choices:
            self.report(field, f"expected {' or '.join(map(repr, choices))}, not {value!r}; taken as not given")
            return ""
        return value

    def part(self, field: str) -> Fields:
        """Return an object in this one."""
        return Fields(self.raw(field), self.at(field), self.problem, self.minor, self.limits)

    def each(self, field: str) -> Iterator[Fields]:
        """Return the objects of a list in this one."""
        value = self.raw(field) or []
        if not isinstance(value, list):
            self.report(field, f"expected a list, not {value!r}")
            return
        for number, item in enumerate(value):
            yield Fields(item, f"{self.at(field)}[{number}]", self.problem, self.minor, self.limits)

    def named(self, field: str) -> Iterator[tuple[str, Fields]]:
        """Return the objects of a map in this one."""
        value = self.raw(field) or {}
        if not isinstance(value, Mapping):
            self.report(field, f"expected fields, not {value!r}")
            return
        for name, item in value.items():
            yield str(name), Fields(item, f"{self.at(field)}[{name!r}]", self.problem, self.minor, self.limits)

    def pairs(self, field: str) -> tuple[tuple[str, str], ...]:
        """Return a map of texts, sorted."""
        value = self.raw(field) or {}
        if isinstance(value, Mapping) and all(isinstance(each, str) for pair in value.items() for each in pair):
            return tuple(sorted(value.items()))
        self.report(field, f"expected texts by name, not {value!r}")
        return ()

    def skip(self, *fields: str) -> None:
        """Ignore these fields, which are known and do not matter here."""
        self._read.update(fields)

    def done(self) -> None:
        """Report the fields that were not read."""
        for field in sorted(self._data.keys() - self._read):
            if self._data[field] not in (None, "", 0, False, [], {}):
                self.report(field, "unknown field")

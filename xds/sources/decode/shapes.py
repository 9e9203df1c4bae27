"""Checks the types of values in Consul's answers where they are read.

A fact with a number in place of a text would fail far from here, where its origin is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def text(data: Mapping[str, Any], field: str, default: str | None = None) -> str:
    """Return a text.

    Raises:
        TypeError: the field is something else, or is missing where there is no ``default``.
    """
    value = data.get(field)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise TypeError(f"{field}: expected a text, not {type(value).__name__}")
    return value


def number(data: Mapping[str, Any], field: str, default: int = 0) -> int:
    """Return a whole number that 64 bits hold.

    Raises:
        TypeError: the field is something else.
    """
    value = data.get(field)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not -(2**63) <= value < 2**64:
        raise TypeError(f"{field}: expected a whole number, not {value!r:.40}")
    return value


def fields(data: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    """Return an object, an empty one where there is none.

    Raises:
        TypeError: the field is something else.
    """
    return as_fields(data.get(field), field)


def as_fields(value: object, where: str) -> Mapping[str, Any]:
    """Return ``value`` as an object.

    Raises:
        TypeError: it is something else.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(f"{where}: expected an object, not {type(value).__name__}")
    return value


def items(value: object, where: str) -> list[Any]:
    """Return ``value`` as a list, an empty one where there is none.

    Raises:
        TypeError: it is something else.
    """
    if value is None:
        return []
    if not isinstance(value, list | tuple):
        raise TypeError(f"{where}: expected a list, not {type(value).__name__}")
    return list(value)


def texts(data: Mapping[str, Any], field: str) -> tuple[str, ...]:
    """Return a list of texts.

    Raises:
        TypeError: the field is something else.
    """
    found = items(data.get(field), field)
    if not all(isinstance(each, str) for each in found):
        raise TypeError(f"{field}: expected a list of texts")
    return tuple(found)


def pairs(data: Mapping[str, Any], field: str) -> tuple[tuple[str, str], ...]:
    """Return a map of texts, sorted.

    Raises:
        TypeError: the field is something else.
    """
    found = fields(data, field)
    if not all(isinstance(each, str) for each in found.values()):
        raise TypeError(f"{field}: expected texts by name")
    return tuple(sorted(found.items())) if found else ()

"""Names of services: which can be used, and which spellings Consul considers one service.

Consul's catalog, intentions and config entries ignore letter case (``agent/consul/state``: indexes in lower case).
Identities do not: a certificate has one spelling. `fold` is Consul's comparison, `Spellings` says which spelling of a
service is its identity: that of the catalog.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping

CONNECT_PROXY = "connect-proxy"
"""Kind of a sidecar's registration in Consul."""
SIDECAR_SUFFIX = "-sidecar-proxy"
"""Suffix that Consul adds to a service's name for a sidecar without a name of its own."""
WILDCARD = "*"
"""Name for every service in an intention."""
_DOTTED_I = "\u0130"
"""Only character whose lower case is two characters in Python; Go's is one, the plain i."""
_CASED = (
    (0x80, 0x2D30), (0xA640, 0xA7FF), (0xFF21, 0xFF3B), (0x10400, 0x10600), (0x10C80, 0x10CB3), (0x118A0, 0x118C0),
    (0x16E40, 0x16E80), (0x1E900, 0x1E922),
)  # fmt: skip
"""The ranges outside ASCII that hold every character with a lower case. All of Unicode would take a tenth of a second
to search; a test compares."""


def usable_name(name: object) -> bool:
    """Return whether a service of this name can be asked for: one that changes the path of a URL could be another's."""
    return (
        isinstance(name, str)
        and bool(name)
        and name.isprintable()
        and name not in (".", "..")
        and not set("/\\?#%") & set(name)
    )


def fold(name: str) -> str:
    """Return the form of ``name`` in which Consul compares names: each character in lower case (Go's ToLower)."""
    if name.isascii():
        return name.lower()
    return "".join(map(_lower, name))


def _lower(character: str) -> str:
    # Not name.lower(): unlike Go, it converts a final sigma depending on the character before it.
    return "i" if character == _DOTTED_I else character.lower()


def same_letters(character: str) -> tuple[str, ...]:
    """Return every character that `fold` makes ``character`` of; that is a folded one."""
    found = [character]
    if character.isascii():
        if character != character.upper():
            found.append(character.upper())
        return (*found, *_FOLDED_TO_ASCII.get(character, ()))
    return (*found, *_cased().get(character, ()))


_FOLDED_TO_ASCII: Mapping[str, tuple[str, ...]] = {"i": (_DOTTED_I,), "k": ("\u212a",)}


@functools.cache
def _cased() -> Mapping[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for first, last in _CASED:
        for character in map(chr, range(first, last)):
            lower = _lower(character)
            if lower != character:
                found[lower] = (*found.get(lower, ()), character)
    return found


class Spellings:
    """Spelling of each service; immutable.

    Args:
        names: the names that are known, the most authoritative first. Of several spellings of one name the first
            counts.
    """

    def __init__(self, *names: Iterable[str]) -> None:
        found: dict[str, str] = {}
        self._odd: dict[str, str] = {}
        """The names that are not their own folded form, by that form."""
        for group in names:
            for name in sorted(group):
                folded = fold(name)
                if found.setdefault(folded, name) == name and folded != name:
                    self._odd[folded] = name
        self.names = frozenset(found.values())

    def of(self, name: str) -> str:
        """Return the spelling of the service that ``name`` means; ``name`` itself where there is no such service."""
        if name in self.names:
            return name
        folded = fold(name)
        return folded if folded in self.names else self._odd.get(folded, name)


def as_written(name: str) -> str:
    """Return ``name``: the spelling of a service where no catalog is known."""
    return name

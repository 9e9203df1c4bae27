"""Decodes large answers in a thread, and of lists only the entries that changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar, TypeVarTuple, Unpack

LARGE = 64 << 10
"""Bytes of an answer that is decoded in a thread: smaller ones take a few milliseconds."""

Decoded = TypeVar("Decoded")
Arguments = TypeVarTuple("Arguments")


async def off_loop(size: int, decode: Callable[[Unpack[Arguments]], Decoded], *arguments: *Arguments) -> Decoded:
    """Return what ``decode`` makes of an answer of ``size`` bytes, without holding up the event loop by a large one."""
    if size <= LARGE:
        return decode(*arguments)
    return await asyncio.to_thread(decode, *arguments)


class Remembered(Generic[Decoded]):
    """Decoder of the entries of a list that decodes only those that changed.

    They are compared as a whole: an index may be the same after a Consul was restored, and the entry another.

    Args:
        key: of an entry; entries that share one are decoded each time.
        decode: makes a fact of an entry.
    """

    def __init__(self, key: Callable[[Any], Hashable], decode: Callable[[Any], Decoded]) -> None:
        self._key = key
        self._decode = decode
        self._known: dict[Hashable, tuple[Any, Decoded]] = {}

    def __call__(self, entries: list[Any]) -> list[Decoded]:
        """Decode ``entries``."""
        known, now, found = self._known, dict[Hashable, tuple[Any, Decoded]](), list[Decoded]()
        for entry in entries:
            key = self._key(entry)
            before = known.get(key)
            fact = before[1] if before is not None and _same(before[0], entry) else self._decode(entry)
            now[key] = entry, fact
            found.append(fact)
        self._known = now
        return found


def _same(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except RecursionError:  # nested too deep to be compared
        return False

"""Config entries that are there for one test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xds.lab.mesh import Lab


class Entries:
    """Writes config entries, and takes them away again."""

    def __init__(self, lab: Lab, *entries: Mapping[str, Any]) -> None:
        self._lab = lab
        self._entries = entries

    async def __aenter__(self) -> None:
        for entry in self._entries:
            await self._lab.catalog.entry(entry)

    async def __aexit__(self, *error: object) -> None:
        for entry in reversed(self._entries):
            await self._lab.catalog.remove_entry(entry["Kind"], entry.get("Name", "mesh"))

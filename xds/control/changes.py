"""Differences between two states of resources, as names by type."""

from __future__ import annotations

from collections.abc import Mapping

from xds.envoy.resource import Resource

ResourcesByType = Mapping[str, Mapping[str, Resource]]
"""Resources by type, then by name."""
Changes = dict[str, set[str]]
"""Names of resources that differ, by type."""


def differences(before: ResourcesByType, after: ResourcesByType) -> Changes:
    """Return the names whose resource was added, changed or removed."""
    changes: Changes = {}
    for type_url in before.keys() | after.keys():
        old, new = before.get(type_url, {}), after.get(type_url, {})
        changed = {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}
        if changed:
            changes[type_url] = changed
    return changes


def merge(into: Changes, more: Changes) -> None:
    """Add the names of ``more`` to ``into``."""
    for type_url, changed in more.items():
        into.setdefault(type_url, set()).update(changed)

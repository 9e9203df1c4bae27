"""Finds the lines of things in the text of a mesh file.

A YAML file is read through its nodes, each of which has its line. JSON is YAML too, but a mesh of thousands of services
is written by a program, and a JSON parser decodes it fifty times as fast; then there are no lines, and the few that are
needed are counted in the text.
"""

from __future__ import annotations

import json
import re
from typing import Protocol

import yaml

Path = tuple[str | int, ...]
"""Place in a document: keys and list indices."""

_SPACE = re.compile(r"[ \t\n\r]*")
_decode = json.JSONDecoder().raw_decode


class Lines(Protocol):
    """Lines of everything in a text."""

    def of(self, path: Path) -> int:
        """Return the line of ``path``, or of the nearest thing around it that the text has, counted from 1."""


class YAMLLines:
    """The lines of a text that was composed of nodes."""

    def __init__(self, root: yaml.Node) -> None:
        self._root = root

    def of(self, path: Path) -> int:
        node, line = self._root, self._root.start_mark.line + 1
        for step in path:
            if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
                node = node.value[step]
                line = node.start_mark.line + 1
            elif isinstance(node, yaml.MappingNode):
                found = next(((key, value) for key, value in node.value if key.value == step), None)
                if found is None:
                    continue  # a step of the model only (the kind of a config entry), or a missing one
                line, node = found[0].start_mark.line + 1, found[1]
        return int(line)


class JSONLines:
    """The lines of a text that is JSON."""

    def __init__(self, text: str) -> None:
        self._text = text

    def of(self, path: Path) -> int:
        at = inside = self._after_space(0)
        for step in path:
            found = self._step(inside, step)
            if found is not None:
                at, inside = found
        return self._text.count("\n", 0, at) + 1

    def _step(self, at: int, step: str | int) -> tuple[int, int] | None:
        """Return where the member ``step`` of the value at ``at`` begins, and its value; ``None`` where it has none."""
        is_list = self._text[at] == "["
        if not is_list and self._text[at] != "{":
            return None
        at, number = self._after_space(at + 1), 0
        while self._text[at] not in "]}":
            begins, key = at, number
            if not is_list:
                key, at = _decode(self._text, at)
                at = self._after_space(self._after_space(at) + 1)
            if key == step:
                return begins, at
            _, at = _decode(self._text, at)
            at = self._after_space(at)
            if self._text[at] == ",":
                at = self._after_space(at + 1)
            number += 1
        return None

    def _after_space(self, at: int) -> int:
        found = _SPACE.match(self._text, at)
        assert found is not None
        return found.end()

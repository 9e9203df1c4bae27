"""Answers that nest deeper than any decoder goes: one entry of one service's owner must not make a list unreadable."""

from __future__ import annotations

import json

import ijson

DEEPEST = 64
"""Consul's own entries nest some ten levels; what is deeper is in maps that hold anything."""


def pruned(body: bytes) -> bytes:
    """Return the JSON ``body`` with null in place of what nests deeper than `DEEPEST`.

    It is read event by event, so its depth costs nothing.

    Raises:
        ValueError: it is not JSON.
    """
    builder = ijson.ObjectBuilder()
    depth = 0
    try:
        for event, value in ijson.basic_parse(body):
            starts, ends = event in ("start_map", "start_array"), event in ("end_map", "end_array")
            depth += starts
            if depth <= DEEPEST:
                builder.event(event, value)
            elif starts and depth == DEEPEST + 1:
                builder.event("null", None)
            depth -= ends
    except ijson.JSONError as error:
        raise ValueError(str(error)) from error
    # Unlike orjson this takes integers of any size; other numbers come as decimals.
    return json.dumps(builder.value, default=float).encode()

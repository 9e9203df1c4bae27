"""Prunes answers that nest deeper than decoders can: one owner's entry must not make a whole list unreadable."""

from __future__ import annotations

import json

import ijson

DEEPEST = 64
"""Levels that are kept. Consul's own entries nest some ten levels; deeper ones are in maps with arbitrary content."""


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
    # Unlike orjson, this parser accepts integers of any size, and returns other numbers as decimals.
    return json.dumps(builder.value, default=float).encode()

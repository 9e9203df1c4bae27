"""One entry of one owner makes no list unreadable, and no answer holds up the event loop."""

from __future__ import annotations

import json
import threading

import pytest

from xds.sources.consul.decoding import LARGE, Remembered, off_loop
from xds.sources.consul.pruning import DEEPEST, pruned


@pytest.mark.parametrize("opening", ["[", '{"a":'])
@pytest.mark.parametrize("depth", [1000, 100_000])
def test_nesting_that_is_too_deep_is_cut_off_and_the_rest_is_kept(opening: str, depth: int) -> None:
    closing = "]" if opening == "[" else "}"
    deep = opening * depth + "1" + closing * depth
    body = f'[{{"Name": "evil", "Meta": {deep}}}, {{"Name": "api", "Number": 18446744073709551616}}]'
    evil, api = json.loads(pruned(body.encode()))
    assert api == {"Name": "api", "Number": 18446744073709551616}
    assert evil["Name"] == "evil"


def test_the_deepest_allowed_nesting_is_kept() -> None:
    for depth in (1, DEEPEST - 1, DEEPEST):
        data = json.loads("[" * depth + "1" + "]" * depth)
        assert json.loads(pruned(json.dumps(data).encode())) == data


@pytest.mark.parametrize("body", [b"", b"[", b"[1,]", b"{", b"\xff", b"[1] 2"])
def test_invalid_json_is_a_value_error(body: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        pruned(body)


async def test_a_large_answer_is_decoded_in_a_thread() -> None:
    here = threading.get_ident()
    assert await off_loop(LARGE, threading.get_ident) == here
    assert await off_loop(LARGE + 1, threading.get_ident) != here


def test_an_unchanged_entry_is_not_decoded_again() -> None:
    decoded: list[str] = []

    def decode(entry: dict[str, str]) -> str:
        decoded.append(entry["Name"])
        return entry["Name"]

    remembered = Remembered[str](lambda entry: entry["Name"], decode)
    entries = [{"Name": "a", "X": "1"}, {"Name": "b", "X": "1"}]
    assert remembered(entries) == ["a", "b"]
    assert remembered([*entries, {"Name": "c"}]) == ["a", "b", "c"]
    assert remembered([{"Name": "a", "X": "2"}, entries[1]]) == ["a", "b"]
    assert decoded == ["a", "b", "c", "a"]

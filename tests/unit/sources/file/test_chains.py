"""A mesh file's discovery chains, compared with what Consul 1.16.1 answered for the same entries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.sources.chains import ENTRIES, NAMES, NEWER_ENTRIES, NEWER_NAMES, shape
from tests.unit.sources.file.meshes import document
from xds.mesh.names import as_written
from xds.sources import decode
from xds.sources.file.chains import ChainEntries, CompileError, compile_chain

RECORDED = json.loads((Path(__file__).parents[1] / "recorded" / "discovery-chains-1.16.json").read_text())


def compiled(name: str, *entries: dict[str, Any]) -> Any:
    found = document(entries=list(entries)).mesh.config_entries.bootstrap
    return compile_chain(name, ChainEntries.of(found, as_written), "dc1")


@pytest.mark.parametrize("name", [*NAMES, *NEWER_NAMES])
def test_both_compile_the_same_chain(name: str) -> None:
    ours = compiled(name, *ENTRIES, *NEWER_ENTRIES)
    assert shape(decode.chain(name, ours)) == shape(decode.chain(name, RECORDED[name]))


HTTP = {"Kind": "proxy-defaults", "Name": "global", "Config": {"protocol": "http"}}


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([{"Kind": "service-router", "Name": "a", "Routes": []}], "service-router/a: protocol 'tcp'"),
        (
            [
                {"Kind": "service-resolver", "Name": "a", "Redirect": {"Service": "b"}},
                {"Kind": "service-resolver", "Name": "b", "Redirect": {"Service": "a"}},
            ],
            "service-resolver/a: redirects in a circle",
        ),
        (
            [
                HTTP,
                {"Kind": "service-splitter", "Name": "a", "Splits": [{"Weight": 100, "Service": "b"}]},
                {"Kind": "service-splitter", "Name": "b", "Splits": [{"Weight": 100, "Service": "a"}]},
            ],
            "leads back to itself: a -> b -> a",
        ),
        (
            [
                {"Kind": "service-defaults", "Name": "a", "Protocol": "http"},
                {"Kind": "service-resolver", "Name": "a", "Failover": {"*": {"Service": "b"}}},
            ],
            "mixes protocols: 'a' has 'http', 'b' has 'tcp'",
        ),
    ],
)
def test_a_regular_expression_that_does_not_compile_is_named(entries: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(CompileError) as caught:
        compiled("a", *entries)
    assert words in str(caught.value)

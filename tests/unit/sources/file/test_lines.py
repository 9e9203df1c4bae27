"""Tests of finding lines in a text."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from xds.sources.file.document import RefusedError, parse
from xds.sources.file.lines import JSONLines, Path, YAMLLines

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('ab"\\[]{},:\n é', max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('ab"]', max_size=3), inner, max_size=4),
    max_leaves=20,
)


def paths(data: Any) -> list[Path]:
    members = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [(), *((step, *rest) for step, inner in members for rest in paths(inner))]


@given(JSON, st.sampled_from([None, 0, 2]))
def test_lines_of_json_are_those_of_the_same_text_as_yaml(data: object, indent: int | None) -> None:
    text = json.dumps({"top": data}, indent=indent)
    root = yaml.compose(text, yaml.SafeLoader)
    assert root is not None
    as_yaml, as_json = YAMLLines(root), JSONLines(text)
    for path in paths({"top": data}):
        assert as_json.of(path) == as_yaml.of(path), path


def test_an_absent_path_segment_is_skipped() -> None:
    lines = JSONLines('{\n "a": [\n  {"b": 1}\n ]\n}')
    assert lines.of(("a", 0, "b")) == 3
    assert lines.of(("a", 0, "connect-proxy", "b")) == 3
    assert lines.of(("a", 7)) == 2
    assert lines.of(("missing",)) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{\n"services": [],\n"services": []}', "f:3: 'services' is given twice, in line 2 already"),
        ('{\n"services": [\n{"name": "a",\n"prot": 1}], "default_intention_policy": "deny"}', "f:4: unknown field"),
        ('{\n"services": [}', "f:2: not YAML"),
        ('{"services": ' + "[" * 60 + "]" * 60 + "}", "nested more than 50 deep"),
        ('{"services": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested more than 50 deep"),
        ('{"services": [{"name": "a",\n"token": "half \\ud83d"}]}', "f:2: not YAML: while parsing a quoted scalar"),
        ('{"services": [], "default_intention_policy": NaN}', "f:1: default_intention_policy: expected 'allow'"),
    ],
)
def test_problems_of_json_are_reported_like_those_of_yaml(text: str, words: str) -> None:
    with pytest.raises(RefusedError) as refused:
        parse("f", text)
    assert words in str(refused.value)


def test_json_may_escape_any_character() -> None:
    text = json.dumps(
        {"default_intention_policy": "deny", "services": [{"name": "a", "meta": {"owner": "\U0001f600"}}]}
    )
    assert "\\ud83d" in text
    assert parse("f", text).mesh.services[0].meta == {"owner": "\U0001f600"}


def test_json_may_be_indented_with_tabs() -> None:
    mesh = parse("f", '{\n\t"services": [],\n\t"default_intention_policy": "deny"\n}').mesh
    assert mesh.default_intention_policy == "deny"

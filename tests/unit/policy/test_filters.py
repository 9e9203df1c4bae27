"""Filter expressions over what is known of an instance."""

from __future__ import annotations

import pytest

from tests.unit.facts import make_instance
from xds.policy.filters import FilterError, chosen, parse_filter

INSTANCE = make_instance(
    "api",
    tags=("canary", "eu"),
    meta=(("version", "v2"), ("with.dot", "x")),
    node_meta=(("zone", "a"),),
    name="api-proxy",
)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("", True),
        ("Service.Meta.version == v2", True),
        ('Service.Meta["with.dot"] == "x"', True),
        ("Service.Meta.version != v2", False),
        ("Service.Meta.missing == v2", False),
        ("Service.Meta.missing != v2", True),
        ('"canary" in Service.Tags', True),
        ("canary not in Service.Tags", False),
        ("Service.Tags contains eu and not (Node.Meta.zone == b)", True),
        ("Service.Tags not contains eu or Service.Port == 20000", True),
        ("Service.Tags is empty", False),
        ("Service.Meta is not empty", True),
        ("version in Service.Meta", True),
        ("Service.Service matches `^api-.*`", True),
        ("Service.Service not matches `^web`", True),
        ('Service.Weights.Passing == 1 and Service.ID == "api-1-sidecar-proxy"', True),
        ('Node.Node == other or Node.Node == other or Node.Node == "node-api-1"', True),
    ],
)
def test_a_filter_selects_instances(expression: str, expected: bool) -> None:
    assert chosen(expression, INSTANCE) is expected


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("Service.EnableTagOverride == true", "not known of an instance"),
        ("Checks.Status == passing", "not known of an instance"),
        ("Service.Meta.version ==", "expected a value, not the end"),
        ("Service.Meta.version", "a comparison"),
        ("(Service.ID == x", "expected ')'"),
        ("Service.ID == x y", "'and', 'or' or the end, not 'y'"),
        ("80 in Service.Port", "a number, in which nothing is"),
        ("Service.Port contains 8", "a number, in which nothing is"),
        ("Service.ID matches `[`", "does not compile"),
        ("(" * 400 + "Service.ID == x" + ")" * 400, "nested more than 50 deep"),
        ("not " * 1000 + "Service.ID == x", "nested more than 50 deep"),
    ],
)
def test_an_invalid_expression_is_reported(expression: str, words: str) -> None:
    with pytest.raises(FilterError) as caught:
        parse_filter(expression)
    assert words in str(caught.value)


def test_a_long_expression_is_not_a_deep_one() -> None:
    assert not chosen(" or ".join(["Service.ID == x"] * 250), INSTANCE)


@pytest.mark.parametrize("expression", [" or ".join(["Service.ID == x"] * 300), f"Service.ID == {'x' * 9000}"])
def test_an_expensive_expression_is_refused(expression: str) -> None:
    with pytest.raises(FilterError, match=r"more than|longer than"):
        parse_filter(expression)
